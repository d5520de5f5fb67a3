"""Which thread computes: encoding between steps, images of several questions together, and readers that are told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from vlm.common.types import Features
from vlm.inference.batching.answer import Answer
from vlm.inference.batching.turns import Media, Turns
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION
from vlm.inference.streaming import StopWatch, TextStream, join
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import tiny_engine

from .conftest import LLM, SIZES

GREEDY = EVALUATION.replace(max_new_tokens=24, min_length=25)


class Encoder:
    """Doubles the means of images; its first call waits until it may go on. A negative image is an error."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def encode(self, pixels: torch.Tensor) -> Features:
        self.sizes.append(len(pixels))
        self.began.set()
        assert self.go.wait(5)
        if bool((pixels < 0).any()):
            raise ValueError("negative")
        return Features(2 * pixels.mean((2, 3, 4))[..., None, None])


def test_media_that_wait_together_are_encoded_together() -> None:
    """Each once, however many ask about it; whose fault an error is, is found out."""
    encoder: Any = Encoder()
    turns = Turns(encoder)
    turns.in_background = lambda: None  # type: ignore[method-assign]  # there are no steps to take
    turns._left = lambda: None  # type: ignore[method-assign]
    turns._seconds = 1e-4

    def ask(value: float) -> float:
        return float(turns.encode(torch.full((1, 1, 3, 4, 4), value)).tokens)

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(ask, 1.0)
        assert encoder.began.wait(5)
        others = [pool.submit(ask, value) for value in (2.0, 3.0, 2.0)]
        bad = pool.submit(ask, -1.0)
        end = time.monotonic() + 5
        while len(turns._media) < 4 and time.monotonic() < end:
            time.sleep(0.001)
        encoder.go.set()
        assert [first.result(5), *(other.result(5) for other in others)] == [2.0, 4.0, 6.0, 4.0]
        with pytest.raises(ValueError, match="negative"):
            bad.result(5)
    assert encoder.sizes == [1, 3, 1, 1, 1, 1]  # the second call failed: each of the four alone


@pytest.mark.parametrize(("held_up", "seconds", "together"), [(9, 0.016, 3), (9, 9.0, 2), (2, 0.02, 6)])
def test_media_take_no_longer_than_a_pause_between_steps(held_up: int, seconds: float, together: int) -> None:
    """Unless more wait for their media than for the next step; two are encoded together in any case."""
    encoder: Any = Encoder()
    encoder.go.set()
    turns = Turns(encoder)
    turns._seconds = seconds
    turns._held_up = lambda: held_up  # type: ignore[method-assign]
    turns._media.extend(Media(torch.full((1, 1, 3, 4, 4), float(n)), ()) for n in range(6))
    turns._encode()
    assert encoder.sizes == [together] and len(turns._media) == 6 - together
    assert turns._seconds < seconds  # measured


def test_threads_hand_the_steps_to_one_in_the_background() -> None:
    """Their answers are those of one thread, and it ends with the last of them."""
    engine = tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES)
    asked = [f"Question {n}?" for n in range(6)]
    want = [engine.chat(question, generation=GREEDY) for question in asked]
    names: set[str] = set()
    step = engine.scheduler._step

    def noted() -> None:
        names.add(threading.current_thread().name)
        step()

    engine.scheduler._step = noted  # type: ignore[method-assign]
    assert engine.chat(asked[0], generation=GREEDY) == want[0]
    assert names == {threading.current_thread().name}  # no thread is started for one
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda q: join(engine.stream(q, GREEDY)), asked)) == want
    assert "vlm answers" in names
    end = time.monotonic() + 5
    while engine.scheduler._background is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert engine.scheduler._background is None


def test_readers_are_told_after_a_pause(engine: Engine) -> None:
    ids = engine.processor.tokenizer.encode("a red boat on the river")
    answer = Answer(engine.processor.tokenizer, str, list)
    told: list[int] = []
    answer._listeners.append(lambda: told.append(len(answer.ids)))
    answer.pause = 60.0
    for token in ids[:-1]:
        answer.push(token)
    assert told == [1] and answer.has_news and answer.is_told
    first = answer.take()
    assert not answer.is_told and not answer.has_news
    answer.push(ids[-1])
    assert told == [1] and answer.has_news and not answer.is_told
    answer.end("length")
    assert answer.is_told and join([*first, *answer.take()]) == "a red boat on the river"


@pytest.mark.parametrize("stops", [("###",), ("at o", "river"), ("b", "zzz")])
def test_the_watch_finds_a_stop_text_where_a_stream_is_cut(engine: Engine, stops: tuple[str, ...]) -> None:
    tokenizer = engine.processor.tokenizer
    for text in ("a red boat on the river ### and more", "##", "a#b##c###"):
        watch, stream = StopWatch(tokenizer, stops), TextStream(tokenizer, str, stops, stops)
        for token in tokenizer.encode(text):
            stream.push(token)
            assert watch.push(token) == stream.is_cut
            if stream.is_cut:
                break
