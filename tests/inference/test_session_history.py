"""A conversation's history: numbers of answers, undo, forks, edits, and its form for other programs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image as Images

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message
from vlm.inference.conversation.record import Beside, Record
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.inference.streaming import join

GREEDY = EVALUATION.replace(max_new_tokens=8)


@pytest.fixture
def session(engine) -> ChatSession:
    return ChatSession(engine, GREEDY)


@pytest.fixture
def red(tmp_path) -> Path:
    file = tmp_path / "red.jpg"
    Images.new("RGB", (8, 8), "red").save(file, quality=90)
    return file


def test_the_last_answer_has_its_numbers(session, engine, red) -> None:
    assert session.last is None
    session.chat("What is this?", image=red)
    first = session.last
    assert first is not None
    assert first.prompt == engine.length(session.messages[:1])
    assert 1 <= first.written <= 8 and first.positions == first.prompt + first.written
    assert first.to_first is not None and 0 < first.to_first <= first.seconds
    assert first.finish in ("stop", "length")
    session.chat("And now?")
    second = session.last
    assert second is not None and second.prompt > first.positions - 1
    assert session.record(session.messages[1]) is first
    session.ask("Next?")
    assert session.last is None


def test_speed_is_that_of_the_tokens_after_the_first() -> None:
    assert Record("stop", 10, 0, 5, 2.0, 4.0).tokens_per_second == 2.0
    assert Record("stop", 10, 0, 1, 2.0, 4.0).tokens_per_second is None
    assert Record("stop", 10, 0, 0, None, 4.0).tokens_per_second is None


def test_a_stopped_answer_says_so(session) -> None:
    stream = session.stream("Go on.", max_new_tokens=60, min_length=61)
    next(stream)
    session.stop()
    list(stream)
    assert session.last is not None and session.last.finish == "cancelled" and session.last.written < 60
    stream = session.stream("Go on.", max_new_tokens=60, min_length=61)
    next(stream)
    stream.close()
    assert session.last is not None and session.last.finish == "cancelled"


def test_beam_search_has_no_numbers_but_an_answer(session) -> None:
    assert session.chat("Hello?", num_beams=2) == session.messages[-1].text
    assert session.last is None


def test_undo_takes_back_question_and_answer(session, red) -> None:
    with pytest.raises(PromptError, match="no question to take back"):
        session.undo()
    session.chat("What is this?", image=red)
    kept = list(session.messages)
    session.chat("And now?")
    assert session.undo().text == "And now?"
    assert session.messages == kept
    session.ask("Open?")
    assert session.undo().text == "Open?" and session.messages == kept
    assert len(session.undo().media) == 1 and session.messages == []


def test_a_fork_goes_its_own_way(session, engine, red) -> None:
    session.system, session.keep_turns = "Be brief.", 3
    session.chat("What is this?", image=red)
    session.chat("And now?")
    session.ask("Never answered.")
    before = list(session.messages)
    branch = session.fork(1)
    assert branch.messages == before[:2] and (branch.system, branch.keep_turns) == ("Be brief.", 3)
    assert branch.record(branch.messages[1]) is session.record(before[1])
    assert branch.chat("And now?") == before[3].text  # greedy: the same question again
    assert session.messages == before
    assert session.fork().messages == before[:4] and session.fork(0).messages == []
    with pytest.raises(PromptError, match="2 answered turns"):
        session.fork(3)


def test_an_edited_question_keeps_its_image(session, engine, red) -> None:
    session.chat("What is this?", image=red)
    session.chat("And now?")
    branch = session.edit(0, "What color is it?")
    assert branch.is_open and [m.text for m in branch.messages] == ["What color is it?"]
    assert branch.original(branch.messages[0].media[0]) == red
    answer = branch.answer()
    assert answer == engine.chat("What color is it?", image=red, generation=GREEDY)
    assert len(session.messages) == 4
    with pytest.raises(PromptError, match="has 2 questions"):
        session.edit(2, "What?")


def test_the_history_as_json_and_back(session, engine, red) -> None:
    session.system = "Be brief."
    session.chat("What is <image> this?", image=red)
    session.chat("And the square?", image=Images.new("RGB", (4, 4), "blue"))
    data = json.loads(session.to_json(model="tiny"))
    assert data["model"] == "tiny"
    system, first, answer, second, _ = data["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in first["content"]] == ["text", "image_url", "text"]
    url = first["content"][1]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) == red.read_bytes()
    assert answer == {"role": "assistant", "content": session.messages[1].text}
    png = base64.b64decode(second["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Images.open(io.BytesIO(png)).getpixel((0, 0)) == (0, 0, 255)

    again = ChatSession.from_json(engine, session.to_json(), generation=GREEDY)
    assert again.system == "Be brief." and [m.role for m in again.messages] == [m.role for m in session.messages]
    assert again.chat("And now?") == session.chat("And now?")
    assert again.to_messages() == session.to_messages()


def test_files_are_named_only_where_asked_for(session, engine, red) -> None:
    session.chat("What is this?", image=red)
    text = session.to_json("names")
    assert str(red) in text and "base64" not in text
    again = ChatSession.from_json(engine, text, files=True)
    assert again.original(again.messages[0].media[0]) == str(red)
    assert (again.messages[0].media[0].source == session.messages[0].media[0].source).all()
    with pytest.raises(PromptError, match="names a file"):
        ChatSession.from_json(engine, text)
    red.unlink()
    with pytest.raises(DataError, match=r"red\.jpg"):
        session.to_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not JSON"),
        ('{"messages": 3}', "no list of messages"),
        ('[{"role": "assistant", "content": 3}]', "not text"),
        ('[{"role": "robot", "content": "Hello"}]', "robot"),
        ('[{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]', "names a file"),
        ('[{"role": "user", "content": [{"type": "video", "video": ["data:x", "/etc/hosts"]}]}]', "names a file"),
        ('[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]', "file"),
    ],
)
def test_what_is_not_a_conversation(engine, text, said) -> None:
    with pytest.raises(PromptError, match=said):
        ChatSession.from_json(engine, text)


def test_pixels_cannot_be_written(session, red) -> None:
    pixels = session.read(Image(str(red))).source.clone()
    session.ask("What is this?", [Image(pixels)])
    with pytest.raises(DataError, match="model's input"):
        session.to_messages()


def test_async_conversation(session, engine, red) -> None:
    async def talk(session: ChatSession) -> list[str]:
        first = await session.achat("What is this?", image=red)
        second = join([piece async for piece in session.astream("And now?")])
        beams = await session.achat("And then?", num_beams=2)
        stream = session.astream("Go on.", max_new_tokens=60, min_length=61)
        shown = await anext(stream)
        await stream.aclose()
        assert session.messages[-1].text == shown and session.last.finish == "cancelled"
        with pytest.raises(PromptError, match="nothing was asked"):
            await session.achat("")
        return [first, second, beams]

    plain = ChatSession(engine, GREEDY)
    expected = [plain.chat("What is this?", image=red), plain.chat("And now?"), plain.chat("And then?", num_beams=2)]
    assert asyncio.run(talk(session)) == expected


def test_values_beside_objects_leave_with_them() -> None:
    beside: Beside[int] = Beside()
    one, other = Message("user", "Hello"), Message("user", "Hello")
    beside[one] = 1
    assert beside.get(one) == 1 and beside.get(other) is None
    del one
    assert not beside._held
