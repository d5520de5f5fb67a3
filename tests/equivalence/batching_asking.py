"""Asking an engine in every way there is, and what the answers have to equal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.decoding import decode
from vlm.inference.engine import Engine
from vlm.inference.generation import EVALUATION, Generation
from vlm.inference.incremental import decoder_of
from vlm.inference.streaming import join
from vlm.processors.messages import Conversation

GREEDY = EVALUATION.replace(max_new_tokens=12, min_length=9, stop=(), cleanup="raw")
"""Answers of at least 8 tokens, as written."""
PATIENCE = 60.0
"""Seconds after which something hangs."""


def alone(engine: Engine, conversation: Conversation, generation: Generation = GREEDY) -> list[int]:
    """Ids of the answer by the plain loop: one row, nothing else running, nothing remembered."""
    prompt = engine.prompt([conversation], generation)
    ends = engine.limits(generation, prompt)
    return decode(engine.model.llm.model, prompt, *ends, engine.model.compute_dtype)[0]


def lead(engine: Engine, conversation: Conversation, ids: Sequence[int]) -> list[float]:
    """How far, at each step of an answer, the largest logit is above the second."""
    prompt = engine.prompt([conversation], GREEDY)
    decoder = decoder_of(engine.model.llm.model, prompt, True)
    leads = []
    with torch.inference_mode():
        for token in (None, *ids[:-1]):
            logits = decoder.read(None if token is None else torch.tensor([token]))
            first, second = logits[0].topk(2).values.tolist()
            leads.append(first - second)
    return leads


def check_ids(
    engine: Engine, conversations: Sequence[Conversation], got: Sequence[Sequence[int]], want: Sequence[Sequence[int]]
) -> None:
    """Raises AssertionError: ids differ; it says where, and how near a tie that step is."""
    assert len(got) == len(want)
    for number, (conversation, ours, theirs) in enumerate(zip(conversations, got, want, strict=True)):
        if list(ours) == list(theirs):
            continue
        step = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        leads = lead(engine, conversation, theirs)
        near = f"{leads[step]:.2e}" if step < len(leads) else "past the end"
        raise AssertionError(
            f"answer {number} differs at token {step} (lead of the likeliest token there: {near})\n"
            f"got:  {list(ours)}\nwant: {list(theirs)}"
        )


def submitted(
    engine: Engine,
    conversations: Sequence[Conversation],
    options: Sequence[Generation],
    asking: Asking | None = None,
) -> list[Answer]:
    """Answers of questions that were all asked at once, when they are over."""
    answers = [engine.submit(c, g, asking) for c, g in zip(conversations, options, strict=True)]
    for answer in answers:
        answer.result()
    return answers


def in_threads(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returns, run in a thread of its own. Raises the first error; fails if one hangs."""
    found: dict[int, Any] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            found[number] = works[number]()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(works))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    assert len(found) == len(works), f"{len(works) - len(found)} of {len(works)} threads hang"
    return [found[n] for n in range(len(works))]


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` returns; fails if it hangs."""
    return in_threads([work])[0]


async def told(answer: Answer) -> str:
    """The text of an answer by ``async for``."""
    return join([piece async for piece in answer])


def in_tasks(engine: Engine, conversations: Sequence[Conversation], generation: Generation) -> list[str]:
    """The texts of answers that tasks of one event loop wait for."""

    async def every() -> list[str]:
        answers = [engine.submit(c, generation) for c in conversations]
        return await asyncio.wait_for(asyncio.gather(*(told(a) for a in answers)), PATIENCE)

    return asyncio.run(every())
