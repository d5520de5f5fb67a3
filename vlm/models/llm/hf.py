"""Any Hugging Face causal language model, built from its ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Dropout, Natural
from vlm.common.errors import ConfigError, WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.paths import inner_folder
from vlm.common.registry import register_llm
from vlm.models.fusion.base import LLMInputs
from vlm.models.layer_hooks import INSERT_DATA, checkpoint_layers, trim_last_layer
from vlm.models.llm.packing import ATTENTION, can_pack, pack, register_attention
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.loss import head_loss

FOLDERS = ("text_encoder",)
"""Subfolders in which a model saved in parts keeps its language model."""

LOGIT_CHANGES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Fields of transformers' configurations: a factor, a divisor and a soft cap of the logits."""


@register_llm("hf")
class HFCausalLM(nn.Module):
    """A causal LM that computes logits only at supervised positions.

    State-dict keys: ``model.*``, Hugging Face's own names.
    """

    @dataclass
    class Config:
        """Options of ``llm: {name: hf}``.

        ``path`` is a folder with config.json (or with the language model in ``text_encoder/``); ``config`` writes
        its content out instead (model_type and sizes). ``vocab_size`` overrides the rows of embeddings and head, and
        unties them: a larger number makes room for added tokens, whose rows are random or, with
        ``new_rows: mean``, the mean over the file's (a published rule for a pad token). ``banned_ids`` are never
        generated, such as added tokens whose row of the head is in no file (that row is zero then).

        Example: ``llm: {name: hf, path: /models/llama-2-7b, dtype: bf16}``
        """

        path: str | None = None
        config: dict[str, Any] | None = None
        vocab_size: Count | None = None
        new_rows: Literal["random", "mean"] = "random"  # of tokens that no file has (vocab_size)
        dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
        label_smoothing: Dropout = 0.0
        lora: LoraOptions | None = None
        quantize: Literal["int8", "nf4"] | None = None
        checkpointing: bool = False
        packing: bool = True
        banned_ids: list[Natural] = field(default_factory=list)

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.config = config
        register_attention()
        hf_config = read_config(config)
        if config.vocab_size is not None:
            hf_config.get_text_config().vocab_size = config.vocab_size
            hf_config.tie_word_embeddings = hf_config.get_text_config().tie_word_embeddings = False
        family: Any = AutoModelForCausalLM._model_mapping[type(hf_config)]
        self.model = AutoModelForCausalLM.from_config(
            hf_config, attn_implementation=_attention(family, hf_config), dtype=torch.get_default_dtype()
        )
        self.hidden_size: int = self.model.get_input_embeddings().embedding_dim
        self.vocab_size: int = self.model.get_input_embeddings().num_embeddings
        self.banned_ids: tuple[int, ...] = tuple(config.banned_ids)
        if self.banned_ids and not 0 <= min(self.banned_ids) <= max(self.banned_ids) < self.vocab_size:
            raise ConfigError(f"model.llm.banned_ids: {config.banned_ids}, allowed: 0 to {self.vocab_size - 1}")
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        trim_last_layer(self.layers())
        if config.checkpointing:
            checkpoint_layers(self.layers())

    def layers(self) -> Any:
        """The decoder layers, for inserts and checkpointing."""
        lists = [m for m in self.model.base_model.modules() if isinstance(m, nn.ModuleList)]
        count = self.model.config.get_text_config().num_hidden_layers
        return next(m for m in lists if len(m) == count)

    def checkpointable_modules(self) -> list[nn.Module]:
        """The layers to recompute in the backward pass when the runner asks for it."""
        return list(self.layers())

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[..., d]`` of ``ids [...]``."""
        return self.model.get_input_embeddings()(ids)

    def forward(self, inputs: LLMInputs, keep: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm: ``[b, L, d]``, or ``[t, d]`` where ``keep [b, L]`` is True."""
        longest = inputs.segments.shape[1]
        if keep is not None and self.config.packing and can_pack(self.model, longest):
            return self._packed(inputs, keep)
        mask = inputs.attention_mask
        if mask.dim() == 4 and self.model.config._attn_implementation == "eager":  # added to the scores there
            mask = torch.zeros_like(mask, dtype=inputs.inputs_embeds.dtype).masked_fill(~mask, float("-inf"))
        hidden = self.model.base_model(
            inputs_embeds=inputs.inputs_embeds,
            position_ids=inputs.position_ids,
            attention_mask=mask,
            use_cache=False,
            **({} if inputs.inserts is None else {INSERT_DATA: inputs.inserts}),
        )[0]
        return hidden if keep is None else hidden[keep]

    def _packed(self, inputs: LLMInputs, keep: Tensor) -> Tensor:
        """``[t, d]`` at ``keep``: nothing is computed at padding, and no last MLP elsewhere."""
        index, layout = pack(inputs.segments, inputs.position_ids)
        rows = keep.flatten()[index].nonzero()[:, 0]
        layout.keep = rows
        hidden = self.model.base_model(
            inputs_embeds=inputs.inputs_embeds.flatten(0, 1).index_select(0, index)[None],
            position_ids=inputs.position_ids.flatten()[index][None],
            attention_mask=inputs.segments.new_ones(1, 1, 1, 1),  # four dimensions: taken as given
            use_cache=False,
            layout=layout,
            **({} if inputs.inserts is None else {INSERT_DATA: inputs.inserts.flat(index)}),
        )[0]
        return hidden[0].index_select(0, rows)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., vocab]`` of hidden states, with the scaling or soft cap of the model's family."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden)
        scale, divisor, cap = (getattr(config, name, None) for name in LOGIT_CHANGES)
        logits = logits * (scale or 1.0) / (divisor or 1.0)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed float32 cross entropy of ``hidden [t, d]`` against ``targets [t]``."""
        head = self.model.get_output_embeddings()
        config, smoothing = self.model.config.get_text_config(), self.config.label_smoothing
        changed = bool(smoothing) or any(getattr(config, name, None) for name in LOGIT_CHANGES)
        plain = type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad and not changed
        return head_loss(head if plain else self.head, hidden, targets, plain=plain, smoothing=smoothing)


def _attention(family: type, config: Any) -> str:
    """The attention of a transformers class: ours, else its own SDPA, else the plain one, which alone caps scores."""
    if not getattr(family, "_supports_sdpa", False) or getattr(config, "attn_logit_softcapping", None):
        return "eager"
    return ATTENTION if getattr(family, "_supports_attention_backend", False) else "sdpa"


def read_config(config: HFCausalLM.Config) -> Any:
    """The transformers configuration of ``config.path`` or ``config.config``.

    Raises:
        ConfigError: neither or both given, or an unknown ``model_type``.
        WeightsError: the folder has no config.json.
    """
    from transformers import AutoConfig

    if (config.path is None) == (config.config is None):
        raise ConfigError("model.llm needs exactly one of path (a Hugging Face folder) and config (sizes written out)")
    if config.config is not None:
        options = dict(config.config)
        kind = options.pop("model_type", None)
        try:
            return AutoConfig.for_model(kind, **options)
        except ValueError as error:
            raise ConfigError(f"model.llm.config.model_type: transformers knows no model type {kind!r}") from error
    folder = inner_folder(str(config.path), FOLDERS)
    if not (folder / "config.json").is_file():
        fix = "give the folder of a Hugging Face causal LM: config.json, tokenizer and weights"
        raise WeightsError(f"model.llm.path: no language model in {folder} (config.json is missing)", fix=fix)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        text = mistaken(folder / "config.json") or f"{folder / 'config.json'}: {error}"
        raise WeightsError(text) from error
