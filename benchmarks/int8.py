"""int8 weights on a CPU against float32: how far the next token's probabilities move, and how fast answers are written.

    python -m benchmarks.int8                                      # random weights of the CPU middle size
    python -m benchmarks.int8 --model output/quickstart/stage2 --model smollm2.yaml   # and trained ones

Quality: the float model answers greedily, and both models then read the same answers. KL divergence is that of the int8
model's next-token distribution from the float one's, in nats, at every token of an answer. A model with a vision
encoder is asked about drawn scenes, another one the questions below. Random weights say little about quality: their
distributions are nearly flat. Speed: greedy generation of the middle size by ``generate`` of transformers in float32,
and here with float32, bfloat16 and int8 weights of the same values; the images are encoded each time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vlm
from benchmarks.common import Sizes, alternate, baseline, make_rows, median, write
from benchmarks.generate import our_side, their_side
from benchmarks.ours import composition, copy_weights, make_batch
from vlm.datasets.synthetic.language import ask
from vlm.datasets.synthetic.render import render
from vlm.datasets.synthetic.scene import scene_at
from vlm.models.quantized.llm import quantize_llm

QUESTIONS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about the sea.",
    "List three fruits that are red.",
    "Translate 'good morning, how are you?' into French.",
    "If a train travels 60 miles in 1.5 hours, how fast does it go?",
    "Summarise the story of Cinderella.",
    "Write a Python function that returns the sum of a list.",
    "Who wrote Hamlet, and when?",
    "Give me advice for a job interview.",
)
TOKENS = 48
"""Longest answer that is compared."""
SCENES = 40
"""Drawn scenes that a model with a vision encoder is asked about."""


def agreement(found: Tensor, expected: Tensor) -> dict[str, float]:
    """How ``found [t, vocab]``, logits, differ from ``expected`` at the same tokens."""
    log_p, log_q = (logits.double().log_softmax(-1) for logits in (expected, found))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return {
        "tokens": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
        "kl_max": float(kl.max()),
        "top1_agreement": float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
        "float_perplexity_of_its_answers": float((-log_p.amax(-1)).mean().exp()),
    }


def prompts(model: Any) -> Iterator[list[vlm.Message]]:
    """The conversations that ``model`` is asked about."""
    if model.model.vision is None:
        yield from ([vlm.Message("user", [vlm.Text(text)])] for text in QUESTIONS)
        return
    for number in range(SCENES):
        scene = scene_at(5, number)
        question = ask(scene, "color", np.random.default_rng(number))
        if question is not None:
            yield [vlm.Message("user", [vlm.Image(render(scene)), vlm.Text(question.text)])]


def answer_logits(model: Any, conversation: list[vlm.Message], answer: list[int]) -> Tensor:
    """Logits ``[tokens, vocab]`` that predict each token of ``answer``."""
    (example,) = model.examples([conversation])
    whole = dataclasses.replace(example, ids=[*example.ids, *answer], labels=[*example.labels, *answer], id=example.id)
    with torch.inference_mode():
        logits = model.model(model.batch([whole]), return_logits=True).logits[0]
    return logits[-len(answer) - 1 : -1].float()


def quality(source: str) -> dict[str, Any]:
    """:func:`agreement` of a model that can be loaded, in float32 and in int8."""
    floats, ints = (
        vlm.load(source, device="cpu", dtype=torch.float32, options=[f"model.llm.quantize={mode}"])
        for mode in ("null", "int8")
    )
    pairs, same, count = [], 0, 0
    for conversation in prompts(floats):
        options = floats.options(do_sample=False, repetition_penalty=1.0, max_new_tokens=TOKENS)
        (answer,) = floats.generate_ids([conversation], options)
        same += answer == ints.generate_ids([conversation], options)[0]
        count += 1
        pairs.append([answer_logits(m, conversation, answer) for m in (ints, floats)])
    found, expected = (torch.cat(side) for side in zip(*pairs, strict=True))
    return {**agreement(found, expected), "equal_answers": f"{same} of {count}"}


def random_weights(sizes: Sizes) -> dict[str, Any]:
    """:func:`agreement` at every token of random prompts, on random weights."""
    torch.manual_seed(0)
    model = composition(sizes)
    rows = make_rows(8, sizes.vocab, seed=0)
    batch = make_batch(rows, torch.randn(8, 3, sizes.image_size, sizes.image_size))
    with torch.inference_mode():
        inputs = model.prepare(batch)
        real = inputs.segments > 0
        sides = [model.llm.head(model.llm(inputs, real)).float()]
        quantize_llm(model.llm, "int8", torch.device("cpu"))
        sides.append(model.llm.head(model.llm(inputs, real)).float())
    return agreement(sides[1], sides[0])


def speed(sizes: Sizes, batch: int, new: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of one batch, sides in turns."""
    torch.manual_seed(0)
    theirs, ours = baseline(sizes), composition(sizes)
    copy_weights(theirs, ours)
    ours.eval()
    rows = make_rows(batch, sizes.vocab, seed=0)
    pixels = torch.randn(batch, 3, sizes.image_size, sizes.image_size)
    ints, half = copy.deepcopy(ours), copy.deepcopy(ours)
    quantize_llm(ints.llm, "int8", torch.device("cpu"))
    quantize_llm(half.llm, "bf16", torch.device("cpu"))
    sides = {"transformers fp32": their_side(theirs, rows, pixels, sizes, new)}
    for name, model in {"fp32": ours, "bf16": half, "int8": ints}.items():
        sides[name] = our_side(model, rows, pixels, new)
    medians = {name: median(values) for name, values in alternate(sides, rounds).items()}
    return {
        "batch": batch,
        "new_tokens": new,
        "tokens_per_second": {name: round(batch * new / value, 1) for name, value in medians.items()},
        "against_transformers": {
            name: round(medians["transformers fp32"] / value, 2) for name, value in medians.items()
        },
    }


def main() -> None:
    """Parse, measure, write ``benchmarks/results/int8_cpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="run folder or YAML file to compare; repeat it")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16], help="none: no speed")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    kl = {"random weights, CPU middle size": random_weights(Sizes())}
    for source in a.model:
        kl[Path(source).stem if source.endswith(".yaml") else "/".join(Path(source).parts[-2:])] = quality(source)
        print(source, kl)
    times = [speed(Sizes(), batch, a.new, a.rounds) for batch in a.batches]
    result = {
        "what": "int8 weights of the LLM, head included, on a CPU",
        "kl_and_top1_against_float32": kl,
        "rounds": a.rounds,
        "generation": times,
    }
    print(result)
    print("written:", write("int8_cpu", result))


if __name__ == "__main__":
    main()
