"""A causal language model out of a decoder that transformers has without a head: the text part of a larger model."""

from __future__ import annotations

import inspect
from typing import Any

import vlm.models.hf.lean  # noqa: F401

# isort: split
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlm.models.llm.fitness import refused

CACHES = ("cache", "past_key_values")
"""Names of the cache in what a decoder returns, since and before transformers 5.24."""


def causal_class(config: Any) -> Any:
    """The class that is built from a configuration of transformers: its causal LM, or its decoder with a head.

    Raises:
        ConfigError: the configuration belongs to neither.
    """
    kind = type(config)
    if kind in AutoModelForCausalLM._model_mapping:
        found = AutoModelForCausalLM._model_mapping[kind]
        return found[0] if isinstance(found, tuple) else found
    if kind not in AutoModel._model_mapping:
        raise refused(kind.__name__, "transformers has no decoder for it")
    base: Any = AutoModel._model_mapping[kind]
    if isinstance(base, tuple) or "inputs_embeds" not in inspect.signature(base.forward).parameters:
        raise refused(kind.__name__, "transformers has no causal language model for it")
    return _with_head(base)


class _Headed:
    """``model`` and ``lm_head``, as the causal models of transformers name them."""

    base_class: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model: Any = self.base_class(config)
        looks = [vars(module)["is_causal"] for module in self.model.modules() if "is_causal" in vars(module)]
        if not looks or not all(looks):
            raise refused(self.base_class.__name__, "it is not a decoder: its tokens see the whole text")
        table = self.model.get_input_embeddings()
        self.lm_head = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False)
        name = next(name for name, module in self.model.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()  # type: ignore[attr-defined]

    def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits ``[b, s, vocab]`` of what the decoder takes; the last ``logits_to_keep`` positions, 0: all."""
        out = self.model(*args, **kwargs)
        hidden: Tensor = out[0][:, -logits_to_keep:] if logits_to_keep else out[0]
        states = {name: value for name, value in out.items() if name in CACHES}
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), **states)


def _with_head(base: Any) -> Any:
    """The class of ``base`` with a head, which inherits from the base class of its family."""
    family = next(c for c in base.__mro__ if PreTrainedModel in c.__bases__)
    members = {"base_class": base, "base_model_prefix": "model", "config_class": base.config_class}
    made: Any = type(f"{base.__name__}WithHead", (_Headed, family, GenerationMixin), members)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Headed.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    made.forward = forward  # callers look up which arguments the decoder takes
    return made
