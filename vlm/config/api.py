"""Configuration: YAML -> one typed, checked object.

Precedence, lowest first: dataclass default < arch or corpus file < the user's file < ``--options``.
Everything is checked before a weight is read, and all problems are reported together.
"""

from __future__ import annotations

from vlm.config.load import load_config
from vlm.config.run import RunConfig
from vlm.config.stored import effective, flat
from vlm.config.types import Config, DatasetEntry, EvaluationFiles, ModelConfig, Part, WeightFile

__all__ = [
    "Config",
    "DatasetEntry",
    "EvaluationFiles",
    "ModelConfig",
    "Part",
    "RunConfig",
    "WeightFile",
    "effective",
    "flat",
    "load_config",
]
