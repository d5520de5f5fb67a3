"""How far a quantised LLM's answers are from those of the full one, token by token, for ``vlm doctor --quant``."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import IGNORE_INDEX, Message
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.models.quantized import bnb
from vlm.models.quantized.llm import mode_of
from vlm.runners.verify.record import QUESTIONS, WITHOUT_IMAGE, question

log = logging.getLogger(__name__)

MODES = ("nf4", "int8")
ANSWER = Generation(do_sample=False, repetition_penalty=1.0, temperature=1.0, max_new_tokens=24)
Conversations = list[list[Message]]


@dataclass
class Compared:
    """One way to store the LLM.

    Attributes:
        mode: ``full``, ``nf4`` or ``int8``.
        why_not: why it was not measured; the numbers below are 0 then.
        kl: mean over tokens of KL(full || this), in nats.
        kl_worst: the largest of a single token.
        same_top: share of tokens whose most likely next token is the same.
        llm_mib: weights of the LLM in memory.
        load_seconds: from the configuration to a model that answers.
        stored: dtypes of the LLM's weights.
    """

    mode: str
    why_not: str = ""
    kl: float = 0.0
    kl_worst: float = 0.0
    same_top: float = 1.0
    llm_mib: float = 0.0
    load_seconds: float = 0.0
    stored: str = ""


@dataclass
class Report:
    """What :func:`compare` found."""

    source: str
    device: str
    questions: int
    tokens: int
    rows: list[Compared]

    def lines(self) -> list[str]:
        """The table."""
        head = f"{self.source} on {self.device}: {self.tokens} tokens of {self.questions} answers of the full LLM"
        names = ("LLM", "KL per token", "worst", "same top token", "memory", "of full", "load")
        rows = [names, *map(self._cells, self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
        table = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
            for row in rows
        ]
        why = [f"{row.mode}: not measured, {row.why_not}" for row in self.rows if row.why_not]
        return [head, *table, *why]

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def _cells(self, row: Compared) -> tuple[str, ...]:
        if row.why_not:
            return (row.mode, *["-"] * 6)
        share = row.llm_mib / max(self.rows[0].llm_mib, 1e-9)
        return (
            f"{row.mode} ({row.stored})",
            f"{row.kl:.2g}",
            f"{row.kl_worst:.2g}",
            f"{row.same_top:.1%}",
            f"{row.llm_mib:,.1f} MiB",
            f"{share:.2f}x",
            f"{row.load_seconds:.1f} s",
        )


def compare(source: str | Path, questions: int = 8, device: str | None = None, options: Sequence[str] = ()) -> Report:
    """Ask the full LLM, and let each quantised one read its answers. One model is loaded at a time.

    Args:
        source: a run folder or a YAML file.
        questions: first questions of its (validation) data; of a composition without data, fixed ones.
        device: as in ``Engine.load``.
        options: ``key=value`` changes on top of the configuration.

    Raises:
        UserError: as ``Engine.load``; or an LLM that has no ``quantize``.
    """
    engine, row = _load(source, "full", device, options)
    _check(engine)
    asked = _questions(engine, questions)
    answers = [ids for one in asked for ids in engine.generate_ids([one], ANSWER)]
    where = str(engine.device)
    expected = _logits(engine, asked, answers)
    rows = [row]
    for mode in MODES:
        del engine
        gc.collect()
        if mode == "nf4" and bnb.missing():
            rows.append(Compared(mode, "bitsandbytes is not installed"))
            engine = None  # type: ignore[assignment]
            continue
        engine, row = _load(source, mode, device, options)
        _measure(row, expected, _logits(engine, asked, answers))
        rows.append(row)
    return Report(str(source), where, len(asked), sum(map(len, expected)), rows)


def _load(source: str | Path, mode: str, device: str | None, options: Sequence[str]) -> tuple[Engine, Compared]:
    change = f"model.llm.quantize={'null' if mode == 'full' else mode}"
    start = time.perf_counter()
    engine = Engine.load(source, device, options=[*options, change])
    seconds = time.perf_counter() - start
    weights = [*engine.model.llm.parameters(), *engine.model.llm.buffers()]
    size = sum(t.numel() * t.element_size() for t in {id(t): t for t in weights}.values())
    counts: dict[str, int] = {}
    for tensor in weights:
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + tensor.numel()
    most = max(counts, key=lambda name: counts[name])
    return engine, Compared(mode, llm_mib=size / 2**20, load_seconds=seconds, stored=most)


def _check(engine: Engine) -> None:
    model = None if engine.config is None else engine.config.model
    if model is None or "quantize" not in vars(model.llm.config):
        raise ConfigError(
            f"the LLM {model.llm.name if model else ''!r} has no option quantize", fix="compare one of {name: hf}"
        )
    assert mode_of(model) is None


def _questions(engine: Engine, number: int) -> Conversations:
    """The first questions of the data that the configuration names; without it, fixed ones."""
    found: Conversations = []
    try:
        found = _from_data(engine, number)
    except DataError as error:
        log.warning("fixed questions are asked, since the data cannot be read: %s", error)
    if found:
        return found
    sees = engine.model.vision is not None
    squares = [[[(37 * r) % 256, (91 * c) % 256, 128] for c in range(7)] for r in range(6)]
    return [question(text, squares if sees else None) for text in (QUESTIONS if sees else WITHOUT_IMAGE)][:number]


def _from_data(engine: Engine, number: int) -> Conversations:
    """Questions of the validation data, else of the training data."""
    from vlm.datasets.base import read_record, records_in_order
    from vlm.datasets.loading.sources import build_sources

    assert engine.config is not None
    found: Conversations = []
    for source in build_sources(engine.config.valid_datasets or engine.config.datasets, engine.processor):
        for index, raw in records_in_order(source.dataset, 4 * number):
            sample = read_record(source.dataset, index, raw)
            first = next((i for i, m in enumerate(sample.messages) if m.role == "assistant"), 0)
            if first and sample.messages[first - 1].text.strip():
                found.append(list(sample.messages[:first]))
            if len(found) == number:
                return found
    return found


@torch.inference_mode()
def _logits(engine: Engine, asked: Conversations, answers: Sequence[list[int]]) -> list[Tensor]:
    """Log probabilities ``[t, vocab]`` of each answer's tokens, read after its question."""
    found = []
    for one, ids in zip(asked, answers, strict=True):
        (example,) = engine.examples([one])
        labels = [IGNORE_INDEX] * len(example.ids) + ids
        whole = dataclasses.replace(example, ids=example.ids + ids, labels=labels)
        output = engine.model(engine.batch([whole]), return_logits=True)
        assert output.logits is not None and output.labels is not None
        logits = output.logits[0, :-1][output.labels[0, 1:] != IGNORE_INDEX]
        found.append(logits.float().log_softmax(-1).cpu())
    return found


def _measure(row: Compared, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    full, other = torch.cat(list(expected)), torch.cat(list(found))
    kl = (full.exp() * (full - other)).nan_to_num(0).sum(-1)
    row.kl, row.kl_worst = max(float(kl.mean()), 0.0), max(float(kl.max()), 0.0)
    row.same_top = float((full.argmax(-1) == other.argmax(-1)).float().mean())
