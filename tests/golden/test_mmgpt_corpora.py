"""Golden: question, options, answer and pictures of every corpus of the published Multimodal-GPT code.

Runs on every case folder (one with ``datasets_expected.json``) below ``<golden root>/mmgpt``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .mmgpt_corpora import published_corpus, recorded, recorded_sample

TEXT_ONLY = ("dolly", "alpaca_gpt4", "baize")


def cases(config: pytest.Config) -> list[Path]:
    root = config.getoption("--golden-root", default=None) or Path(__file__).parent
    return sorted(p.parent for p in Path(root, "mmgpt").rglob("datasets_expected.json"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folders = cases(metafunc.config)
    if "number" in metafunc.fixturenames:
        found = [(c, k, r) for c in folders for k, r in enumerate(recorded(c))]
        ids = [f"{c.name}-{r['dataset']}-{r['index']}-{r['seed']}" for c, _, r in found]
        metafunc.parametrize(("case", "number"), [(c, k) for c, k, _ in found], ids=ids)
    elif "corpus" in metafunc.fixturenames:
        pairs = [(c, n) for c in folders for n in json.loads((c / "datasets_expected.json").read_text())["configs"]]
        metafunc.parametrize(("case", "corpus"), pairs, ids=[f"{c.name}-{n}" for c, n in pairs])


def test_recorded_sample(case: Path, number: int) -> None:
    record = recorded(case)[number]
    sample = recorded_sample(case, record)
    pictures = [
        s for m in sample.messages for p in m.media for s in (p.source if isinstance(p.source, tuple) else [p.source])
    ]
    assert len(pictures) == (0 if record["dataset"] in TEXT_ONLY else 2 if record["dataset"] == "nlvrv2" else 1)
    assert all(Path(p).is_file() for p in pictures)
    assert [bool(m.media) for m in sample.messages] == [bool(pictures), *[False] * (len(sample.messages) - 1)]


def test_every_record_of_a_corpus_loads(case: Path, corpus: str) -> None:
    data = published_corpus(case, corpus)
    assert len(data) == len({data[i].id for i in range(len(data))})
