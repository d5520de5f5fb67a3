"""From a YAML file or a run folder to the parts of an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlm.common.dist import pick_device
from vlm.common.errors import WeightsError
from vlm.common.registry import names, resolve
from vlm.config.api import Config, WeightFile, load_config

if TYPE_CHECKING:
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

TRAINED = "trained"
"""Checkpoint format of this library's own run folders."""


def load_parts(
    source: str | Path | Config,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    options: Sequence[str] = (),
) -> tuple[VLM, Processor, Config, torch.device]:
    """Model, processor, configuration and device; see ``Engine.load``.

    Raises:
        UserError: an unusable configuration, file or device.
    """
    from vlm.checkpoint.load import load_model
    from vlm.processors.processor import build_processor

    cfg = source if isinstance(source, Config) else read_source(source, options)
    where = device if isinstance(device, torch.device) else pick_device(device or cfg.run.device)
    processor = build_processor(cfg.model)
    return load_model(cfg, device=where, dtype=dtype), processor, cfg, where


def read_source(source: str | Path, options: Sequence[str] = ()) -> Config:
    """The checked configuration of a YAML file, of a run folder with its own weights on top, or of a merged VisualCLA.

    Raises:
        UserError: neither a file nor such a folder, or an unusable configuration.
    """
    from vlm.checkpoint.peft_adapter import CONFIG as ADAPTER

    path = Path(source).expanduser()
    if not path.is_dir() and path.suffix != ".safetensors":
        return load_config(path, options)
    for name in names("source"):
        kind = resolve("source", name)
        if kind.recognises(path):
            return kind.config(path, options)
    if (path / ADAPTER).is_file():
        raise WeightsError(
            f"{path}: an adapter alone; the models that it was trained over are not in it",
            fix="name it and its foundations in a configuration (VisualCLA: eval_configs/visualcla_eval.yaml), "
            "or merge them: vlm weights merge",
        )
    from vlm.checkpoint.run_folder import CONFIG, find_checkpoint

    folder = find_checkpoint(path)
    cfg = load_config(folder / CONFIG, options, check="none")
    # what the run started from is needed only where it fills something that the run itself does not hold
    kept = [w for w in cfg.model.weights if w.format != TRAINED or (w.path and Path(w.path).expanduser().exists())]
    weights = [*kept, WeightFile(TRAINED, str(folder))]
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, weights=weights))
