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
QUESTIONS = "bridge.{}.tokenizer"
"""Folder of the tokenizer of a bridge that reads the question."""


@register_source("exported_folder")
class ExportedFolder(Source):
    """A folder that ``weights export --to hf`` wrote with modelling code of ours; nothing in it is run."""

    def recognises(self, path: Path) -> bool:
        """Whether there is a composition in the folder."""
        return (path / COMPOSITION_FILE).is_file()

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition over the files of the folder."""
        places = {"model.text.tokenizer": path / TOKENIZER_FOLDER}
        for folder in path.glob(QUESTIONS.format("*")):
            places[f"model.bridge.{folder.name.split('.')[1]}.reads_text.tokenizer"] = folder
        spaced = bool(options) and "=" not in options[0]
        own = [word for key, value in places.items() for word in ([key, str(value)] if spaced else [f"{key}={value}"])]
        cfg = load_config(path / COMPOSITION_FILE, [*own, *options], check="none")
        weights = [*cfg.model.weights, WeightFile("whole", str(path))]
        return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, weights=weights))
