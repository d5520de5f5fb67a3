"""Configuration: YAML -> one typed, checked object.

Precedence, lowest first: dataclass default < arch or corpus file < the user's file < ``--options``.
Everything is checked before a weight is read, and all problems are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from vlm.config.load import load
from vlm.config.run import RunConfig
from vlm.config.stored import effective
from vlm.config.types import Check, Config, DatasetEntry, ModelConfig, Part, WeightFile

__all__ = ["Config", "DatasetEntry", "ModelConfig", "Part", "RunConfig", "WeightFile", "effective", "load_config"]


def load_config(
    cfg: str | FilePath | Mapping[str, Any],
    options: Sequence[str] = (),
    *,
    check: Check = "weights",
    train: bool = False,
) -> Config:
    """Read, merge, interpolate and check a configuration.

    Args:
        cfg: a YAML file, a run folder, ``system/name`` of what ships (``"tiny/eval"``), or the ``resolved``
            mapping of a stored configuration.
        options: ``--options`` in either spelling.
        check: which named files must exist: those of the model ("weights"), datasets too ("all"), no file ("none"),
            or what the file is for decides ("needed"): datasets too if it trains or evaluates. Unless datasets are
            checked, entries whose build_info is not set yet are left out.
        train: whether ``system/name`` means a file to train with first, or one to evaluate or chat with.

    Raises:
        ConfigError: all problems, each with dotted path, file:line, what was found and what is allowed.
    """
    return load(cfg, options, check, train)
