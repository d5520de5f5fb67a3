"""Whether a class of transformers can be the language model of a composition; found out before any weight is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.layer_hooks import Layout, laid_out
from vlm.models.llm.packing import base_of, pack, takes_positions


def refused(name: str, reason: str) -> ConfigError:
    """The error for a class that cannot be used."""
    return ConfigError(
        f"model.llm: {name} of transformers cannot be the language model: {reason}",
        fix="use a decoder-only language model, such as one of the LLaMA, Qwen, Gemma or Mistral families",
    )


def check_fitness(model: Any, config: Any) -> bool:
    """Check that a causal model can be run on embeddings.

    Args:
        model: what is to be used.
        config: what it was built from. A copy without memory (on the meta device) is run on a packed row.

    Returns:
        Whether the attention of its layers works on the samples of that row, as far as that can be seen.

    Raises:
        ConfigError: an encoder; a class that needs token ids, or another input besides embeddings; layers that are not
            a list.
    """
    name = type(model).__name__
    if _is_encoder(model):
        raise refused(name, "it is an encoder (is_decoder is not true): each token sees the whole text")
    if decoder_layers(model) is None:
        raise refused(name, "its decoder layers are not one list of num_hidden_layers modules")
    if "inputs_embeds" not in inspect.signature(model.forward).parameters and not passes_more(model.forward):
        raise refused(name, "it takes token ids only, no embeddings")
    with torch.device("cpu"):  # the model may be built on the meta device
        positions = torch.tensor([[0, 1, 2, 0, 1]])
        _, layout = pack(torch.tensor([[1, 1, 1, 2, 2]]))
    with torch.device("meta"):
        copy = type(model)(config).eval()
        embeds = torch.zeros(1, 5, model.get_input_embeddings().embedding_dim, dtype=copy.dtype)
        layout = Layout(layout.gather.to("meta"), layout.scatter.to("meta"), layout.samples, layout.longest)
        given = {"position_ids": positions.to("meta")} if takes_positions(base_of(copy)) else {}
        for place in (layout, None):  # None: as one sample, if the row is refused or values are needed
            try:
                with laid_out(place):
                    mask = torch.ones(1, 5).long()
                    base_of(copy)(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **given)
            except (TypeError, AttributeError, ValueError) as error:
                raise refused(name, f"it cannot be run on embeddings alone ({error})") from error
            except RuntimeError:  # meta tensors have no values
                continue
            return layout.calls == len(decoder_layers(model) or ()) if place is layout else layout.calls > 0
    return layout.calls > 0


def passes_more(function: Callable[..., Any]) -> bool:
    """Whether a function takes any further arguments by name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _is_encoder(model: Any) -> bool:
    """Whether a class that can be both was built as an encoder; decoders may carry the unused field, too."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    if model.config.to_dict().get("is_decoder", True) is not False:
        return False
    looks_ahead = any(vars(module).get("is_causal", True) is False for module in model.modules())
    return looks_ahead or type(model.config) in MODEL_FOR_MASKED_LM_MAPPING


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The list of decoder layers, if there is one."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (m for m in base_of(model).modules() if isinstance(m, nn.ModuleList))
    return next((m for m in lists if len(m) == count), None)
