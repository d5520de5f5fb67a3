"""In-context prompting: examples from a file in front of a question, for both kinds of templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.checkpoint.load import load_model
from vlm.common.errors import DataError, PromptError
from vlm.common.types import MEDIA_TOKEN, Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.few_shot import example_messages, prepend_examples, read_examples
from vlm.inference.generation import CHAT
from vlm.inference.session import ChatSession
from vlm.processors.processor import build_processor

from ..golden.helpers_mmgpt import MmgptCase

CASE = Path(__file__).parents[1] / "golden" / "mmgpt" / "open"
FIRST, SECOND = (CASE / "images" / name for name in ("second.png", "gradient_97x131.png"))
GREEDY = CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=8)
EOC = 450


@pytest.fixture(scope="module")
def flamingo() -> Engine:
    """The recorded weights as plain OpenFlamingo."""
    torch.set_num_threads(1)
    case = MmgptCase(CASE)
    cfg = case.composition(template={"name": "open_flamingo"})
    return Engine(load_model(cfg, device="cpu"), build_processor(cfg.model), config=cfg)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(FIRST.read_bytes())
    lines = [
        {"image": "images/a.png", "question": "What is it?", "answer": "a boat"},
        {"question": "Name a planet.", "answer": "Saturn"},
    ]
    path = tmp_path / "examples.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def asked(text: str = "What colour?") -> list[Message]:
    return [Message("user", (Image(str(SECOND)), *([Text(text)] if text else [])))]


def same(engine: Engine, messages: list[Message], text: str, images: list[Path]) -> bool:
    """Whether messages become the ids and images of the finished prompt ``text``."""
    (got,) = engine.examples([messages])
    want = engine.processor.encode_prompt(text, [str(p) for p in images])
    return got.ids == want.ids and all(torch.equal(a, b) for a, b in zip(got.media, want.media, strict=True))


def test_published_prompts(flamingo: Engine, file: Path) -> None:
    front = (
        "<image>Question:What is it? Short answer:a boat<|endofchunk|>"
        "Question:Name a planet. Short answer:Saturn<|endofchunk|>"
    )
    query = "<image>Question:What colour? Short answer:"
    assert same(flamingo, prepend_examples(read_examples(file), asked()), front + query, [FIRST, SECOND])
    captions = example_messages([{"image": str(FIRST), "answer": "a boat"}])
    text = "<image>Output:a boat<|endofchunk|><image>Output:"
    assert same(flamingo, prepend_examples(captions, asked("")), text, [FIRST, SECOND])
    (got,) = flamingo.examples([prepend_examples(captions, asked(""))])
    assert got.ids.count(MEDIA_TOKEN) == 2 and got.ids.count(EOC) == 1


def test_other_forms_of_a_question() -> None:
    question = "is an image with: '{}' written on it. Is it hateful? Answer:"
    cfg = MmgptCase(CASE).composition(template={"name": "open_flamingo", "question": question})
    engine = Engine(load_model(cfg, device="cpu"), build_processor(cfg.model))
    text = "<image>is an image with: 'hello' written on it. Is it hateful? Answer:"
    assert same(engine, asked("hello"), text, [SECOND])


def test_several_images_in_order(flamingo: Engine) -> None:
    two = example_messages([{"image": [str(FIRST), str(SECOND)], "question": "Same?", "answer": "no"}])
    text = "<image><image>Question:Same? Short answer:no<|endofchunk|><image>Question:What colour? Short answer:"
    assert same(flamingo, prepend_examples(two, asked()), text, [FIRST, SECOND, SECOND])
    marked = example_messages(
        [{"image": [str(FIRST), str(SECOND)], "question": "Is <ImageHere> like <ImageHere>?", "answer": "no"}]
    )
    text = "Question:Is <image> like <image>? Short answer:no<|endofchunk|><image>Question:What colour? Short answer:"
    assert same(flamingo, prepend_examples(marked, asked()), text, [FIRST, SECOND, SECOND])


def test_examples_are_earlier_turns_of_a_chat_template(file: Path) -> None:
    case = MmgptCase(CASE)
    engine = Engine(case.model, case.processor)
    turn = "\n\n### Image:\n<image>\n\n### Instruction:\n{}\n\n### Response:\n{}"
    plain = "\n\n### Instruction:\n{}\n\n### Response:\n{}"
    text = case.processor.template.config.system + turn.format("What is it?", "a boat")
    text += plain.format("Name a planet.", "Saturn") + turn.format("What colour?", "")
    assert same(engine, prepend_examples(read_examples(file), asked()), text, [FIRST, SECOND])
    system = Message("system", (Text("Be brief."),))
    found = prepend_examples(read_examples(file), [system, *asked()])
    assert [m.role for m in found] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_generation_stops_at_the_end_of_a_chunk(flamingo: Engine, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is bent so that the end of a chunk wins where another token won before."""
    messages = prepend_examples(read_examples(file), asked())
    monkeypatch.setattr(flamingo.model.llm, "banned_ids", ())
    (free,) = flamingo.generate_ids([messages], GREEDY, stops=())
    place = next(k for k in range(1, len(free)) if free[k] not in free[:k])
    head = flamingo.model.llm.model.lm_head.weight
    kept = head[EOC].clone()
    with torch.no_grad():
        head[EOC] = head[free[place]] * 1.001
    try:
        (ids,) = flamingo.generate_ids([messages], GREEDY)
        assert ids == [*free[:place], EOC]
        text = flamingo.processor.tokenizer.decode(free[:place]).strip()
        assert flamingo.generate([messages], GREEDY) == [text]
        assert "".join(flamingo.stream(messages, GREEDY)) == text
    finally:
        with torch.no_grad():
            head[EOC] = kept


def test_a_session_keeps_its_examples(flamingo: Engine, file: Path) -> None:
    examples = read_examples(file)
    session = ChatSession(flamingo, GREEDY, examples)
    for _ in range(2):
        session.ask("What colour?", [str(SECOND)])
        assert session.answer() == flamingo.generate([prepend_examples(examples, asked())], GREEDY)[0]
        assert len(session.messages) == 2
        session.reset()


def test_answers_are_cut_before_the_next_question(flamingo: Engine) -> None:
    clean = flamingo.processor.template.clean
    assert clean(" a boat Question:What else? Short answer:") == "a boat"
    assert clean("a boat Output:a") == "a boat"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "no.png", "question": "What?", "answer": "x"}', r"line 1: image .*no\.png: no such file"),
        ('{"question": "What?"}', r"line 1: no `answer` \(it has: question\)"),
        ('{"question": "What?", "answer": " "}', "line 1: no `answer`"),
        ('{"answer": "x"}', "line 1: neither `image` nor `question`"),
        ('{"question": 3, "answer": "x"}', "line 1: `question` is 3, expected a string"),
        ('{"img": "a.png", "answer": "x"}', "line 1: unknown field 'img' .allowed: image, question, answer"),
        ('["a.png"]', "line 1: found list, expected a mapping"),
        ("{", "line 1 is not JSON"),
        ("\n", "the file is empty"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=said):
        read_examples(path)
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        read_examples(tmp_path / "absent.jsonl")


def test_more_marks_than_images(flamingo: Engine) -> None:
    record: dict[str, Any] = {"image": str(FIRST), "question": "<ImageHere> or <ImageHere>?", "answer": "x"}
    with pytest.raises(PromptError, match="example 1: 2 image placeholders, but 1 images"):
        example_messages([record])
    for engine in (flamingo, Engine(flamingo.model, MmgptCase(CASE).processor)):
        session = ChatSession(engine, GREEDY)
        session.ask("<ImageHere> or <ImageHere>?", [str(SECOND)])
        with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
            session.answer()
    with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
        flamingo.processor.encode_prompt("<image> and <image>", [str(FIRST)])


def test_placeholders_in_questions_are_the_places_of_images(tmp_path: Path) -> None:
    record = {"image": ["1.jpg", "2.jpg"], "question": "<image>\nSame as <image>?", "answer": "no"}
    for name in record["image"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "s.jsonl").write_text("\ufeff" + json.dumps(record, ensure_ascii=False), encoding="utf-8")
    user = read_examples(tmp_path / "s.jsonl")[0]
    assert [getattr(p, "text", "image") for p in user.parts] == ["image", "Same as ", "image", "?"]
    with pytest.raises(DataError, match="an image in an answer"):
        example_messages([{"question": "Draw", "answer": "Here: <image>"}])
