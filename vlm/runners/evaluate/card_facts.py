"""What an evaluation card says besides scores: weights, the prompt as read, cost, errors, warnings, commands."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.checkpoint.run_folder import WEIGHTS, find_checkpoint
from vlm.common.errors import ConfigError, DataError, PromptError, WeightsError
from vlm.common.types import MEDIA_TOKEN
from vlm.datasets.inspect.render import pieces
from vlm.pages.samples import runs_of
from vlm.processors.collate import VisualTokens
from vlm.runners.evaluate.digests import file_digest
from vlm.tasks.benchmarks.base import Questions, Result, Score, prompt_of
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.scoring.statistics import Metric, interval

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.engine import Engine
    from vlm.runners.evaluate.run import Asked

log = logging.getLogger(__name__)

ERRORS_SHOWN = 20
TRIED = 5
"""Questions that are tried until one can be shown as the model reads it."""
SUFFIXES = (("*.safetensors",), ("*.gguf",), ("*.bin", "*.pt", "*.pth", "*.ckpt"))
"""Names of the weights in a folder: those of the first kind that is there."""
TRAINER = "trainer.pt"
"""State of a trainer, which no model is made of."""
BLIND = {
    "none": "without an image",
    "wrong": "with the image of another question",
    "blank": "with a grey image",
}
"""Image control -> how its questions are asked."""


def weights_of(cfg: Config) -> list[dict[str, Any]]:
    """Format, path, size and SHA-256 of every file of weights that the composition names; unreadable ones have none."""
    result = []
    for entry in cfg.model.weights:
        for file in _files(entry.path):
            facts: dict[str, Any] = {"format": entry.format, "file": str(file)}
            try:
                facts |= {"bytes": file.stat().st_size, "sha256": file_digest(file)}
            except OSError:
                facts["sha256"] = ""
            result.append(facts)
    return result


def _files(path: str | None) -> list[Path]:
    if not path or "://" in path:
        return [Path(path)] if path else []
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    for names in SUFFIXES:
        if found := sorted(f for name in names for f in folder.glob(name) if f.name != TRAINER):
            return found
    try:
        return [find_checkpoint(folder) / WEIGHTS]  # as a run folder is loaded
    except WeightsError:
        return [folder]


def environment(engine: Engine) -> dict[str, str]:
    """Versions of what the numbers may depend on, and the machine."""
    from vlm.runners.verify.record import machine, versions  # imports the engine, which scoring alone does without

    return {**versions(), **machine(engine.device), "cpu": _processor()}


def _processor() -> str:
    """The name of the processor as Linux gives it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def prompt_facts(questions: Questions, engine: Engine) -> dict[str, Any]:
    """The first question as the model reads it: its ``id``, ``runs`` (kind, text), ``text`` and token ``ids``.

    Where an image or video is, the text and the ids say how many visual tokens there are. Empty if no question of the
    first few can be asked.
    """
    try:
        count = VisualTokens.of(engine.model.visual_tokens, engine.model.counters())
    except ConfigError as error:
        log.info("the card shows no prompt: %s", error)
        return {}
    for index, sample in islice(questions.usable(), TRIED):
        try:
            example = engine.processor.encode_chat(prompt_of(sample))
            found = pieces(example, engine.processor.tokenizer, count)
        except (DataError, PromptError):
            continue
        runs, media = runs_of(found), iter([piece.text for piece in found if piece.medium])
        ids = [next(media) if k == MEDIA_TOKEN else k for k in example.ids]
        text = "".join(text for _, text in runs)
        return {"id": sample.id or str(index), "runs": runs, "text": text, "ids": ids}
    return {}


def cost_of(results: Mapping[str, Result], engine: Engine) -> dict[str, Any]:
    """Seconds, questions per second and tokens of the answers, over all image controls.

    There is no speed where answers were taken from an interrupted run.
    """
    seconds = sum(float(result.scores.get("seconds", 0.0)) for result in results.values())
    said = [p for result in results.values() for p in result.predictions]
    tokens = sum(len(engine.processor.tokenizer.encode_inside(p.answer)) for p in said)
    resumed = sum(int(result.scores.get("resumed", 0)) for result in results.values())
    found = {"seconds": seconds, "questions": len(said), "answer tokens": tokens}
    if resumed:
        return {**found, "answers of an interrupted run": resumed}
    return {**found, "questions per second": len(said) / seconds} if seconds else found


def errors_of(results: Mapping[str, Result]) -> dict[str, Any]:
    """How many questions have no answer that can be scored, and the first ones with the reason, by image control."""
    found = {control: [p for p in result.predictions if p.error] for control, result in results.items()}
    listed = [
        {"image": control, "id": p.id, "reason": p.error} for control, bad in found.items() for p in bad[:ERRORS_SHOWN]
    ]
    return {"count": sum(map(len, found.values())), "first": listed[:ERRORS_SHOWN]}


def warnings_of(results: Mapping[str, Result]) -> list[str]:
    """What a reader must know before believing the scores: answers without looking, many errors or unread answers."""
    result = []
    rows = {control: found.rows()[0] for control, found in results.items() if found.rows() and not found.note}
    right = rows.pop("right", None)
    if right is not None and right.value is not None and right.interval is not None:
        low, high = right.interval
        for control, row in rows.items():
            if row.value is not None and low <= row.value <= high:
                result.append(_blind(control, row, right))
    main = results.get("right") or next(iter(results.values()))
    count = len(main.predictions)
    for key, text in (("errors", "could not be answered or scored"), ("unread", "gave nothing that the rule can read")):
        found = main.scores.get(key) or (main.scores.get("unusable") if key == "errors" else 0)
        if isinstance(found, int) and found * 20 > count:
            result.append(f"{found} of {count} questions {text}: the scores are of the rest or of a guess.")
    return result


def _blind(control: str, row: Score, right: Score) -> str:
    low, high = right.interval or (None, None)
    within = f"{right.text(low)} to {right.text(high)}"
    return (
        f"{row.label} {BLIND[control]} is {row.text(row.value)}, within the 95 % interval of the score with the right "
        f"image ({within}): the model answers without looking."
    )


def groups_of(result: Result) -> list[Score]:
    """The scores of the groups of the first metric, each with its interval where the numbers are of one run."""
    metric = result.metrics[0] if result.metrics else None
    rows = [row for row in result.rows() if row.group]
    if metric is None or not any(metric.groups) or result.scores.get("runs"):
        return rows
    bounds = _intervals(metric)
    return [
        Score(r.label, r.value, r.count, r.interval or bounds.get(r.label), r.baseline, r.unit, group=True)
        for r in rows
    ]


def _intervals(metric: Metric) -> dict[str, list[float]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(metric.groups):
        if name is not None:
            places.setdefault(name, []).append(place)
    result = {}
    for name, chosen in places.items():
        part = Metric(metric.label, [metric.units[k] for k in chosen], metric.rows[chosen], metric.total)
        if (bounds := interval([part])) is not None:
            result[name] = bounds
    return result


def commands(folder: Path, name: str, asked: Mapping[str, Asked], command: Sequence[str]) -> dict[str, str]:
    """The command that made the card, and by dataset the one that scores its answers again without the model."""
    result = {"made by": shlex.join(command)} if command else {}
    for dataset, entry in asked.items():
        first = next(iter(entry.results.values()))
        if not issubclass(entry.benchmark, StandardBenchmark) or first.scores.get("runs") or first.note:
            continue
        if entry.options.limit and entry.options.seed:  # a sample that the command line cannot draw
            continue
        options = {"--protocol": first.scores["protocol"], "--split": first.scores["split"]}
        options |= {"--media-root": entry.facts.get("media", ""), "--limit": entry.options.limit or ""}
        words = ["vlm", "eval", "--answers", str(folder / f"{name}_answers.jsonl"), "--dataset", dataset]
        words += ["--benchmark", entry.facts["benchmark"], "--data", str(entry.facts["records"])]
        words += [str(word) for pair in options.items() if pair[1] for word in pair]
        result[f"score {dataset} again"] = shlex.join(words)
    return result
