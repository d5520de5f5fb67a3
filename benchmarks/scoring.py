"""How long scoring takes on one core, from texts to numbers: captions, and answers to questions."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import write
from vlm.tasks.scoring.captions import Compared
from vlm.tasks.scoring.meteor import meteor_rows
from vlm.tasks.scoring.ptb import tokenize
from vlm.tasks.scoring.vqa import accuracies

SUBJECTS = (
    "a man|a woman|two people|a group of skiers|a brown dog|two cats|a herd of zebras|a red double-decker bus|an "
    "old-fashioned train|a yellow fire hydrant|a bowl of fruit|a slice of pizza|the boy's skateboard|a tennis player|a "
    '"stop" sign|kids|a 12-year-old girl|Mr. Smith|the U.S. flag|an empty bench|a vase with flowers|a donut'
)
VERBS = "is standing|sits|riding|is holding|walks|running|is parked|eating|looks|playing|jumping|isn't moving|poses"
PLACES = (
    "on a beach|in front of a building|near the ocean|in a field of green grass|under an umbrella|with a frisbee|"
    "down the street|at the station|in the snow|beside a tree|on a wooden table|a piece of cake|over a fence|in the "
    "water|on the couch|at 10:30 p.m.|by the window|in the background"
)

ANSWERS = (
    "yes|no|2|two|a dog|the dog|red|red and white|on the table|it's blue|surfboard.|10,000|dont know|{}|a {}|{} {}"
)


def answers(questions: int, people: int, rng: random.Random) -> tuple[list[str], list[list[str]]]:
    """An answer to each question, and those of people, who mostly agree; words are drawn from a few thousand."""
    forms, words = ANSWERS.split("|"), [f"thing{k}" for k in range(4000)]

    def one() -> str:
        return rng.choice(forms).format(rng.choice(words), rng.choice(words))

    several = [[one(), one(), one()] for _ in range(questions)]
    return [rng.choice(own) for own in several], [[rng.choice(own) for _ in range(people)] for own in several]


def captions(images: int, references: int, rng: random.Random) -> tuple[list[str], list[list[str]]]:
    """A caption for each image, and several that people might have written."""
    parts = [text.split("|") for text in (SUBJECTS, VERBS, PLACES, PLACES)]

    def one() -> str:
        text = " ".join(rng.choice(part) for part in parts)
        return text[0].upper() + text[1:] + rng.choice([".", ".", "", " ."])

    return [one() for _ in range(images)], [[one() for _ in range(references)] for _ in range(images)]


def score(candidates: list[str], references: list[list[str]], metric: str) -> float:
    """One number of all captions, from their texts."""
    following = iter(tokenize([text for own in references for text in own]))
    tokens = [[next(following) for _ in own] for own in references]
    if metric == "meteor":
        return float(meteor_rows(tokenize(candidates), tokens)[:, 13].sum())
    compared = Compared(tokenize(candidates), tokens)
    return float({"cider": compared.cider, "bleu": compared.bleu, "rouge": compared.rouge}[metric]().mean())


def seconds(run: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Seconds of each round, on the clock and of the process; the first one finds no text in the caches."""
    clock, process = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        run()
        clock.append(round(time.perf_counter() - start, 2))
        process.append(round(time.process_time() - used, 2))
    return {"seconds": clock, "cpu_seconds": process, "first_cpu_seconds": process[0]}


def main() -> None:
    """Time scoring and write ``results/scoring.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--answers", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rng = random.Random(0)
    candidates, references = captions(asked.images, 5, rng)
    result: dict[str, Any] = {"captions": {"images": asked.images, "references": 5}}
    for metric in ("cider", "bleu", "rouge"):
        result[metric] = seconds(partial(score, candidates, references, metric), asked.rounds)
    few = asked.images // 8
    result["meteor_exact_stem"] = {"images": few} | seconds(
        partial(score, candidates[:few], references[:few], "meteor"), 1
    )
    said, people = answers(asked.answers, 10, rng)
    result["vqa_accuracy"] = {"answers": asked.answers, "references": 10} | seconds(
        partial(accuracies, said, people), asked.rounds
    )
    write("scoring", result)


if __name__ == "__main__":
    main()
