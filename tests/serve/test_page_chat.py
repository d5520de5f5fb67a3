"""What the chat page remembers of one visitor, and the page's own start."""

from __future__ import annotations

import argparse
import copy
import socket
from collections.abc import Iterator

import pytest

from vlm.cli import demo
from vlm.common.errors import DataError, PromptError, UserError
from vlm.common.registry import resolve
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.serve.gradio import app as gradio_app
from vlm.serve.gradio import display, theme
from vlm.serve.gradio.events import Models
from vlm.serve.gradio.examples import is_tiny_model, tiny_model_examples
from vlm.serve.gradio.mount import names_of
from vlm.serve.gradio.session import PageChat

from ..inference.small import CASE, write_config

IMAGE = str(CASE / "image.png")
OTHER = str(CASE / "data" / "cc_sbu_align" / "image" / "2.jpg")
SHORT = EVALUATION.replace(max_new_tokens=5)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture
def chat(engine: Engine) -> PageChat:
    return PageChat({"small": engine})


def answer(chat: PageChat) -> str:
    list(chat.write(dict.fromkeys(chat.engines, SHORT)))
    return chat.branches.here.replies["small"].text


def texts(chat: PageChat) -> list[str]:
    return [turn.text for turn in chat.branches.shown]


def media(chat: PageChat) -> list[int]:
    """How many images each shown question has, as the model is given it."""
    return [len(turn.asked["small"].media) for turn in chat.branches.shown]


def test_images_go_with_their_question_only(chat: PageChat, engine: Engine) -> None:
    chat.ask("What is this?", [IMAGE, OTHER])
    first = answer(chat)
    chat.ask("And now?")
    answer(chat)
    assert media(chat) == [2, 0]
    shown = display.messages(chat.branches.shown, "small")
    assert shown[0] == {"role": "user", "content": [{"path": IMAGE}, {"path": OTHER}, "What is this?"]}
    session = ChatSession(engine)
    assert first == session.chat("What is this?", [IMAGE, OTHER], generation=SHORT)
    assert chat.branches.here.replies["small"].text == session.chat("And now?", generation=SHORT)


def test_new_image_begins_another_conversation_unless_kept(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    answer(chat)
    chat.ask("And this?", [OTHER])
    answer(chat)
    assert texts(chat) == ["And this?"] and chat.branches.place == (2, 2)
    chat.ask("Compare.", [IMAGE], keep=True)
    assert media(chat) == [1, 1]
    chat.go(-1)
    assert texts(chat) == ["What is this?"]


def test_regenerate_and_restart(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    first = answer(chat)
    chat.again()
    assert texts(chat) == ["What is this?"] and chat.is_waiting
    assert answer(chat) == first and chat.branches.place == (2, 2)
    chat.restart()
    assert (chat.branches.shown, chat.branches.turns) == ([], [])
    with pytest.raises(PromptError):
        chat.again()


def test_one_question_at_a_time(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    writing = chat.write({"small": SHORT.replace(max_new_tokens=40)})
    next(writing)
    for intrude in (lambda: chat.ask("Quick, another!"), chat.again, chat.undo, lambda: chat.go(1)):
        with pytest.raises(PromptError, match="is being written"):
            intrude()
    assert texts(chat) == ["What is this?"]
    chat.stop()
    list(writing)
    assert chat.branches.here.replies["small"].record.finish == "cancelled"
    chat.ask("Now another.")
    assert answer(chat)


def test_visitor_who_leaves_frees_the_chat(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    writing = chat.write({"small": SHORT})
    next(writing)
    writing.close()
    assert not chat.is_writing
    chat.ask("Back again.")
    assert answer(chat)


def test_restart_while_an_answer_is_written(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    writing = chat.write({"small": SHORT})
    next(writing)
    chat.restart()
    list(writing)
    assert chat.branches.shown == [] and not chat.is_writing
    chat.ask("Anything?")
    assert answer(chat)


def test_bad_requests_change_nothing(chat: PageChat, tmp_path) -> None:
    chat.ask("What is this?", [IMAGE])
    answer(chat)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        chat.ask("And this?", [IMAGE, str(bad)])
    with pytest.raises(PromptError, match="type a question"):
        chat.ask("  ")
    chat.ask("word " * 300)
    with pytest.raises(PromptError, match="positions"):
        answer(chat)
    chat.ask("word " * 300, [OTHER])  # which would have begun a new conversation
    with pytest.raises(PromptError, match="positions"):
        answer(chat)
    assert texts(chat) == ["What is this?"] and chat.branches.place == (1, 1)
    chat.ask("And this?", [OTHER])
    chat.ask("Another instead?", [OTHER])  # before the first one was answered
    assert texts(chat) == ["Another instead?"] and len(chat.branches.turns) == 2
    chat.give_up()
    assert texts(chat) == ["What is this?"] and not chat.is_waiting
    chat.ask("Still there?")
    assert answer(chat)


def test_a_model_that_breaks_leaves_the_question_open(chat: PageChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Iterator[str]:
        raise RuntimeError("out of memory")
        yield ""

    with monkeypatch.context() as patched:
        patched.setattr(ChatSession, "stream", fails)
        chat.ask("What is this?", [IMAGE])
        with pytest.raises(RuntimeError):
            answer(chat)
    assert chat.is_waiting and texts(chat) == ["What is this?"]
    chat.ask("Once more?", [IMAGE])
    assert answer(chat) and texts(chat) == ["Once more?"]


def box(text: str | None, *files: str) -> dict[str, object]:
    return {"text": text, "files": list(files)}


def models(engine: Engine) -> Models:
    return Models({"small": engine}, {"small": SHORT})


def test_events_tell_and_change_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.serve.gradio import events as module

    told: list[str] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, title: told.append(text))
    monkeypatch.setattr(module.gr, "Info", lambda text, title: told.append(text))
    events = module.Events(models(engine), ["seed"])
    skip = module.gr.skip()
    names = ["small"]
    mine, *rest = events.ask(None, False, names, None)
    assert rest == [skip] * (1 + events.width) and told == ["type a question first"]
    events.ask(box("What?"), False, [], mine)
    assert "no model is chosen" in told.pop()
    assert list(events.write(mine, None)) == [events.same()] == list(events.write(None))
    assert events.again(names, mine) == events.same() and "no answer to regenerate" in told.pop()
    assert events.undo(None, mine) == events.same(1) and "no question to undo" in told.pop()
    assert events.download("html", mine) == "" and "Ask a question first" in told.pop()
    for value in (float("nan"), "x", {}, 1e400):
        mine = events.ask(box("What is this?"), False, names, mine)[0]
        assert list(events.write(mine, value))[-1][0] == [] and "a setting is not a number" in told.pop()
    mine = events.ask(box("What is this?"), False, names, mine)[0]
    list(events.write(mine, None))
    for sample, seed, same in ((True, None, False), (False, None, True), (True, 7, True)):
        told.clear()
        assert len(events.again(names, mine, sample, seed)[0]) == 1
        assert told == ([module.SAME] if same else [])
        list(events.write(mine, None))
    events.ask(box("And now?"), False, names, mine)
    assert len(events.stop(mine)[0]) == 2 and not mine.is_waiting  # a question that waits is taken back
    events.forget(mine)
    assert mine.branches.turns == []


def test_without_streaming_an_answer_comes_whole(engine: Engine) -> None:
    from vlm.serve.gradio.events import Events

    found = []
    for stream in (True, False):
        events = Events(models(engine), ["max_new_tokens", "top_k"], stream=stream)
        mine = events.ask(box("What is this?", IMAGE), False, ["small"], None)[0]
        updates = list(events.write(mine, 5.0, 3.0))
        found.append(updates[-1][0][-1]["content"])
        assert len(updates) > 1 if stream else len(updates) == 1
    assert found[0] == found[1]


def test_port_in_use_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"):
            gradio_app.launch("nowhere.yaml", port=port)
    assert gradio_app.free_port("127.0.0.1", None) in gradio_app.PORTS


def test_published_command_line() -> None:
    parser = argparse.ArgumentParser()
    demo.Demo().add_arguments(parser)
    args = parser.parse_args(["--cfg-path", "a.yaml", "--gpu-id", "0", "--options", "model.ckpt=b", "run.seed=1"])
    assert (args.cfg_path, args.gpu_id, args.options, args.share) == (
        "a.yaml",
        0,
        ["model.ckpt=b", "run.seed=1"],
        False,
    )
    with pytest.raises(UserError, match="no run folder or configuration named"):
        demo.Demo().main(parser.parse_args([]))
    assert demo.sources_of(args) == ["a.yaml"]
    assert demo.sources_of(parser.parse_args(["a", "b"])) == ["a", "b"]
    assert demo.sources_of(parser.parse_args(["x=a", "y=b"])) == {"x": "a", "y": "b"}
    for wrong in (["x=a", "b"], ["x=a", "x=b"]):
        with pytest.raises(UserError, match="a name of its own"):
            demo.sources_of(parser.parse_args(wrong))


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/one/", "runs/two"], ["one", "two"]),
        (["a/stage2", "b/stage2", "c"], ["a/stage2", "b/stage2", "c"]),
        (["a", "a"], ["a", "a (2)"]),
        (["tiny/eval"], ["eval"]),
    ],
)
def test_models_are_named_by_their_folders(sources: list[str], names: list[str]) -> None:
    assert names_of(sources) == names


def test_header_names_the_parts(engine: Engine) -> None:
    html = theme.header({"small": engine})
    for name in ("eva_vit", "qformer", "linear", "llm", "cpu"):
        assert f">{name}<" in html
    assert not is_tiny_model(engine.config)


def test_only_templates_with_tasks_offer_them(engine: Engine) -> None:
    from vlm.serve.gradio.layout import build

    assert engine.processor.template.task_texts == ()
    assert "Send" in _labels(build(models(engine)))
    assert not any(label.startswith("[") for label in _labels(build(models(engine))))
    texts = resolve("template", "minigpt_v2").task_texts
    processor = copy.copy(engine.processor)
    processor.template = copy.copy(processor.template)
    vars(processor.template)["task_texts"] = texts
    v2 = Engine(engine.model, processor, config=engine.config)
    assert texts and [t.strip() for t in texts] == [v for v in _labels(build(models(v2))) if v.startswith("[")]


def _labels(page) -> list[str]:
    values = [component["props"].get("value") for component in page.get_config_file()["components"]]
    return [v for v in values if isinstance(v, str)]


def test_world_examples_are_images_with_questions(tmp_path) -> None:
    examples = tiny_model_examples(tmp_path, count=8)
    assert len(examples) == 8 and len({question for _, question in examples}) >= 6
    assert all(question.endswith(("?", ".")) for _, question in examples)
    assert len(list(tmp_path.glob("*.png"))) == 8
