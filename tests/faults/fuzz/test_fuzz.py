"""Three hundred mutants of every kind of input: accepted or refused with a message, in bounded time and memory."""

from __future__ import annotations

import pytest

from .run import MOST_GROWTH, MOST_SECONDS, NAMES, fuzz


@pytest.mark.heavy
def test_mutants_are_accepted_or_refused() -> None:
    report = fuzz(0, [(name, number) for number in range(60) for name in NAMES])
    assert not report.findings, "\n".join(report.findings)
    assert {name: counts.total() for name, counts in report.outcomes.items()} == dict.fromkeys(NAMES, 60)
    assert report.slowest[0] < MOST_SECONDS and report.growth < MOST_GROWTH
    for name, counts in report.outcomes.items():  # damage that nothing notices, or only refusals, would test little
        assert counts["refused"] >= 5 and counts["accepted"] >= 1, (name, counts)
