"""Any Hugging Face causal language model, built from its ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.common.bounds import Count, Dropout, Natural
from vlm.common.errors import ConfigError
from vlm.common.registry import register_llm
from vlm.models.fusion.base import LLMInputs
from vlm.models.hf.config import read_hf_config, written
from vlm.models.inserts.base import InsertData
from vlm.models.layer_hooks import (
    INSERT_DATA,
    LAYOUT,
    Layout,
    check_depth,
    checkpoint_layers,
    laid_out,
    trim_last_layer,
)
from vlm.models.llm.attention import ATTENTION, OWN_ATTENTION, plain_attention_of, register_attention, seeing
from vlm.models.llm.fitness import check_fitness, decoder_layers, passes_more
from vlm.models.llm.gguf import read_gguf_config
from vlm.models.llm.gguf_header import is_gguf
from vlm.models.llm.head import logits_of, prepare_head
from vlm.models.llm.headed import causal_class
from vlm.models.llm.norms import shorten_norms
from vlm.models.llm.packing import apart, axes_first, base_of, can_pack, pack, position_axes, uses_interface
from vlm.models.llm.slots import SlotLayout
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.loss import head_loss
from vlm.models.quantized.options import QuantizeOptions

FOLDERS = ("text_encoder",)
"""Subfolders in which a model saved in parts keeps its language model."""


@register_llm("hf")
class HFCausalLM(nn.Module):
    """A causal LM that computes logits only at supervised positions.

    State-dict keys: ``model.*``, Hugging Face's own names.
    """

    @dataclass
    class Config:
        """Options of ``llm: {name: hf}``.

        ``path`` is a folder with config.json (or with the language model in ``text_encoder/``), or a GGUF file;
        ``config`` writes its content out instead (model_type and sizes). ``vocab_size`` overrides the rows of
        embeddings and head, and unties them: a larger number makes room for added tokens, whose rows are random or,
        with ``new_rows: mean``, the mean over the file's (a published rule for a pad token). ``banned_ids`` are never
        generated, such as added tokens whose row of the head is in no file (that row is zero then). ``quantize`` is
        for frozen weights: ``nf4`` (4 bit, through bitsandbytes) for answers and for training LoRA on a CPU or GPU;
        ``int8`` likewise in a run; for answers it goes through torch on a CPU (needs AVX512-VNNI, else the weights are
        stored in bf16; head included), and through bitsandbytes on a GPU; ``bf16`` on a CPU stores the linear layers
        so, faster with AVX512-BF16, and leaves all else as it is (for answers only). ``quantize_options``: see
        :class:`~vlm.models.quantized.options.QuantizeOptions`.
        ``quantize_images`` with ``int8`` on a CPU: the frozen layers of vision encoder and bridges are in int8, too.

        Example: ``llm: {name: hf, path: /models/llama-2-7b, dtype: bf16}``
        """

        path: str | None = None
        config: dict[str, Any] | None = None
        vocab_size: Count | None = None
        new_rows: Literal["random", "mean"] = "random"  # of tokens that no file has (vocab_size)
        dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
        label_smoothing: Dropout = 0.0
        lora: LoraOptions | None = None
        quantize: Literal["int8", "bf16", "nf4"] | None = None
        quantize_images: bool = False
        quantize_options: QuantizeOptions = field(default_factory=QuantizeOptions)
        checkpointing: bool = False
        packing: bool = True
        banned_ids: list[Natural] = field(default_factory=list)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        register_attention()
        hf_config = read_config(config)
        configs = (hf_config, hf_config.get_text_config())
        check_depth(configs[1].num_hidden_layers, "model.llm")
        self.tied: bool = any(getattr(each, "tie_word_embeddings", False) for each in configs)
        if config.vocab_size is not None:
            configs[1].vocab_size = config.vocab_size
            configs[0].tie_word_embeddings = configs[1].tie_word_embeddings = False
        family = causal_class(hf_config)
        dtype = torch.get_default_dtype()
        self.model = family._from_config(hf_config, attn_implementation=_attention(family, hf_config), dtype=dtype)
        shares_rows = check_fitness(self.model, hf_config)
        self.hidden_size: int = self.model.get_input_embeddings().embedding_dim
        self.vocab_size: int = self.model.get_input_embeddings().num_embeddings
        if min(self.hidden_size, self.vocab_size) < 1:
            raise ConfigError(f"model.llm: an LLM of width {self.hidden_size} with {self.vocab_size} tokens")
        self.banned_ids: tuple[int, ...] = tuple(config.banned_ids)
        if self.banned_ids and not 0 <= min(self.banned_ids) <= max(self.banned_ids) < self.vocab_size:
            raise ConfigError(f"model.llm.banned_ids: {config.banned_ids}, allowed: 0 to {self.vocab_size - 1}")
        if config.lora is not None:
            inject_lora(self.model, config.lora)
        self.opens_blocks: bool = uses_interface(self.model)
        self.position_axes: int = position_axes(self.model)
        self.packs: bool = config.packing and shares_rows and can_pack(self.model)
        self.passes_more = passes_more(base_of(self.model).forward)
        self.plain_head = prepare_head(self.model)
        trim_last_layer(self.layers())
        self._short_norms = False
        if config.checkpointing:
            checkpoint_layers(self.layers())

    def written_out(self) -> Config:
        """See :class:`~vlm.models.protocols.WritesOut`. Nothing is read later, so that nothing is quantised either."""
        return replace(
            self.config,
            path=None,
            config=written(self.model.config),
            vocab_size=None,
            quantize=None,
            quantize_images=False,
            quantize_options=QuantizeOptions(),
        )

    def layers(self) -> Any:
        """The decoder layers, for inserts and checkpointing."""
        return decoder_layers(self.model)

    def checkpointable_modules(self) -> list[nn.Module]:
        """The layers to recompute in the backward pass when the runner asks for it."""
        return list(self.layers())

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[..., d]`` of ``ids [...]``."""
        return self.model.get_input_embeddings()(ids)

    def forward(self, inputs: LLMInputs, keep: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm: ``[b, L, d]``, or ``[t, d]`` where ``keep [b, L]`` is True."""
        if self.packs and (inputs.packed or keep is not None):
            return self._in_one_row(inputs, keep)
        if inputs.packed:
            hidden = self._apart(inputs)
        else:
            mask, blocks = inputs.attention_mask, inputs.blocks
            hidden = self._base(inputs.inputs_embeds, inputs.position_ids, mask, inputs.inserts, blocks)
        return hidden if keep is None else hidden[keep]

    def _base(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor,
        inserts: InsertData | None,
        blocks: Tensor | None,
        layout: Layout | SlotLayout | None = None,
    ) -> Tensor:
        """Hidden states ``[b, L, d]`` of the transformers model."""
        if positions.dim() == 3 and positions.shape[-1] != self.position_axes:
            found = f"positions of {positions.shape[-1]} axes, but the LLM has rotary positions of {self.position_axes}"
            raise ConfigError(f"model.fusion: {found}", fix="set model.fusion.positions to text")
        with seeing(blocks, type(self.model).__name__):
            return base_of(self.model)(
                inputs_embeds=embeds,
                position_ids=axes_first(positions),
                attention_mask=mask,
                use_cache=False,
                **({} if inserts is None else {INSERT_DATA: inserts}),
                **({} if layout is None or not self.passes_more else {LAYOUT: layout}),
            )[0]

    def lengthen(self, embeds: Tensor, positions: Tensor, inserts: InsertData | None, layout: SlotLayout) -> Tensor:
        """Hidden states ``[t, d]`` at ``layout.keep`` of the next tokens of several rows, see ``SlotLayout``.

        Args:
            embeds: ``[T, d]``, row after row.
            positions: ``[T]`` or ``[T, axes]``.
            inserts: data of the inserts, ``tokens [1, T, ...]``.
            layout: which rows they lengthen.
        """
        if not self._short_norms:  # the weights are there by now
            self._short_norms = True
            shorten_norms(self.model)
        with laid_out(layout):
            mask = torch.ones_like(positions.flatten(1)[:, 0] if positions.dim() > 1 else positions)
            hidden = self._base(embeds[None], positions[None], mask[None], inserts, None, layout)[0]
        return hidden if layout.keep is None else hidden.index_select(0, layout.keep)

    def _in_one_row(self, inputs: LLMInputs, keep: Tensor | None) -> Tensor:
        """As :meth:`forward`: nothing is computed at padding, and no last MLP where nothing is read."""
        index, layout = pack(inputs.segments)
        if keep is not None:
            layout.keep = keep.flatten()[index].nonzero()[:, 0]
        with laid_out(layout):
            hidden = self._base(
                inputs.inputs_embeds.flatten(0, 1).index_select(0, index)[None],
                inputs.position_ids.flatten(0, 1)[index][None],
                torch.ones_like(index)[None],
                inputs.inserts and inputs.inserts.flat(index),
                None if inputs.blocks is None else layout.spread(inputs.blocks.flatten()[index]),
                layout,
            )[0]
        if layout.calls != len(self.layers()):  # some layer has attention of its own and saw one long sample
            self.packs = False
            return self.forward(inputs, keep)
        if layout.keep is not None:
            return hidden.index_select(0, layout.keep)
        return _placed(hidden, index, inputs)

    def _apart(self, inputs: LLMInputs) -> Tensor:
        """``[b, L, d]``, each sample of a packed row on its own."""
        found, places = [], []
        for index, real in apart(inputs.segments):

            def own(value: Tensor, index: Tensor = index) -> Tensor:
                return value.flatten(0, 1)[index]

            def kept(value: Tensor, index: Tensor = index, real: Tensor = real) -> Tensor:
                return own(value, index) * real.view(*real.shape, *[1] * (value.dim() - 2))

            inserts, blocks = inputs.inserts and inputs.inserts.moved(own), inputs.blocks
            rows, positions = kept(inputs.inputs_embeds), kept(inputs.position_ids)
            blocks = None if blocks is None else kept(blocks)
            found.append(self._base(rows, positions, real.long(), inserts, blocks)[real])
            places.append(index[real])
        return _placed(torch.cat(found), torch.cat(places), inputs)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., vocab]`` of hidden states, with what the model's family adds (scaling, soft cap)."""
        if self.plain_head:
            return self.model.get_output_embeddings()(hidden)
        width = hidden.shape[-1]
        return logits_of(self.model, hidden.reshape(1, -1, width))[0].unflatten(0, hidden.shape[:-1])

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed float32 cross entropy of ``hidden [t, d]`` against ``targets [t]``."""
        smoothing, head = self.config.label_smoothing, self.model.get_output_embeddings()
        plain = self.plain_head and type(head) is nn.Linear and "forward" not in vars(head)
        return head_loss(head if plain else self.head, hidden, targets, plain=plain, smoothing=smoothing)


def _placed(hidden: Tensor, index: Tensor, inputs: LLMInputs) -> Tensor:
    """``hidden [T, d]`` at the places ``index [T]`` of ``[b * L]`` -> ``[b, L, d]``, zero elsewhere."""
    rows = hidden.new_zeros(inputs.segments.numel(), hidden.shape[-1])
    return rows.index_copy(0, index, hidden).unflatten(0, inputs.segments.shape)


def _attention(family: type, config: Any) -> str:
    """The attention of a transformers class: ours by SDPA or, where that computes something else, by its own function.

    Without transformers' attention interface: its own SDPA, else the plain one.
    """
    by_sdpa = getattr(family, "_supports_sdpa", False) and not getattr(config, "attn_logit_softcapping", None)
    if not getattr(family, "_supports_attention_backend", False):
        return "sdpa" if by_sdpa else "eager"
    if by_sdpa:
        return ATTENTION
    return "eager" if plain_attention_of(family) is None else OWN_ATTENTION


def read_config(config: HFCausalLM.Config) -> Any:
    """The transformers configuration of ``config.path`` or ``config.config``.

    Raises:
        ConfigError: neither or both given, or an unknown ``model_type``.
        WeightsError: the folder has no config.json, or the GGUF file cannot be read.
    """
    if config.path is not None and config.config is None and is_gguf(config.path):
        return read_gguf_config(config.path)
    return read_hf_config(config.path, config.config, "model.llm", "language model", FOLDERS)
