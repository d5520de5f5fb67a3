"""Answers written one row at a time, for language models whose rows cannot share a step."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from vlm.inference.decoding import Prompt, StopCriteria, steps

if TYPE_CHECKING:
    from vlm.inference.batching.answer import Answer, Asking
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation


def write_alone(
    engine: Engine,
    answer: Answer,
    prompt: Prompt,
    generation: Generation,
    ends: StopCriteria,
    asking: Asking,
    lock: threading.Lock,
) -> None:
    """Write one answer to its end in a thread of its own."""

    def run() -> None:
        try:
            with lock:
                reason = "length"
                for (token,) in steps(engine.model.llm.model, prompt, generation, ends, engine.model.compute_dtype):
                    if not answer.is_wanted:
                        reason = "cancelled"
                        break
                    if asking.timeout is not None and time.monotonic() > answer.times.asked + asking.timeout:
                        reason = "timeout"
                        break
                    if token is None:
                        break
                    if answer.push(token) or token in ends.eos:
                        reason = "stop"
                        break
                else:
                    if len(answer.ids) < generation.max_new_tokens:
                        reason = "stop"
            answer.end(reason)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001
            answer.fail(error)

    threading.Thread(target=run, daemon=True).start()
