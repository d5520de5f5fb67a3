"""The page about protocols: what its tables say is what the rules read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlm.common.registry import resolve
from vlm.tasks.benchmarks.standard.items import Item

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "protocols.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- reads: (\w+) ([\w ]+?)(?:; choices: ([^>]+?))? -->\n(.*?)\n\n", re.DOTALL)


def rows() -> list[tuple[str, str, str, str, tuple[str, ...]]]:
    """Benchmark, protocol, answer, what the page says is read, and the choices, of each cell of the checked tables."""
    found = []
    for name, protocols, choices, table in TABLE.findall(PAGE):
        for line in table.splitlines()[2:]:
            answer, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            options = tuple(c.strip() for c in choices.split(",")) if choices else ()
            found += [(name, p, answer.strip("`"), c, options) for p, c in zip(protocols.split(), cells, strict=True)]
    return found


def test_the_page_has_tables() -> None:
    assert len(rows()) >= 50 and len(TABLE.findall(PAGE)) == PAGE.count("<!-- reads:")


@pytest.mark.parametrize(("name", "protocol", "answer", "read", "choices"), rows())
def test_what_the_rules_read(name: str, protocol: str, answer: str, read: str, choices: tuple[str, ...]) -> None:
    benchmark = resolve("benchmark", name)
    fields = {"options": list(choices), "order": list(range(len(choices)))}
    rule = benchmark.function(benchmark.spec().protocol(protocol).answer)
    found = rule(answer, Item("1", "What is it?", (), "A", fields, choices))
    assert (found or "nothing") == read
