"""From whatever names a model (a YAML file, a run folder, a published folder or file) to the parts of an engine.

Each kind of thing that can be loaded is a class registered with ``@register_source``. What none of them recognises is
read as a YAML file of this library.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm.common.dist import pick_device
from vlm.common.errors import UserError, WeightsError
from vlm.common.registry import names, register_source, resolve
from vlm.config.api import Config, WeightFile, load_config
from vlm.inference.generation import Generation

if TYPE_CHECKING:
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Questions:
    """A composition, and the questions to put to it that a published file may state."""

    config: Config  # the composition
    generation: Generation  # options of an answer
    files: Sequence[str] = ()  # annotation files
    prompt: str = "{question}"  # text with ``{fields}`` of the record
    raw: bool = False  # ``prompt`` is all that the model sees, without its template
    media_field: str = ""  # field with the image or video
    batch_size: int = 16  # records answered together
    lemmatize: bool = False  # nouns and verbs of the answers become their basic forms


class Source(ABC):
    """Something on disk that a configuration can be made of, registered with ``@register_source``."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is such a file or folder."""

    @abstractmethod
    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """Its checked configuration, with ``key=value`` changes on top. Raises UserError: it cannot be used."""

    def questions(self, path: Path, options: Sequence[str] = ()) -> Questions | None:
        """Composition and questions, if such a file states questions of its own. Raises as :meth:`config`."""
        return None


def load_parts(
    source: str | Path | Config,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    options: Sequence[str] = (),
    *,
    allow_random: bool = False,
    quantised: bool = True,
    beside: Sequence[VLM] | None = None,
) -> tuple[VLM, Processor, Config, torch.device]:
    """Model, processor, configuration and device; see ``Engine.load``, which raises the same.

    ``quantised`` False ignores ``model.llm.quantize``, for what will be written to a file. ``beside``: see
    ``load_model``.
    """
    from vlm.checkpoint.load import load_model
    from vlm.models.quantized.llm import plain_llm
    from vlm.processors.processor import build_processor

    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype is {dtype!r}, expected a floating-point type", fix="e.g. dtype=torch.float32")
    if not isinstance(device, str | torch.device | None):
        raise UserError(f"device is {device!r}, expected a name", fix='e.g. device="cuda:0"')
    cfg = source if isinstance(source, Config) else read_source(source, options)
    where = device if isinstance(device, torch.device) else pick_device(device or cfg.run.device)
    if not quantised:
        cfg = dataclasses.replace(cfg, model=plain_llm(cfg.model))
    processor = build_processor(cfg.model)
    model = load_model(cfg, device=where, dtype=dtype, allow_random=allow_random, beside=beside)
    warn_of_run(cfg)
    return model, processor, cfg, where


def warn_of_run(cfg: Config) -> None:
    """Warn if ``run.output_dir`` holds a run of this configuration whose weights are not among its files."""
    from vlm.checkpoint.run_folder import RunDir

    run = RunDir(cfg.run.output_dir)
    inside = [
        w
        for w in cfg.model.weights
        if w.path and Path(w.path).expanduser().resolve().is_relative_to(run.path.resolve())
    ]
    if cfg.model.train and not inside and run.last() is not None:
        log.warning(
            "the weights that model.weights names are used, not those of the run in %s; "
            "name that folder to use what it trained",
            run.path,
        )


def read_source(source: str | Path, options: Sequence[str] = ()) -> Config:
    """The checked configuration of anything that can be loaded.

    Raises UserError: nothing usable there, or an unusable configuration.
    """
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise UserError(
            f"found {source!r:.80} in place of a model", fix="name a run folder, a YAML file or a system (tiny/eval)"
        )
    path = Path(source).expanduser()
    kind = find_source(path)
    if kind is None and path.is_dir():
        raise WeightsError(
            f"{path}: no checkpoint there, nor anything else that can be loaded ({', '.join(names('source'))})",
            fix="give a run folder, its 'last' or 'best' link, a step_... folder, or a YAML file",
        )
    return load_config(path, options) if kind is None else kind.config(path, options)


def find_source(path: Path) -> Source | None:
    """The registered source that recognises ``path``; None for a YAML file of this library."""
    kinds = (resolve("source", name)() for name in names("source"))
    return next((kind for kind in kinds if kind.recognises(path)), None)


@register_source("run_folder")
class RunFolder(Source):
    """A run folder, a checkpoint in it, or its weights; what was trained goes on top of what the run started from."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is the weights of a run, or holds a run's configuration or checkpoints."""
        return path.suffix == ".safetensors" or (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The stored configuration. Files of trained parts are left out if they are gone: the run holds them itself."""
        from vlm.checkpoint.run_folder import CONFIG, find_checkpoint

        folder = find_checkpoint(path)
        cfg = load_config(folder / CONFIG, options, check="none")
        weights = [*filter(needed, cfg.model.weights), WeightFile("run_folder", str(folder))]
        return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, weights=weights))


def needed(weight: WeightFile) -> bool:
    """Whether a file is to be read by a run that has its trained parts already: it is there, or nothing replaces it."""
    there = bool(weight.path) and Path(str(weight.path)).expanduser().exists()
    return there or weight.format == "random" or not resolve("checkpoint_format", weight.format).holds_trained


@register_source("adapter_folder")
class AdapterFolder(Source):
    """A peft adapter alone, which cannot be loaded without the models below it."""

    def recognises(self, path: Path) -> bool:
        """Whether there is an adapter's configuration."""
        from vlm.checkpoint.peft_adapter import CONFIG

        return (path / CONFIG).is_file()

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """Raises WeightsError with what to do."""
        raise WeightsError(
            f"{path}: an adapter alone, without the models that it was trained on",
            fix="name it and its foundations in a YAML file, or merge them: vlm weights merge",
        )
