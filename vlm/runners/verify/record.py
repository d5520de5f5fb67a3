"""What a model computes on a few fixed questions, as a small JSON file.

``verify.json`` in a run folder is written at the end of training; ``facts/verify_<model_type>.json`` of a system ships
with the package. The images are in the record, so that it depends on no generator of random numbers.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.checkpoint.provenance import PACKAGES, samples
from vlm.checkpoint.safe import read_json
from vlm.common import VERSION, dist
from vlm.common.errors import ConfigError, WeightsError, unknown
from vlm.common.owned import is_table, write_own
from vlm.common.paths import SYSTEMS
from vlm.common.types import IGNORE_INDEX, Example, Message
from vlm.config.shipped import archs, current_name
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.processors.messages import to_messages

FILE = "verify.json"
FORMAT = 1
GREEDY = Generation(do_sample=False, repetition_penalty=1.0, temperature=1.0, max_new_tokens=8)
QUESTIONS = ("What is in the image?", "Describe the image in one sentence.")
WITHOUT_IMAGE = ("What is the capital of France?", "Count from one to five.")
"""Asked of a model that sees no images."""
GRID, SCALE = 6, 16
"""Squares of one colour along a side of an image, and their pixels."""
COLUMNS, PIXELS = 32, 24
"""Numbers recorded of the logits of a position, and of the pixels of an image."""
RECORDED = (*PACKAGES, "torchvision", "pillow", "opencv-python-headless")
Record = dict[str, Any]


def make_record(engine: Engine, fill: bool = False) -> Record:
    """Ask the fixed questions and record the answers.

    Args:
        engine: the model.
        fill: parameters that no file fills get fixed numbers first, here and in a later comparison.

    Raises:
        UserError: the model cannot answer them.
    """
    if fill:
        fill_random(engine)
    sees = engine.model.vision is not None
    draw = np.random.default_rng(0)
    cases = []
    for text in QUESTIONS if sees else WITHOUT_IMAGE:
        colours = draw.integers(0, 256, (GRID, GRID + 1, 3), dtype=np.uint8).tolist() if sees else None
        (ids,) = engine.generate_ids([question(text, colours)], GREEDY)
        cases.append({"text": text, "colours": colours, "ids": ids} | measure(engine, text, colours, ids))
    types = sorted({str(p.dtype).removeprefix("torch.") for p in engine.model.parameters()})
    return {
        "format": FORMAT,
        "what": "answers to fixed questions, for `vlm verify`",
        "versions": versions(),
        "machine": machine(engine.device),
        "dtypes": types,
        "random": len(engine.model.random) if fill else 0,
        "weights": samples(engine.model),
        "cases": cases,
    }


def question(text: str, colours: list[Any] | None) -> list[Message]:
    """A conversation of one question, with the image of these colours."""
    image = None if colours is None else np.array(colours, np.uint8).repeat(SCALE, 0).repeat(SCALE, 1)
    messages = to_messages(text, image)
    assert not isinstance(messages, Example)
    return messages


@torch.inference_mode()
def measure(engine: Engine, text: str, colours: list[Any] | None, ids: list[int]) -> Record:
    """What the model makes of a question, and of its answer ``ids`` when it reads them.

    Returns:
        ``prompt``: token ids; ``pixels``: shape and some numbers of what the vision encoder sees; ``logits``: some
        numbers of each position that predicts an id of the answer, ``spread``: the deviation of all of them, ``gaps``:
        by how much the best id of each position leads.
    """
    (example,) = engine.examples([question(text, colours)])
    seen = example.media[0].float().flatten() if example.media else torch.zeros(0)
    places = torch.linspace(0, max(0, len(seen) - 1), min(PIXELS, len(seen))).long()
    pixels = {"shape": list(example.media[0].shape) if example.media else [], "values": rounded(seen[places])}
    labels = [IGNORE_INDEX] * len(example.ids) + ids
    answered = dataclasses.replace(example, ids=example.ids + ids, labels=labels)
    output = engine.model(engine.batch([answered]), return_logits=True)
    assert output.logits is not None and output.labels is not None
    logits = output.logits[0, :-1][output.labels[0, 1:] != IGNORE_INDEX].float().cpu()
    finite = torch.where(logits.isfinite(), logits, torch.zeros(()))
    best = logits.topk(2, dim=-1).values
    columns = torch.linspace(0, logits.shape[-1] - 1, COLUMNS).long()
    return {
        "prompt": example.ids,
        "pixels": pixels,
        "logits": [rounded(row) for row in finite[:, columns]],
        "spread": float(finite.std()),
        "gaps": rounded(best[:, 0] - best[:, 1]),
    }


def rounded(values: Tensor) -> list[float]:
    """Numbers with 6 digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def fill_random(engine: Engine) -> None:
    """Give parameters that no file fills numbers that depend on no generator: a sine of their place."""
    named = dict(engine.model.named_parameters())
    with torch.no_grad():
        for number, name in enumerate(sorted(engine.model.random)):
            places = torch.arange(named[name].numel(), dtype=torch.float64)
            values = (places * 12.9898 + number).sin() / named[name].shape[-1] ** 0.5
            named[name].copy_(values.view_as(named[name]))


def versions() -> dict[str, str]:
    """Versions of what a model's numbers can depend on."""
    found = {"python": platform.python_version(), "vlm": VERSION}
    for name in RECORDED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Device, processor and system."""
    return {
        "device": dist.device_name(device),
        "processor": platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "vector": torch.backends.cpu.get_cpu_capability(),
    }


def write_record(file: Path, record: Record) -> Path:
    """Write a record. Raises UserError: a file that is not a table of ours is there, or it cannot be written."""
    items = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items())
    return write_own(file, f"{{\n{items}\n}}\n", is_table)


def read_record(file: Path) -> Record:
    """Read a record. Raises WeightsError: no such file, or something else in it."""
    record = read_json(file)
    cases = record.get("cases")
    keys = {"text", "colours", "ids", "prompt", "pixels", "logits", "spread", "gaps"}
    whole = isinstance(cases, list) and cases and all(isinstance(c, dict) and keys <= set(c) for c in cases)
    others = {"versions": dict, "machine": dict, "weights": dict, "dtypes": list, "random": int}
    if record.get("format") != FORMAT or not whole or not all(isinstance(record.get(k), t) for k, t in others.items()):
        raise WeightsError(f"{file}: not a record of `vlm verify` (format {FORMAT})", fix="make one with --record")
    return record


def record_file(system: str, model_type: str) -> Path:
    """The record of a composition that ships, which may not be there."""
    return SYSTEMS / system / "facts" / f"verify_{model_type}.json"


def find_records(source: str, file: Path | None = None) -> list[tuple[str, Path]]:
    """What to load, and the file of its record.

    Args:
        source: a run folder, a system, a composition, or with ``file`` anything that can be loaded.
        file: of the record; None: the run's own, or those that ship.

    Raises:
        ConfigError: neither a folder nor the name of anything that ships.
    """
    path = Path(source).expanduser()
    if file is not None:
        return [(source, file)]
    if path.exists():
        return [(source, (path if path.is_dir() else path.parent) / FILE)]
    system, _, rest = source.partition("/")
    system = current_name(system, None)[0]
    chosen = [name for name in archs() if name.split("/")[0] == system and rest in ("", name.split("/")[1])]
    if not chosen:
        raise ConfigError(
            unknown("run folder or system", source, sorted({*archs(), *(n.split("/")[0] for n in archs())}))
        )
    return [(name, record_file(*name.split("/"))) for name in chosen]
