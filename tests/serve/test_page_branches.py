"""Several models side by side, branches of a conversation, numbers of answers, and files of a conversation."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from vlm.common.errors import BusyError, DataError, PromptError
from vlm.inference.batching.answer import Answer
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.pages.conversation import numbers
from vlm.serve.gradio import branches as tree
from vlm.serve.gradio import display
from vlm.serve.gradio.branches import Reply
from vlm.serve.gradio.events import Events, Models, template_option
from vlm.serve.gradio.session import PageChat

from ..golden.helpers_mmgpt import MmgptCase
from ..inference.small import CASE, write_config

IMAGE = str(CASE / "image.png")
OTHER = str(CASE / "data" / "cc_sbu_align" / "image" / "2.jpg")
SHORT = EVALUATION.replace(max_new_tokens=5)
BOTH = ["small", "other"]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    small = Engine.load(write_config(tmp_path_factory.mktemp("small")))
    case = MmgptCase(Path(__file__).parents[1] / "golden" / "mmgpt" / "open")
    return {"small": small, "other": Engine(case.model, case.processor)}


@pytest.fixture
def chat(engines: dict[str, Engine]) -> PageChat:
    return PageChat(engines, "visitor")


@pytest.fixture
def events(engines: dict[str, Engine]) -> Events:
    return Events(Models(engines, dict.fromkeys(engines, SHORT)), ["max_new_tokens"])


def answer(chat: PageChat) -> dict[str, str]:
    list(chat.write(dict.fromkeys(chat.engines, SHORT)))
    return {name: reply.text for name, reply in chat.branches.here.replies.items()}


def texts(chat: PageChat) -> list[str]:
    return [turn.text for turn in chat.branches.shown]


def test_each_model_answers_as_it_does_alone(chat: PageChat) -> None:
    sessions = {name: ChatSession(engine) for name, engine in chat.engines.items()}
    for question, images in (("What is this?", [IMAGE, OTHER]), ("And now?", [])):
        chat.ask(question, images)
        alone = {name: session.chat(question, images, generation=SHORT) for name, session in sessions.items()}
        assert answer(chat) == alone
    assert alone["small"] != alone["other"]


def test_models_write_at_the_same_time(chat: PageChat, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=20)
    stream = ChatSession.stream

    def meet(self, *given):
        both.wait()  # breaks unless the other model has begun, too
        yield from stream(self, *given)

    monkeypatch.setattr(ChatSession, "stream", meet)
    chat.ask("What is this?", [IMAGE])
    assert set(answer(chat)) == set(BOTH)


def test_stop_ends_all_answers(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    writing = chat.write(dict.fromkeys(BOTH, SHORT.replace(max_new_tokens=60)))
    while not all(reply.text for reply in (chat.branches.here.replies or {"": Reply()}).values()):
        next(writing)
    chat.stop()
    list(writing)
    assert {reply.record.finish for reply in chat.branches.here.replies.values()} == {"cancelled"}


def test_stop_before_the_first_word_leaves_the_question_open(chat: PageChat, monkeypatch) -> None:
    chat.ask("What is this?", [IMAGE])
    with monkeypatch.context() as patched:
        patched.setattr(ChatSession, "_begin", lambda self: chat.stop())
        list(chat.write(dict.fromkeys(BOTH, SHORT)))
    assert chat.is_waiting and chat.branches.here.faults == {}
    chat.again()
    assert all(answer(chat).values()) and len(chat.branches.turns) == 1


def test_questions_go_to_the_engine_of_their_visitor(chat: PageChat, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = []
    submit = Engine.submit

    def spy(self, messages, generation=None, asking=None, **more) -> Answer:
        tenants.append(asking.tenant)
        return submit(self, messages, generation, asking, **more)

    monkeypatch.setattr(Engine, "submit", spy)
    chat.ask("What is this?")
    answer(chat)
    assert tenants == ["visitor", "visitor"]


def test_a_model_that_joins_later_sees_the_images(chat: PageChat) -> None:
    chat.chosen = ["small"]
    chat.ask("What is this?", [IMAGE])
    assert set(answer(chat)) == {"small"}
    chat.chosen = BOTH
    chat.ask("And now?")
    assert [len(m.media) for m in chat.branches.here.asked.values()] == [0, 1]
    alone = ChatSession(chat.engines["other"]).chat("And now?", [IMAGE], generation=SHORT)
    assert answer(chat)["other"] == alone
    assert display.messages(chat.branches.shown, "other")[1]["content"] == "*(not answered)*"


def test_one_model_that_cannot_answer_leaves_the_other_alone(chat: PageChat, events: Events, monkeypatch) -> None:
    from vlm.serve.gradio import events as module

    told: list[tuple[str, str]] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, title: told.append((title, text)))
    long = "word " * 120  # more than one of them reads
    few = min(chat.engines, key=lambda name: chat.engines[name].positions)
    box = {"text": long, "files": []}
    mine = events.ask(box, False, BOTH, chat)[0]
    list(events.write(mine, 2))
    [(title, text)] = told
    assert title == f"{few} did not answer" and "positions" in text
    assert set(mine.branches.here.replies) == set(BOTH) - {few}
    box["text"] = "Short?"
    mine = events.ask(box, False, BOTH, chat)[0]
    list(events.write(mine, 2))
    assert few in mine.branches.here.replies  # what it could not read is not part of its history


def test_a_question_that_finds_the_engine_busy_stays_open(chat: PageChat, events: Events, monkeypatch) -> None:
    from vlm.serve.gradio import events as module

    def busy(*_: object, **__: object) -> Answer:
        raise BusyError("the queue is full")

    told: list[str] = []
    monkeypatch.setattr(module.gr, "Warning", lambda text, title: told.append(text))
    mine = events.ask({"text": "What is this?", "files": [IMAGE]}, False, ["small"], chat)[0]
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "submit", busy)
        list(events.write(mine, 2))
    assert told == [module.BUSY] and texts(mine) == ["What is this?"] and mine.is_waiting
    events.again(["small"], mine)
    list(events.write(mine, 2))
    assert mine.branches.here.replies["small"].record and len(mine.branches.turns) == 1


def test_an_edited_question_is_a_branch(chat: PageChat) -> None:
    chat.ask("What is this?", [IMAGE])
    first = answer(chat)
    chat.ask("And now?")
    answer(chat)
    chat.edit(chat.branches.shown[0], "What colour is it?")
    assert texts(chat) == ["What colour is it?"] and chat.is_waiting
    alone = {
        name: ChatSession(engine).chat("What colour is it?", [IMAGE], generation=SHORT)
        for name, engine in chat.engines.items()
    }
    assert answer(chat) == alone
    assert chat.branches.place == (2, 2)
    chat.go(-1)
    assert texts(chat) == ["What is this?", "And now?"]
    assert chat.branches.shown[0].replies["small"].text == first["small"]
    chat.go(-1)  # there is none before
    assert chat.branches.place == (1, 2)
    with pytest.raises(PromptError, match="type a question"):
        chat.edit(chat.branches.shown[0], " ")


def test_undo_and_its_reverse(chat: PageChat) -> None:
    chat.chosen = ["small"]
    for question in ("One?", "Two?"):
        chat.ask(question)
        answer(chat)
    assert chat.undo().text == "Two?" and texts(chat) == ["One?"]
    assert chat.branches.place == (2, 2)
    chat.go(-1)
    assert texts(chat) == ["One?", "Two?"] and chat.branches.place == (1, 1)
    chat.undo()
    chat.ask("Three?")
    answer(chat)
    assert texts(chat) == ["One?", "Three?"] and chat.branches.place == (2, 2)
    for left in (["One?"], []):
        chat.undo()
        assert texts(chat) == left
    with pytest.raises(PromptError, match="no question to undo"):
        chat.undo()


def test_what_is_kept_is_bounded(chat: PageChat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MEDIA", 2)
    chat.chosen = ["small"]
    for number in range(4):  # each begins a conversation
        chat.ask(f"{number}?", [IMAGE])
        answer(chat)
    assert [turn.text for turn in chat.branches.turns] == ["2?", "3?"]
    chat.again()  # shares the image
    answer(chat)
    assert [turn.text for turn in chat.branches.turns] == ["2?", "3?", "3?"]
    chat.ask("And this?", [OTHER], keep=True)
    answer(chat)
    with pytest.raises(PromptError, match="at most 100 questions and 2 images"):
        chat.ask("And this?", [OTHER], keep=True)
    monkeypatch.setattr(tree, "TURNS", 2)
    chat.branches.here = None
    chat.ask("Fresh?")
    assert [turn.text for turn in chat.branches.turns][-1] == "Fresh?" and len(chat.branches.turns) <= 2
    assert all(turn.origin is None or turn.origin in chat.branches.turns for turn in chat.branches.turns)


def test_edit_on_the_page(events: Events) -> None:
    class Change:
        def __init__(self, index: object, value: object) -> None:
            self.index, self.value = index, value

    mine = events.ask({"text": "a < `<b>`?", "files": [IMAGE]}, False, BOTH, None)[0]
    list(events.write(mine, 2))
    same = events.view(mine)
    for index, value in ((1.5, "x"), (9, "x"), (-1, "x"), (0, ["x"]), (None, "x")):
        assert events.edit(Change(index, value), "small", BOTH, mine) == same
    events.edit(Change([0, 1], "b &lt; `<b>`?"), "other", BOTH, mine)
    assert texts(mine) == ["b < `<b>`?"] and mine.is_waiting
    assert events.edit(Change(0, "x"), "small", BOTH, None)[0] == []


def test_numbers_of_an_answer(events: Events) -> None:
    mine = events.ask({"text": "What is this?", "files": [IMAGE]}, False, BOTH, None)[0]
    updates = list(events.write(mine, 3, template_option(events.models.first, "system", "")))
    assert updates[0][2:4] == ["", ""]  # while it is written
    record = mine.branches.here.replies["small"].record
    positions = events.models.engines["small"].positions
    shown = updates[-1][2]
    assert f"{record.written} tokens" in shown and f"({record.positions} of {positions})" in shown
    asked = [mine.branches.here.asked["small"]]
    prompt = events.models.engines["small"].prompt([asked], SHORT.replace(max_new_tokens=3))
    assert record.prompt == prompt.mask.shape[1]
    assert "first after" in shown and ("tokens/s" in shown) == (record.tokens_per_second is not None)
    assert display.figures([], "small", positions) == ""


def test_a_conversation_as_html_and_json(events: Events, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(Path(IMAGE).read_bytes())
    mine = events.ask({"text": "<script>What</script>?", "files": [IMAGE, str(gone)]}, False, BOTH, None)[0]
    list(events.write(mine, 2))
    gone.unlink()
    page = events.download("html", mine)
    assert "<script" not in page and "&lt;script&gt;What" in page and page.count('src="data:image/jpeg;base64,') == 1
    assert "gone.png" in page and str(tmp_path) not in page and "http" not in page
    for name in BOTH:
        assert f"<b>{name}</b>" in page and numbers(mine.branches.here.replies[name].record) in page
    found = json.loads(events.download("json", mine))
    assert [talk["model"] for talk in found["conversations"]] == BOTH
    talk = found["conversations"][0]
    user, reply = talk["messages"]
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["image_url", "text", "text"] and user["content"][2]["text"] == "<script>What</script>?"
    assert reply["content"] == mine.branches.here.replies["small"].text
    assert talk["answers"][0]["written"] == mine.branches.here.replies["small"].record.written
    engine = events.models.engines["small"]
    again = ChatSession.from_json(engine, json.dumps(talk))
    assert [message.role for message in again.messages] == ["user", "assistant"]
    assert again.messages[0].media[0].source.equal(mine.branches.here.asked["small"].media[0].source)


def test_a_file_that_no_model_reads(chat: PageChat, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"no video")
    with pytest.raises(DataError):
        chat.ask("What moves?", [str(video)])
    assert chat.branches.turns == [] and not chat.is_waiting
