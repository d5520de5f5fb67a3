"""A folder that was exported with its composition, as something that can be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vlm.common.registry import register_source
from vlm.config.api import Config, WeightFile, load_config
from vlm.inference.load import Source

COMPOSITION_FILE = "composition.yaml"
TOKENIZER_FOLDER = "tokenizer"


@register_source("exported_folder")
class ExportedFolder(Source):
    """A folder that ``weights export --to hf`` wrote with modelling code of ours; nothing in it is run."""

    def recognises(self, path: Path) -> bool:
        """Whether there is a composition in the folder."""
        return (path / COMPOSITION_FILE).is_file()

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition over the files of the folder."""
        key, value = "model.text.tokenizer", str(path / TOKENIZER_FOLDER)
        own = [f"{key}={value}"] if not options or "=" in options[0] else [key, value]
        cfg = load_config(path / COMPOSITION_FILE, [*own, *options], check="none")
        weights = [*cfg.model.weights, WeightFile("whole", str(path))]
        return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, weights=weights))
