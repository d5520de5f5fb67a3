"""A record compared with what this installation computes, and which package could explain a difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vlm.checkpoint.provenance import other_numbers
from vlm.common.errors import WeightsError
from vlm.inference.engine import Engine
from vlm.runners.verify.record import GREEDY, Record, fill_random, machine, measure, question, versions

TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 2e-2, "bfloat16": 0.15}
"""Largest difference of logits, as a share of their spread, that counts as rounding; by the least exact type of the
parameters of either side. float32 on one machine and the same versions differs by about 1e-6."""
PIXEL_TOLERANCE = 1e-3
"""The same for the pixels that the vision encoder sees."""
CAUSES = {
    "prompt": ("tokenizers", "sentencepiece", "transformers", "vlm"),
    "pixels": ("pillow", "torchvision", "numpy", "opencv-python-headless", "timm", "vlm"),
    "logits": ("torch", "transformers", "timm", "peft", "vlm"),
}
"""What each stage of a computation depends on, first stage first."""

NAMES = {"prompt": "tokenisation", "pixels": "image preprocessing", "logits": "the model"}


@dataclass
class Verification:
    """What :func:`verify` found.

    Attributes:
        prompts: cases whose token ids are the same.
        pixels: the largest difference of pixels.
        logits: the largest difference of logits, as a share of their spread.
        tolerance: how much of that counts as rounding.
        greedy: cases whose greedy ids are the same, or part where two ids are as good within the tolerance.
        cases: how many.
        weights: part -> how its numbers differ.
        changed: package (or fact about the machine) -> recorded and present version.
    """

    tolerance: float
    cases: int = 0
    prompts: int = 0
    pixels: float = 0.0
    logits: float = 0.0
    greedy: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def stage(self) -> str | None:
        """The first stage that differs; None: none does."""
        if self.prompts < self.cases:
            return "prompt"
        if self.pixels > PIXEL_TOLERANCE:
            return "pixels"
        return "logits" if self.logits > self.tolerance or self.greedy < self.cases else None

    @property
    def same(self) -> bool:
        """Whether this installation still computes what was recorded."""
        return self.stage is None and not self.weights

    def lines(self) -> Iterator[str]:
        """The findings as text."""
        for part, text in self.weights.items():
            yield f"weights of {part}: {text}"
        yield f"token ids of the prompts: {self.prompts} of {self.cases} are equal"
        yield f"pixels: largest difference {self.pixels:.2g} (allowed {PIXEL_TOLERANCE:g})"
        yield f"logits: largest difference {self.logits:.2g} of their spread (allowed {self.tolerance:g})"
        yield f"greedy ids: {self.greedy} of {self.cases} answers are equal"
        for name, (before, now) in self.changed.items():
            yield f"  {name}: {before} when it was recorded, {now} here"
        if not self.changed:
            yield "  the same versions and machine as when it was recorded"

    def cause(self) -> str:
        """What explains the difference, in one sentence."""
        if self.weights:
            return f"the weights of {', '.join(self.weights)} are others"
        likely = [name for name in CAUSES[self.stage or "logits"] if name in self.changed]
        likely = likely or list(self.changed)
        stage = {"prompt": "tokenisation", "pixels": "image preprocessing", "logits": "the model"}[
            self.stage or "logits"
        ]
        if not likely:
            return f"{stage} differs though no version does: was a file or an option changed?"
        told = ", ".join(f"{name} ({self.changed[name][0]} -> {self.changed[name][1]})" for name in likely)
        return f"{stage} differs first; what changed there: {told}"


def verify(engine: Engine, record: Record, file: Path) -> Verification:
    """Ask the recorded questions again.

    Args:
        engine: the model.
        record: what it computed when it was recorded.
        file: its name, for messages.

    Raises:
        WeightsError: the record is damaged, or of another model.
    """
    if record["random"]:
        fill_random(engine)
    found = Verification(0.0)
    try:
        types = {str(p.dtype).removeprefix("torch.") for p in engine.model.parameters()} | set(record["dtypes"])
        found.tolerance = max(TOLERANCE.get(name, 0.0) for name in types)
        names = {name for name, _ in engine.model.named_parameters()}
        found.weights = other_numbers(record["weights"], engine.model, names, str(file))
        for case in record["cases"]:
            _verify_case(engine, case, found)
        now = versions() | machine(engine.device)
        before = {**record["versions"], **record["machine"]}
        found.changed = {
            name: (str(before.get(name, "none")), str(now.get(name, "none")))
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{file}: damaged, or of another model ({type(error).__name__}: {error})", fix="make it again: --record"
        ) from error
    return found


def _verify_case(engine: Engine, case: Record, found: Verification) -> None:
    text, colours, ids = case["text"], case["colours"], [int(i) for i in case["ids"]]
    now = measure(engine, text, colours, ids)
    found.cases += 1
    found.prompts += now["prompt"] == case["prompt"]
    shapes = now["pixels"]["shape"] == case["pixels"]["shape"]
    pixels = _largest(now["pixels"]["values"], case["pixels"]["values"]) if shapes else float("inf")
    spread = max(float(case["spread"]), 1e-12)
    found.pixels = max(found.pixels, pixels)
    found.logits = max(found.logits, _largest(now["logits"], case["logits"]) / spread)
    (written,) = engine.generate_ids([question(text, colours)], GREEDY)
    parts = [k for k, (a, b) in enumerate(zip(written, ids)) if a != b] or ([] if written == ids else [len(ids) - 1])
    found.greedy += not parts or float(case["gaps"][parts[0]]) <= 2 * found.tolerance * spread


def _largest(now: list[float], before: list[float]) -> float:
    first, second = torch.tensor(now), torch.tensor(before)
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max()) if first.numel() else 0.0
