"""A configuration -> a model with every file of ``weights:`` loaded, strictly."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.provenance import other_numbers, recorded
from vlm.checkpoint.quantised.base import QuantisedBase
from vlm.checkpoint.run_files import WEIGHTS
from vlm.checkpoint.run_folder import RunDir, find_checkpoint
from vlm.checkpoint.strict import WRAPPED, check_numbers, copy_strictly, targets
from vlm.common.errors import WeightsError
from vlm.common.paths import local_path
from vlm.common.registry import resolve
from vlm.models.build import build_model
from vlm.models.lora import LoraTargetError, layer_of
from vlm.models.quantized.layers import quantised_layers
from vlm.models.trainable import matching, trainable_table
from vlm.models.vlm import VLM

log = logging.getLogger(__name__)

RANDOM = "random"
"""``{format: random, into: vision}`` declares that a part starts from its random initialisation."""
_LAYER_NUMBER = re.compile(r"\.\d+\.")


def load_model(
    cfg: Any,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    allow_random: bool = True,
    beside: Sequence[VLM] | None = None,
    training: bool = False,
    split: Callable[[VLM], object] | None = None,
) -> VLM:
    """Build the composition and fill it from its files.

    What trains may start at random (a new bridge, LoRA); what is frozen must be filled or declared ``random``.

    Args:
        cfg: a ``Config``.
        device: where the model will be.
        dtype: storage of frozen weights instead of each part's own.
        allow_random: False refuses every parameter that no file fills, declared or not: such a model cannot answer.
        beside: loaded models; what the same files filled there is used in place, and takes no further memory.
        training: whether gradients must pass a quantised LLM.
        split: splits the model, which is on the CPU, in place over the processes before any file is read.

    Raises:
        WeightsError: a file is missing, damaged, unsafe or does not fit; or a frozen part has no file.
        ConfigError: the composition does not fit together.
    """
    files = [w for w in cfg.model.weights if w.path or w.format == RANDOM]
    loaders = [(w, resolve("checkpoint_format", w.format)(w.into)) for w in files if w.format != RANDOM]
    model_cfg, sources = infer(cfg.model, loaders)
    base = QuantisedBase(model_cfg, torch.device(device), training)
    full = [loader for _, loader in loaders if isinstance(loader, CheckpointFormat)]
    covered = [part for loader in full for part in loader.covered_parts(model_cfg)]
    # memory of a CPU that nothing is written to takes no room
    place, later = "cpu" if base.mode or beside or split else device, base.meant_for
    model = _built(model_cfg, sources, device=place, dtype=dtype, uninitialised=covered, meant_for=later)
    declared = declared_random(model, [w for w in files if w.format == RANDOM])
    base.place(model)  # a matrix is quantised as soon as it is read
    if split is not None:
        split(model)
    loaded = load_files(model, loaders, declared, beside or (), cfg.run.allow_other_base)
    bare = unfilled(model, loaded)
    check_frozen(model, [name for name in bare if name not in declared])
    if bare and not allow_random:
        raise random_parts(bare, cfg.run.output_dir)
    _report_random(model, bare)
    model.random = frozenset(bare)
    base.finish(model, dtype)
    if split is None and (base.mode or beside):
        model.to(device)
    log.info("%s", trainable_table(model))
    return model.eval()


def _built(model_cfg: Any, sources: Sequence[str], **options: Any) -> VLM:
    """The composition, as yet without its files; ``sources`` are those that its open options were taken from."""
    try:
        return build_model(model_cfg, **options)
    except LoraTargetError as error:
        if not sources:
            raise
        text = f"{', '.join(sources)}: LoRA for layers that this composition does not have"
        raise WeightsError(f"{text}: {error}") from error


def infer(model_cfg: Any, loaders: Sequence[tuple[Any, Any]]) -> tuple[Any, list[str]]:
    """The composition with what it leaves open (null) taken from its files; the paths of those that had something.

    ``loaders`` are pairs of an entry of ``weights:`` and its loader. Raises as :meth:`CheckpointFormat.infer_config`.
    """
    sources = []
    for weight, loader in loaders:
        if not isinstance(loader, CheckpointFormat):
            continue
        inferred = loader.infer_config(model_cfg, resolve_path(weight.path))
        sources += [str(weight.path)] if inferred is not model_cfg else []
        model_cfg = inferred
    return model_cfg, sources


def load_files(
    model: VLM,
    loaders: Sequence[tuple[Any, Any]],
    declared: set[str],
    beside: Sequence[VLM] = (),
    allow_other_base: bool = False,
) -> set[str]:
    """Fill ``model`` from all files and return our keys that were filled.

    Args:
        model: the composition.
        loaders: pairs of an entry of ``weights:`` and its loader, in their order.
        declared: our keys that start at random.
        beside: models whose tensors of the same files are used in place.
        allow_other_base: see :func:`check_base`.

    Raises:
        WeightsError: see :func:`load_model`.
    """
    loaded: set[str] = set()
    for weight, loader in loaders:
        path = resolve_path(weight.path)
        source = (weight.format, weight.into, identity(path))
        lent = lendable(beside, source, model) if beside else None
        done = load_file(model, loader, path, declared | loaded, weight.allow_nonfinite, lent)
        model.read_from.update(dict.fromkeys(done, source))
        loaded |= done
        if isinstance(loader, CheckpointFormat) and loader.holds_trained:
            check_base(model, path, loaded, allow_other_base)
    return loaded


def load_file(
    model: VLM,
    loader: Any,
    path: Path,
    filled: set[str] | frozenset[str] = frozenset(),
    allow_nonfinite: bool = False,
    lent: Mapping[str, Tensor] | None = None,
) -> set[str]:
    """Fill ``model`` from one file and return our keys that were filled.

    ``filled`` are those that others filled; ``lent``, and what is raised: as :func:`.strict.copy_strictly`.
    """
    tensors = loader.read(path)
    placement = loader.rename(model, tensors, str(path), filled)
    check_numbers(placement, tensors)
    done = copy_strictly(model, placement, loader.hint, allow_nonfinite=allow_nonfinite, lent=lent)
    log.info("%s: %d tensors from %s", type(loader).__name__, len(done), path)
    return done


def identity(path: Path) -> tuple[Any, ...]:
    """What changes when a file, or a file in a folder, is replaced: names, sizes, times of their last change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(str(file.resolve()), file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def lendable(models: Sequence[VLM], source: Hashable, borrower: VLM) -> dict[str, Tensor]:
    """Our keys in ``borrower`` -> tensors of other models that ``source`` filled, LoRA around their layers or not."""
    names = {key.replace(WRAPPED, "."): key for key in targets(borrower)}
    result: dict[str, Tensor] = {}
    for model in models:
        for key, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
            plain = key.replace(WRAPPED, ".")
            if model.read_from.get(key) == source and plain in names:
                result.setdefault(names[plain], tensor)
    return result


def check_base(model: VLM, path: Path, filled: set[str], allow_other: bool) -> None:
    """Compare the frozen weights of the run that wrote ``path`` with those of the model that it was just loaded into.

    Raises WeightsError: they are others, and ``allow_other`` is false.
    """
    file = find_checkpoint(path) / WEIGHTS if path.is_dir() else path
    others = other_numbers(recorded(file), model, filled, str(file))
    if not others:
        return
    told = "; ".join(f"{part}: {text}" for part, text in others.items())
    if not allow_other:
        raise WeightsError(
            f"{path} was trained with other frozen weights ({told})",
            fix=f"use the files of {', '.join(others)} that its config.yaml names; run.allow_other_base=true loads it "
            "nevertheless",
        )
    log.warning("%s was trained with other frozen weights (%s)", path, told)


def resolve_path(path: str) -> Path:
    """A local path; an address is downloaded once. Raises WeightsError if there is nothing there."""
    try:
        result = local_path(path)
    except OSError as error:
        text = f"weights: {path} cannot be fetched ({error})"
        raise WeightsError(text, fix="download it and give its path") from error
    if not result.exists():
        raise WeightsError(f"weights: {result} does not exist", fix="check the path, or download the file first")
    return result


def declared_random(model: VLM, entries: list[Any]) -> set[str]:
    """Parameters that start at random by declaration. Raises WeightsError: an entry names no part of the model."""
    names = [name for name, _ in model.named_parameters()]
    result: set[str] = set()
    for entry in entries:
        chosen = matching(names, entry.into) if entry.into else []
        if not chosen:
            parts = ", ".join(sorted({part_of(name) for name in names}))
            found = f"into: {entry.into} is not a part" if entry.into else "into is missing"
            raise WeightsError(f"model.weights, format: random: {found} (parts: {parts})")
        result.update(chosen)
    return result


def unfilled(model: VLM, loaded: set[str]) -> list[str]:
    """Names of the parameters that no file filled, neither directly nor through one that shares their memory.

    Frozen vectors of modules without a matrix are left out: norms and gates that no published file holds start at fixed
    values. A bias beside a matrix is drawn at random.
    """
    tied = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in loaded}
    scales = {f"{name}.scales" for name in quantised_layers(model)}
    bare = {n: p for n, p in model.named_parameters() if n not in loaded | scales and id(p) not in tied}
    drawn = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.dim() > 1}
    return [n for n, p in bare.items() if p.requires_grad or n.rpartition(".")[0] in drawn]


def part_of(name: str) -> str:
    """``bridge.1`` of ``bridge.1.proj.weight``, ``llm`` of what is in the LLM."""
    return ".".join(name.split(".")[: 2 if name.startswith(("bridge", "inserts")) else 1])


def check_frozen(model: VLM, undeclared: list[str]) -> None:
    """Raises WeightsError if what is frozen is random: no file filled it, and its part is not declared ``random``."""
    parameters = dict(model.named_parameters())
    bare = [n for n in undeclared if not parameters[n].requires_grad]
    if bare:
        parts = sorted({part_of(name) for name in bare})
        raise WeightsError(
            f"{', '.join(parts)}: frozen, but no file of model.weights fills it ({len(bare)} tensors, first {bare[0]})",
            fix=f"add its weight file to model.weights, train it, or declare {{format: random, into: {parts[0]}}}",
        )


def random_parts(names: Sequence[str], output_dir: str) -> WeightsError:
    """The error about parameters without a file in a model that is to answer, with the run that may hold them."""
    parts = ", ".join(sorted({part_of(name) for name in names}))
    run = RunDir(output_dir)
    if run.last() is not None:
        fix = f"{run.path} holds a run: use that folder in place of this file, e.g. `vlm eval {run.path}`"
    else:
        fix = "name its weight file in model.weights (what a run trained: {format: trained, path: RUN_FOLDER})"
    return WeightsError(
        f"{parts}: random, no file of model.weights fills it ({len(names)} tensors, first {names[0]}), "
        "so the answers would mean nothing",
        fix=f"{fix}; to use it nevertheless: --allow-random, in Python allow_random=True",
    )


def _report_random(model: VLM, bare: list[str]) -> None:
    fresh = Counter(_LAYER_NUMBER.sub(".*.", layer_of(n)) for n in bare if ".lora_A." in n)
    if fresh:
        layers = ", ".join(f"{count} x {name}" for name, count in fresh.items())
        log.info("LoRA that no file holds starts without effect (its update is zero): %s", layers)
    frozen = [name for name, p in model.named_parameters() if name in set(bare) and not p.requires_grad]
    if frozen:
        parts = Counter(part_of(name) for name in frozen)
        text = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
        log.warning("frozen at random values, as declared: %s", text)
