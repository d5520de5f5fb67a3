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
from vlm.common.types import Image
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.serve.gradio import app as gradio_app
from vlm.serve.gradio import theme as theme
from vlm.serve.gradio.examples import is_tiny_model, tiny_model_examples
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
    return PageChat(engine)


def answer(chat: PageChat) -> str:
    return list(chat.write(SHORT))[-1][-1]["content"]


def test_image_goes_with_its_first_question_only(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    first = answer(chat)
    chat.ask("And now?", IMAGE)
    answer(chat)
    assert [len(m.media) for m in chat.session.messages] == [1, 0, 0, 0]
    assert chat.shown[0] == {"role": "user", "content": [{"path": IMAGE}, "What is this?"]}
    assert chat.shown[1]["content"] == first == chat.session.messages[1].text
    assert chat.shown[2]["content"] == ["And now?"]


def test_new_image_begins_anew_unless_kept(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    answer(chat)
    chat.ask("And this?", OTHER)
    answer(chat)
    assert len(chat.session.messages) == len(chat.shown) == 2
    chat.ask("Compare.", IMAGE, keep=True)
    assert sum(len(m.media) for m in chat.session.messages) == 2
    assert len(chat.shown) == 3


def test_regenerate_and_restart(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    first = answer(chat)
    chat.again()
    assert len(chat.shown) == 1
    assert answer(chat) == first
    chat.restart()
    assert (chat.shown, chat.session.messages, chat.image) == ([], [], None)
    with pytest.raises(PromptError):
        chat.again()


def test_one_answer_at_a_time(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    writing = chat.write(SHORT)
    next(writing)
    for intrude in (lambda: chat.ask("Quick, another!", None), chat.again):
        with pytest.raises(PromptError, match="is being written"):
            intrude()
    assert [m.role for m in chat.session.messages] == ["user"]
    chat.stop()
    list(writing)
    chat.ask("Now another.", None)
    assert answer(chat)


def test_visitor_who_leaves_frees_the_chat(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    writing = chat.write(SHORT)
    next(writing)
    writing.close()
    chat.ask("Back again.", None)
    assert answer(chat)


def test_restart_while_an_answer_is_written(chat: PageChat) -> None:
    chat.ask("What is this?", IMAGE)
    writing = chat.write(SHORT)
    next(writing)
    chat.restart()
    assert list(writing)[-1] == []
    assert chat.session.messages == []


def test_bad_requests_change_nothing(chat: PageChat, tmp_path) -> None:
    chat.ask("What is this?", IMAGE)
    answer(chat)
    shown = [dict(bubble) for bubble in chat.shown]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        chat.ask("And this?", str(bad))
    with pytest.raises(PromptError, match="type a question"):
        chat.ask("  ", None)
    chat.ask("word " * 300, None)
    with pytest.raises(PromptError, match="positions"):
        answer(chat)
    assert chat.shown == shown
    assert len(chat.session.messages) == 2
    chat.ask("Still there?", None)
    assert answer(chat)


def test_a_question_that_fails_leaves_conversation_and_image(chat: PageChat) -> None:
    chat.ask("word " * 300, IMAGE)
    with pytest.raises(PromptError, match="positions"):
        answer(chat)
    assert (chat.shown, chat.image) == ([], None)
    chat.ask("What is this?", IMAGE)  # the image goes with this question then
    first = answer(chat)
    assert [len(m.media) for m in chat.session.messages] == [1, 0]
    chat.ask("word " * 300, OTHER)  # a new image, which would have begun a new conversation
    with pytest.raises(PromptError, match="positions"):
        answer(chat)
    assert [len(m.media) for m in chat.session.messages] == [1, 0] and chat.image == IMAGE
    assert len(chat.shown) == 2 and chat.shown[1]["content"] == first
    chat.ask("And this?", OTHER)
    chat.ask("Another instead?", OTHER)  # before the first one was answered
    assert [len(m.media) for m in chat.session.messages] == [1] and len(chat.shown) == 1
    chat.give_up()
    assert chat.image == IMAGE and not chat.is_waiting


def test_visitor_who_leaves_before_the_first_word(chat: PageChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Iterator[str]:
        raise RuntimeError("out of memory")
        yield ""

    with monkeypatch.context() as patched:
        patched.setattr(chat.session, "stream", fails)
        chat.ask("What is this?", IMAGE)
        with pytest.raises(RuntimeError):
            answer(chat)
    assert chat.is_waiting and len(chat.shown) == 1
    chat.ask("Once more?", IMAGE)
    assert answer(chat) and len(chat.shown) == 2


def test_events_tell_and_change_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.serve.gradio import events as module

    told: list[str] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, title: told.append(text))
    monkeypatch.setattr(module.gr, "Info", lambda text, title: told.append(text))
    events = module.Events(engine, SHORT, ["seed"])
    skip = module.gr.skip()
    mine, *rest = events.ask(None, None, False, None)
    assert rest == [skip] * 5 and told == ["type a question first"]
    assert list(events.write(mine, None)) == [[skip] * 4] == list(events.write(None))
    assert events.again(mine) == [skip] * 4 and "no answer to regenerate" in told.pop()
    for value in (float("nan"), "x", {}, 1e400):
        mine = events.ask("What is this?", None, False, mine)[0]
        assert list(events.write(mine, value))[-1][0] == [] and "a setting is not a number" in told.pop()
    mine = events.ask("What is this?", None, False, mine)[0]
    list(events.write(mine, None))
    for sample, seed, same in ((True, None, False), (False, None, True), (True, 7, True)):
        told.clear()
        assert len(events.again(mine, sample, seed)[0]) == 1
        assert told == ([module.SAME] if same else [])
        list(events.write(mine, None))
    events.ask("And now?", None, False, mine)
    assert len(events.stop(mine)[0]) == 2 and not mine.is_waiting  # a question that waits is taken back
    events.forget(mine)
    assert mine.session.messages == [] == mine.shown


def test_without_streaming_an_answer_comes_whole(engine: Engine) -> None:
    from vlm.serve.gradio.events import Events

    found = []
    for stream in (True, False):
        events = Events(engine, SHORT, ["max_new_tokens", "top_k"], stream=stream)
        mine = events.ask("What is this?", IMAGE, False, None)[0]
        updates = list(events.write(mine, 5.0, 3.0))
        found.append(updates[-1][0][-1]["content"])
        assert len(updates) > 1 if stream else len(updates) == 1
    assert found[0] == found[1]


def test_an_upload_is_decoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from vlm.processors.image.recipe import ImageRecipe
    from vlm.serve.gradio import events as module
    from vlm.serve.gradio.session import UPLOADS

    decoded: list[object] = []
    recipe = ImageRecipe.__call__

    def spy(self, source, *rest):
        decoded.extend([source] if isinstance(source, str) else [])
        return recipe(self, source, *rest)

    monkeypatch.setattr(ImageRecipe, "__call__", spy)
    events = module.Events(engine, SHORT, [])
    events.check(Image, IMAGE)
    mine = events.ask("What is this?", IMAGE, False, None)[0]
    list(events.write(mine))
    assert decoded == [IMAGE] and not events.uploads._held
    for number in range(UPLOADS + 2):  # visitors who upload and never ask
        (tmp_path / f"{number}.png").write_bytes((CASE / "image.png").read_bytes())
        events.check(Image, str(tmp_path / f"{number}.png"))
    assert len(events.uploads._held) == UPLOADS
    warned: list[str] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, title: warned.append(title))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    assert events.check(Image, str(tmp_path / "bad.png")) is None and warned == ["This image cannot be read"]


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


def test_header_names_the_parts(engine: Engine) -> None:
    html = theme.header(engine)
    for name in ("eva_vit", "qformer", "linear", "llm", "cpu"):
        assert f">{name}<" in html
    assert not is_tiny_model(engine.config)


def test_only_templates_with_tasks_offer_them(engine: Engine) -> None:
    from vlm.serve.gradio.layout import build

    assert engine.processor.template.task_texts == ()
    assert "Send" in _labels(build(engine))
    assert not any(label.startswith("[") for label in _labels(build(engine)))
    texts = resolve("template", "minigpt_v2").task_texts
    processor = copy.copy(engine.processor)
    processor.template = copy.copy(processor.template)
    vars(processor.template)["task_texts"] = texts
    v2 = Engine(engine.model, processor, config=engine.config)
    assert texts and [t.strip() for t in texts] == [v for v in _labels(build(v2)) if v.startswith("[")]


def _labels(page) -> list[str]:
    values = [component["props"].get("value") for component in page.get_config_file()["components"]]
    return [v for v in values if isinstance(v, str)]


def test_world_examples_are_images_with_questions(tmp_path) -> None:
    examples = tiny_model_examples(tmp_path, count=8)
    assert len(examples) == 8 and len({question for _, question in examples}) >= 6
    assert all(question.endswith(("?", ".")) for _, question in examples)
    assert len(list(tmp_path.glob("*.png"))) == 8
