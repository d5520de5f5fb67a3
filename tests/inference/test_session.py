"""A chat session: history, images, stop, regenerate, reset."""

from __future__ import annotations

import pytest

from vlm.common.errors import DataError, PromptError
from vlm.inference.generation import EVALUATION
from vlm.inference.session import ChatSession
from vlm.inference.streaming import join

GREEDY = EVALUATION.replace(max_new_tokens=12)


@pytest.fixture
def session(engine) -> ChatSession:
    return ChatSession(engine, GREEDY)


@pytest.fixture
def red(image):
    return image("red").source


def test_history_holds_cleaned_answers_and_feeds_the_next_turn(session, engine, red) -> None:
    session.ask("What is this?", [red])
    first = session.answer()
    session.ask("And its colour?")
    second = join(session.stream())
    assert [m.role for m in session.messages] == ["user", "assistant", "user", "assistant"]
    assert session.messages[1].text == first and session.messages[3].text == second
    assert engine.generate([session.messages[:3]], GREEDY) == [second]
    assert engine.generate([session.messages[2:3]], GREEDY) != [second]  # the history matters


def test_images_may_come_as_parts_or_paths(session, image, tmp_path) -> None:
    image("red").source.save(tmp_path / "red.png")
    answers = []
    for source in (image("red"), image("red").source, tmp_path / "red.png", str(tmp_path / "red.png")):
        session.reset()
        session.ask("What is this?", [source])
        answers.append(session.answer())
    assert len(set(answers)) == 1


def test_regenerate_answers_the_same_question_again(session, red) -> None:
    session.ask("What is this?", [red])
    first = session.answer()
    session.regenerate()
    assert session.is_open
    assert session.answer() == first
    assert len(session.messages) == 2


def test_stopped_answer_is_kept_as_far_as_it_was_written(session, red) -> None:
    session.ask("Go on.", [red])
    stream = session.stream(GREEDY.replace(max_new_tokens=60, min_length=61))
    shown = next(stream) + next(stream)
    session.stop()
    shown += "".join(stream)
    assert session.messages[-1].role == "assistant"
    assert session.messages[-1].text == shown


def test_abandoned_stream_keeps_the_partial_answer(session, red) -> None:
    session.ask("Go on.", [red])
    stream = session.stream()
    shown = next(stream)
    stream.close()
    assert session.messages[-1].text == shown
    session.ask("Next?")
    assert isinstance(session.answer(), str)


def test_reset_forgets_images_and_text(session, red) -> None:
    session.ask("What is this?", [red])
    session.answer()
    session.reset()
    assert session.messages == []
    session.ask("No image?")
    assert session.messages[0].media == ()
    assert session.answer() == session.messages[-1].text


def test_bad_image_and_missing_question_never_enter_the_history(session, tmp_path) -> None:
    file = tmp_path / "note.png"
    file.write_text("not an image")
    with pytest.raises(DataError, match=r"note\.png"):
        session.ask("What is this?", [str(file)])
    with pytest.raises(PromptError, match="nothing was asked"):
        session.ask("  ")
    with pytest.raises(PromptError, match="no open question"):
        session.answer()
    with pytest.raises(PromptError, match="no answer to regenerate"):
        session.regenerate()
    assert session.messages == []


def test_question_too_long_can_be_taken_back(session) -> None:
    session.ask("word " * 200)
    with pytest.raises(PromptError, match="positions"):
        session.answer()
    session.take_back()
    assert session.messages == []
