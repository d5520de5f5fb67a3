"""Golden: the recorded conversations through the engine, from picture and text to the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation

from .helpers_visualcla import VisualCLACase, asked

GREEDY = Generation(do_sample=False, repetition_penalty=1.0, stop=())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        folders = sorted(f.parent for f in Path(root, "visualcla").rglob("case.json"))
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> VisualCLACase:
    return VisualCLACase(request.param)


def conversation(case: VisualCLACase, record: dict[str, Any]) -> list[Message]:
    """The recorded history and question; the picture belongs to the first question."""
    roles = {"instruction": "user", "response": "assistant"}
    turns = [(roles[turn["type"]], turn["value"]) for turn in record["history_before"]] + [("user", record["text"])]
    picture = (Image(case.folder / "image.png"),)
    return [Message(role, (*(picture if i == 0 else ()), Text(text))) for i, (role, text) in enumerate(turns)]


@pytest.mark.parametrize("merged", [False, True])
def test_answers(case: VisualCLACase, merged: bool) -> None:
    engine = Engine.load(case.composition(merged), "cpu")
    for record in case.case["generations"]:
        messages = conversation(case, record)
        assert engine.generate_ids([messages], GREEDY.replace(**asked(record)))[0] == record["output_ids"][1:], record[
            "name"
        ]
