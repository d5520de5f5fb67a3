"""A plug-in of vLLM for folders that ``vlm weights export --to vllm`` wrote; it needs the package vlm-compose."""

from __future__ import annotations

ARCHITECTURE = "ComposedForConditionalGeneration"


def register() -> None:
    """Make the class and its configuration known; vLLM calls this in every process, possibly more than once."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from vlm.inference.hub.model import ComposedConfig

    AutoConfig.register(ComposedConfig.model_type, ComposedConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
