"""A folder loaded both ways, here and by transformers, on random images and prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vlm.common.types import MEDIA_TOKEN, Example, Image, Message
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.reference import Answer, Reference
from vlm.inference.architectures.source import architecture_of
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.processors.collate import VisualTokens
from vlm.processors.templates.base import IMAGE_PLACEHOLDER

NEW_TOKENS = 20
LAST = 32
"""Positions at the end of a prompt whose logits are compared."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference of logits that is rounding, by the type of the weights."""
GREEDY = Generation(do_sample=False, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS, max_length=10**6)
ASKED = (
    "What is in the image?",
    "Describe what you see in one sentence.",
    "How many objects are there, and which colours do they have?",
    "Is there any text? Read it to me.",
    "What is the difference between the left and the right half?",
    "Why is the sky blue?",
)


@dataclass
class Comparison:
    """Two sets of answers compared.

    Attributes:
        prompts: how many.
        logits: the largest difference.
        greedy: prompts with the same greedy ids.
        faults: what differs besides, each with the prompt's number.
    """

    prompts: int
    logits: float = 0.0
    greedy: int = 0
    faults: list[str] = field(default_factory=list)

    def same(self, tolerance: float) -> bool:
        """Whether everything agrees."""
        return not self.faults and self.logits <= tolerance and self.greedy == self.prompts


def prompts(count: int, seed: int, kind: Architecture) -> list[list[Message]]:
    """Random conversations with one, no or two random images of random sizes, as many as an architecture takes."""
    rng = random.Random(seed)
    result = []
    for number in range(count):
        wanted = (1, int(kind.needs_image), 1 if kind.one_image else 2)[number % 3]
        images = [Image(image(rng)) for _ in range(wanted)]
        result.append([Message("user", [*images, rng.choice(ASKED)])])
    return result


def image(rng: random.Random, sides: tuple[int, int] = (48, 480)) -> np.ndarray:
    """Random colours that change slowly, uint8 ``[h, w, 3]``, with sides between the two."""
    height, width = rng.randint(*sides), rng.randint(*sides)
    values = np.random.default_rng(rng.getrandbits(32))
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]  # type: ignore[misc]
    waves = values.uniform(1, 12, (2, 3)), values.uniform(0, 6.3, 3)
    levels = np.sin(rows[..., None] * waves[0][0] + columns[..., None] * waves[0][1] + waves[1])
    noise = values.normal(0, 8, (height, width, 3))
    return np.clip(levels * 110 + 128 + noise, 0, 255).astype(np.uint8)


def theirs(
    folder: Path,
    conversations: Sequence[Sequence[Message]],
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Answer]:
    """What transformers computes; ``texts`` are the whole prompts, for a folder without a chat template."""
    reference, kind = Reference(folder, device, dtype), architecture_of(folder)
    answers = []
    for messages, text in zip(conversations, texts, strict=True):
        inputs = reference.inputs(messages, None if reference.has_template else text)
        answers.append(reference.answer(inputs, kind.pixels(inputs), LAST, NEW_TOKENS))
    return answers


def ours(engine: Engine, conversations: Sequence[Sequence[Message]], image_token: int) -> list[Answer]:
    """What this library computes, one conversation at a time."""
    answers = []
    for messages in conversations:
        examples = engine.examples([list(messages)])
        batch = engine.batch(examples)
        with torch.inference_mode():
            logits = engine.model(batch, return_logits=True).logits
        new = engine.generate_ids([list(messages)], GREEDY, stops=())[0]
        ids = expanded(engine, examples[0], image_token)
        answers.append(Answer(ids, examples[0].media, logits[0, -LAST:].float().cpu(), new))
    return answers


def expanded(engine: Engine, example: Example, image_token: int) -> list[int]:
    """The prompt with ``image_token`` at every position of a medium."""
    model = engine.model
    left = VisualTokens.of(model.visual_tokens, model.counters()).of_media(example)
    return [i for index in example.ids for i in ([image_token] * left.pop(0) if index == MEDIA_TOKEN else [index])]


def text_of(engine: Engine, messages: Sequence[Message], image_token: str) -> str:
    """The whole prompt as text, each medium as ``image_token``."""
    return engine.text(messages).replace(IMAGE_PLACEHOLDER, image_token)


def compare(one: Sequence[Answer], other: Sequence[Answer], pixel_tolerance: float = 1e-5) -> Comparison:
    """Differences between the answers of two models to the same prompts."""
    result = Comparison(len(one))
    for number, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        result.faults += [f"prompt {number}: {fault}" for fault in (*_ids(a, b), *_pixels(a, b, pixel_tolerance))]
        rows = min(len(a.logits), len(b.logits))
        if a.logits.shape[1] == b.logits.shape[1]:
            worst = float((a.logits[-rows:] - b.logits[-rows:]).abs().max())
            if worst > result.logits or math.isnan(worst):  # NaN is never overwritten
                result.logits = worst
        else:
            result.faults.append(f"prompt {number}: {a.logits.shape[1]} and {b.logits.shape[1]} logits per position")
        result.greedy += a.new == b.new
    return result


def _ids(a: Answer, b: Answer) -> list[str]:
    if a.ids == b.ids:
        return []
    pairs = zip(a.ids, b.ids, strict=False)
    place = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a.ids), len(b.ids)))
    return [
        f"ids differ from position {place} on: {a.ids[place : place + 8]} ({len(a.ids)} in all) "
        f"and {b.ids[place : place + 8]} ({len(b.ids)} in all)"
    ]


def _pixels(a: Answer, b: Answer, tolerance: float) -> list[str]:
    shapes = [[tuple(tensor.shape) for tensor in answer.pixels] for answer in (a, b)]
    if shapes[0] != shapes[1]:
        return [f"pixels of shapes {shapes[0]} and {shapes[1]}"]
    worst = max((float((x.cpu() - y).abs().max()) for x, y in zip(a.pixels, b.pixels, strict=True)), default=0.0)
    return [f"pixels differ by {worst:.2g}"] if worst > tolerance else []


def verify(
    folder: Path,
    count: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    busy: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Load ``folder`` here and by transformers, one after the other, and compare.

    Raises UserError: the folder cannot be loaded, here or there.
    """
    kind: Architecture = architecture_of(folder)
    conversations = prompts(count, seed, kind)
    busy("loading it here")
    engine = Engine.load(folder, device, dtype)
    token = image_token_of(engine)
    words = engine.processor.tokenizer.piece(token)
    texts = [kind.prompt_text(text_of(engine, messages, words), words) for messages in conversations]
    mine = ours(engine, conversations, token)
    del engine
    busy("loading it with transformers")
    return compare(mine, theirs(folder, conversations, texts, device, dtype))


def image_token_of(engine: Engine) -> int:
    """The id that transformers writes at the positions of an image."""
    found = engine.processor.media_id
    return engine.processor.tokenizer.pad if found is None else found
