"""Models that transformers itself has, by their folder: the configuration, and the names of their parameters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from vlm.common.errors import ConfigError
from vlm.models.hf.config import CONTRADICTIONS
from vlm.models.llm.hf import HFCausalLM, read_config

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Types of published weights -> their names in YAML."""
_UNSIZED = ("transformers_version", "architectures", "torch_dtype", "dtype")
_OFTEN_DEFAULT = re.compile(
    "initializer|use_cache|dropout|pretraining_tp|(pad|bos|sep)_token_id|^chunk_size|^is_|^output_"
)
"""Options that say nothing about sizes; left out where they are the class's own."""


def read_model_config(folder: Path) -> Any:
    """The transformers configuration of a folder; code in the folder is never run.

    Raises WeightsError: no usable config.json, or a model that only the folder's own code describes.
    """
    return read_config(HFCausalLM.Config(path=str(folder)))


def is_known(model_type: str) -> bool:
    """Whether the installed transformers has a configuration of this ``model_type``."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def empty_model(config: Any) -> Any:
    """The transformers model of an image-and-text configuration, on the device ``meta``.

    Raises ConfigError: transformers has no such model, or it cannot be built with these sizes.
    """
    from transformers import AutoModelForImageTextToText

    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ConfigError(f"transformers has no image-and-text model of type {config.model_type!r}")
    with torch.device("meta"):
        try:
            return AutoModelForImageTextToText.from_config(config, attn_implementation="eager", trust_remote_code=False)
        except CONTRADICTIONS as error:
            raise ConfigError(f"transformers cannot build {config.model_type!r} of these sizes: {error}") from error


def sizes(section: Any) -> dict[str, Any]:
    """A part of a configuration as plain data that builds the same part, ``model_type`` first."""
    default = type(section)().to_dict()
    stated = {
        key: value
        for key, value in section.to_diff_dict().items()
        if key not in _UNSIZED and not key.startswith("_")
        if not (_OFTEN_DEFAULT.search(key) and key in default and default[key] == value)
    }
    return {"model_type": section.model_type} | stated
