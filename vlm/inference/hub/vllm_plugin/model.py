"""The composition in vLLM: its vision encoder and bridges are ours, its language model is vLLM's own.

Written for the interfaces of vLLM 0.33.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from vlm.inference.hub.model import ComposedConfig, fetched
from vlm.inference.hub.processor import ComposedProcessor
from vlm.inference.load import read_source
from vlm.models.build import build_visual

PLACEHOLDER = "<image>"
"""Token of an image; written by the export."""


@lru_cache(maxsize=4)
def processor_of(folder: str) -> ComposedProcessor:
    """The composition's processor; its recipe makes the pixels."""
    return ComposedProcessor.from_pretrained(folder)


class ComposedInfo(BaseProcessingInfo):
    """Limits, configuration and processor."""

    def get_hf_config(self) -> ComposedConfig:
        """The folder's config.json."""
        config: ComposedConfig = self.ctx.get_hf_config(ComposedConfig)
        return config

    def get_hf_processor(self, **kwargs: object) -> ComposedProcessor:
        """The folder's own processor."""
        return processor_of(str(self.ctx.model_config.model))

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images."""
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: the recipe is part of the composition."""
        return {"text_kwargs": set(), "images_kwargs": set()}


class ComposedDummyInputs(BaseDummyInputsBuilder):
    """The largest input of a number of images."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One image token for each image."""
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """White images; the recipe brings any size to the encoder's."""
        images = self._get_dummy_images(
            width=64, height=64, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class ComposedInputs(BaseMultiModalProcessor):
    """Images to pixels; one image token in a prompt to as many as an image has positions."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> Any:
        return self.info.get_hf_processor()(images=hf_data["images"])

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        token = config.image_token_id
        return [PromptReplacement(modality="image", target=[token], replacement=[token] * config.image_token_count)]


@MULTIMODAL_REGISTRY.register_processor(ComposedInputs, info=ComposedInfo, dummy_inputs=ComposedDummyInputs)
class ComposedForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """Encoder and bridges of the composition on every rank; its LLM as vLLM runs that family."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"llm.model.": "language_model.", "vision.": "images.vision.", "bridge.": "images.bridge."}
    )

    language_model: Any
    if TYPE_CHECKING:
        configure_mm_token_handling: Any
        _mark_tower_model: Any
        _mark_language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Text that stands for an image in a prompt."""
        if modality.startswith("image"):
            return PLACEHOLDER
        raise ValueError("this model takes images only")

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.config = config
        self.configure_mm_token_handling(vocab_size=config.text_config.vocab_size, mm_token_ids=[config.image_token_id])
        composition = read_source(fetched(vllm_config.model_config.model, {})).model
        with self._mark_tower_model(vllm_config, "image"):
            self.images = build_visual(composition, config.text_config.hidden_size)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The rows of each image, ``[positions, d]``, of ``pixel_values [n, 3, h, w]``."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return []
        if not isinstance(pixels, torch.Tensor):
            pixels = torch.stack(list(pixels))
        like = next(self.images.parameters())
        features = self.images.encode(pixels[:, None].to(like.device, like.dtype))
        return list(features.tokens.flatten(1, 2))

    def forward(
        self,
        input_ids: Any,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Hidden states of the language model."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> Any:
        """Logits of hidden states."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Take the folder's tensors; the names that were filled."""
        return set(AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper))
