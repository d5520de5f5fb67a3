"""The page's prompt settings: another text in front, a shorter history, what the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.serve.gradio.events import Events, Models
from vlm.serve.gradio.session import PageChat

from ..golden.helpers_mmgpt import MmgptCase

CASE = Path(__file__).parents[1] / "golden" / "mmgpt" / "open"
FIRST, SECOND = (str(CASE / "images" / name) for name in ("second.png", "gradient_97x131.png"))
SHORT = EVALUATION.replace(max_new_tokens=4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    case = MmgptCase(CASE)
    return Engine(case.model, case.processor)


def usual(engine: Engine) -> str:
    return engine.processor.template.config.system


def box(text: str, *files: str) -> dict[str, object]:
    return {"text": text, "files": list(files)}


def test_prompt_is_shown_as_the_model_reads_it(engine: Engine) -> None:
    chat = PageChat({"m": engine})
    chat.ask("What is it?", [FIRST])
    list(chat.write({"m": SHORT}))
    asked = "\n\n### Image:\n<image>\n\n### Instruction:\nWhat is it?\n\n### Response:\n"
    assert chat.read == {"m": usual(engine) + asked}
    answer = chat.branches.here.replies["m"].text
    chat.ask("And this?", [SECOND], keep=True)
    list(chat.write({"m": SHORT}))
    again = asked.replace("What is it?", "And this?")
    assert chat.read == {"m": usual(engine) + asked + answer + again}


def test_history_buffer_and_text_in_front(engine: Engine) -> None:
    events = Events(Models({"m": engine}, {"m": SHORT}), ["max_new_tokens"])
    mine = events.ask(box("What is it?", FIRST), True, ["m"], None)[0]
    list(events.write(mine, 4, usual(engine), -1))
    events.ask(box("Which colour?"), True, ["m"], mine)
    list(events.write(mine, 4, usual(engine), 0))
    assert events.read(mine) == usual(engine) + "\n\n### Instruction:\nWhich colour?\n\n### Response:\n"
    events.ask(box("Why?"), True, ["m"], mine)
    list(events.write(mine, 4, "Be brief.", 1))
    assert events.read(mine).startswith("Be brief.\n\n### Instruction:\nWhich colour?")
    assert "What is it?" not in events.read(mine) and events.read(None) == ""
    assert len(mine.branches.shown) == 3


def test_kept_turns_leave_examples_in_place(engine: Engine) -> None:
    from vlm.inference.few_shot import example_messages

    session = ChatSession(engine, SHORT, example_messages([{"question": "Name a planet.", "answer": "Saturn"}]))
    session.keep_turns = 0
    for question in ("One?", "Two?"):
        session.ask(question)
        session.answer()
    session.ask("Three?")
    assert [m.text for m in session.prompt()] == ["Name a planet.", "Saturn", "Three?"]
    session.keep_turns = 1
    assert [m.text for m in session.prompt()][2] == "Two?" and len(session.prompt()) == 5


def test_page_is_built_with_the_prompt_settings(engine: Engine) -> None:
    from vlm.serve.gradio import layout

    page = layout.build(Models({"m": engine}, {"m": SHORT}))
    labels = [getattr(b, "label", None) for b in page.blocks.values()]
    assert {"Prompt", "System text", "What the model reads"} <= set(labels)


def test_examples_to_click(tmp_path: Path) -> None:
    from vlm.common.errors import DataError
    from vlm.serve.gradio.examples import read_page_examples

    file = tmp_path / "examples.jsonl"
    (tmp_path / "a.png").write_bytes(Path(FIRST).read_bytes())
    file.write_text('{"image": "a.png", "question": "What is in this image?"}\n\n')
    assert read_page_examples(file) == [(str(tmp_path / "a.png"), "What is in this image?")]
    for line, said in (
        ('{"image": "b.png", "question": "What?"}', r"line 1: image .*b\.png: no such file"),
        ('{"image": "a.png"}', "line 1: needs `image` and `question`"),
        ("[]", "line 1: needs `image` and `question`"),
        ("{", "line 1 is not JSON"),
    ):
        file.write_text(line)
        with pytest.raises(DataError, match=said):
            read_page_examples(file)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_page_examples(tmp_path / "none.jsonl")
