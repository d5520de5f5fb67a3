"""Many clients on one engine: against one at a time, questions about an image seen before, and memory.

    python -m benchmarks.serving                          # CPU middle size, random weights
    python -m benchmarks.serving --run output/quickstart/stage2

*Load*: clients with Poisson arrivals, more than can be answered, ask for answers of 8 to 128 tokens about an image
each. Every fourth of these requests one at a time is the baseline, by the same engine with ``max_batch: 1`` and no
caches. *Seen before*: time to the first token of a second question about an image, and of the next turn of a
conversation of 1,000 positions, against the first. *Memory*: resident memory while requests go on, with caches of 32
MiB.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import SEVEN_B, SMALL, Sizes, TextRow, make_rows, median, resident, write
from benchmarks.engine import engine_of, question
from benchmarks.ours import composition
from vlm.common.types import Example
from vlm.config.run import Serving
from vlm.inference.batching.answer import Answer
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation

SIZES = {"small": SMALL, "cpu": Sizes(), "7b": SEVEN_B}
GREEDY = Generation(do_sample=False, repetition_penalty=1.0, stop=(), cleanup="raw", min_length=2**20, max_length=2**20)
"""Greedy, and no answer ends before its length: end tokens are forbidden, and no text ends it."""


def requests_of(count: int, engine: Engine, s: Sizes, seed: int = 0) -> list[tuple[Example, int]]:
    """Questions of ids and random pixels, with the number of tokens to write."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vocab = min(s.vocab, engine.model.llm.vocab_size)
    size = engine.model.vision.image_size if engine.model.vision is not None else s.image_size
    rows = make_rows(count, vocab, seed)
    return [(question(row, torch.randn(1, 3, size, size)), rng.randint(8, 128)) for row in rows]


def one_at_a_time(engine: Engine, requests: Sequence[tuple[Example, int]]) -> dict[str, float]:
    """Each request after the one before it."""
    start, used, tokens = time.perf_counter(), time.process_time(), 0
    for asked, new in requests:
        answer = engine.submit(asked, GREEDY.replace(max_new_tokens=new))
        answer.result()
        tokens += len(answer.ids)
    seconds = time.perf_counter() - start
    return {
        "requests": len(requests), "seconds": seconds, "requests_per_second": len(requests) / seconds,
        "tokens_per_second": tokens / seconds, "cpu_ms_per_token": 1000 * (time.process_time() - used) / tokens,
    }  # fmt: skip


def under_load(
    engine: Engine, requests: Sequence[tuple[Example, int]], clients: int, rate: float, seed: int = 1
) -> dict[str, Any]:
    """The requests at Poisson arrivals of so many a second, each by a client that is free."""
    rng = random.Random(seed)
    arrivals, at = [], 0.0
    for _ in requests:
        at += rng.expovariate(rate)
        arrivals.append(at)
    answers: list[Answer | None] = [None] * len(requests)
    errors: list[str] = []
    todo, lock, start = iter(range(len(requests))), threading.Lock(), time.monotonic()

    def client() -> None:
        while True:
            with lock:
                index = next(todo, None)
            if index is None:
                return
            time.sleep(max(0.0, start + arrivals[index] - time.monotonic()))
            asked, new = requests[index]
            try:
                answers[index] = answer = engine.submit(asked, GREEDY.replace(max_new_tokens=new))
                for _ in answer:
                    pass
            except Exception as error:  # noqa: BLE001 - counted
                errors.append(repr(error))

    used = time.process_time()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = time.process_time() - used
    done = [a for a in answers if a is not None and a.finish is not None]
    tokens = sum(len(a.ids) for a in done)
    seconds = max(a.times.ended or 0 for a in done) - start
    first = sorted((a.times.first or 0) - a.times.asked for a in done)
    each = sorted(((a.times.ended or 0) - (a.times.first or 0)) / (len(a.ids) - 1) for a in done if len(a.ids) > 1)
    return {
        "clients": clients, "arrivals_per_second": round(rate, 3), "errors": len(errors), "requests": len(done),
        "seconds": seconds, "requests_per_second": len(done) / seconds, "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * used / tokens,
        "first_token_ms": {"p50": _ms(first, 0.5), "p95": _ms(first, 0.95)},
        "per_token_ms": {"p50": _ms(each, 0.5), "p95": _ms(each, 0.95)},
    }  # fmt: skip


def _ms(values: Sequence[float], share: float) -> float:
    return round(1000 * values[min(len(values) - 1, int(share * len(values)))], 1)


def first_token(engine: Engine, asked: Example) -> float:
    """Seconds from the question to the first token."""
    answer = engine.submit(asked, GREEDY.replace(max_new_tokens=1))
    answer.result()
    return (answer.times.first or 0) - answer.times.asked


def seen_before(make: Callable[..., Engine], s: Sizes, rounds: int) -> dict[str, Any]:
    """First question and second question about an image; first and next turn of 1,000 positions. Medians."""
    engine = make()
    rng = random.Random(0)
    size = engine.model.vision.image_size

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, 200) for _ in range(count)]

    length = min(900, (engine.positions or 2048) // 2 - 100)
    times: dict[str, list[float]] = {"first": [], "second": [], "long": [], "next_turn": []}
    for _ in range(rounds):
        engine.forget()
        image, before = torch.randn(1, 3, size, size), [1, *ids(20)]
        for name in ("first", "second"):
            times[name].append(first_token(engine, question(TextRow(before, ids(12), []), image)))
        turn = [1, *ids(length)]
        image = torch.randn(1, 3, size, size)
        times["long"].append(first_token(engine, question(TextRow([1], turn, []), image)))
        times["next_turn"].append(first_token(engine, question(TextRow([1], turn + ids(60), []), image)))
    medians = {name: median(values) for name, values in times.items()}
    return {
        "first_token_ms": {name: round(1000 * value, 2) for name, value in medians.items()},
        "second_question_ratio": round(medians["second"] / medians["first"], 3),
        "next_turn_ratio": round(medians["next_turn"] / medians["long"], 3),
        "positions_of_the_first_turn": length + engine.model.visual_tokens() + 2,
        "rounds": rounds,
    }


def memory(engine: Engine, s: Sizes, count: int, clients: int = 8) -> list[dict[str, float]]:
    """Resident memory after each tenth of ``count`` requests, each about an image of its own."""
    readings = []
    for tenth in range(10):
        requests = [(asked, 8) for asked, _ in requests_of(count // 10, engine, s, seed=100 + tenth)]
        under_load(engine, requests, clients, rate=1e6)
        readings.append({"requests": (tenth + 1) * (count // 10), "mib": round(resident(), 1)})
    return readings


def main() -> None:
    """Parse, measure, write ``benchmarks/results/serving_<size>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--run", type=Path, help="a run folder in place of random weights")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--alone", type=int, default=4, help="one of so many requests is asked one at a time")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, default=2000, help="requests of the memory test; 0: none")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    s = SIZES[a.size]
    torch.manual_seed(0)
    source = Engine.load(a.run, a.device) if a.run else None
    model = source.model if source else composition(s, "bf16" if a.size == "7b" else "fp32").to(a.device)

    def make(**serving: Any) -> Engine:
        if source is None:
            return engine_of(model, a.device, **serving)
        return Engine(model, source.processor, config=source.config, device=a.device, serving=Serving(**serving))

    plain = make(max_batch=1, prefix_mib=0, feature_mib=0)
    requests = requests_of(a.requests, plain, s)
    one_at_a_time(plain, requests[:2])
    alone = one_at_a_time(plain, requests[:: a.alone])
    together = under_load(make(max_batch=a.clients), requests, a.clients, rate=8 * alone["requests_per_second"])
    light = under_load(make(max_batch=a.clients), requests[::2], a.clients, rate=0.5 * together["requests_per_second"])
    result = {
        "what": "clients with Poisson arrivals, answers of 8 to 128 tokens, an image each",
        "size": str(a.run) if a.run else a.size, "device": a.device, "requests": a.requests,
        "one_at_a_time": alone, "together": together, "at_half_load": light,
        "ratio": {
            **{key: round(together[key] / alone[key], 2) for key in ("requests_per_second", "tokens_per_second")},
            "cpu_per_token": round(alone["cpu_ms_per_token"] / together["cpu_ms_per_token"], 2),
        },
        "seen_before": seen_before(make, s, a.rounds),
        "memory": memory(make(prefix_mib=32, feature_mib=32), s, a.memory) if a.memory else [],
    }  # fmt: skip
    print(result)
    print("written:", write("serving_" + (a.run.parent.name if a.run else a.size), result))


if __name__ == "__main__":
    main()
