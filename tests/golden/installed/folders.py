"""Folders of tiny random models of transformers: weights, a byte-level tokenizer with a chat template, a processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A tiny model of an architecture.

    Attributes:
        name: of the test case.
        build: saves it into a folder.
        features: of transformers' model and its inputs, the vision encoder's tokens that the bridge reads
            ``[t, d]``, all images in order.
        bridged: the same after the bridge, in the order of the LLM's sequence.
        unused: our names of what trains but nothing reads.
    """

    name: str
    build: Callable[[Path], None]
    features: Callable[[Any, Mapping[str, Any]], Tensor]
    bridged: Callable[[Any, Mapping[str, Any]], Tensor]
    unused: frozenset[str] = frozenset()


CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""A chat template with roles, an image as ``<image>`` and a newline, and the end token after an answer."""


def tokenizer(special: Sequence[str] = ("<image>",), chat: str | None = CHAT, begins: bool = False) -> Any:
    """A fast byte-level tokenizer of 256 bytes and these special tokens after ``<s>``, ``</s>`` and ``<pad>``.

    ``begins``: the tokenizer and not the chat template writes ``<s>``.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    inner.add_special_tokens([*names.values(), *special])
    if begins:
        begin = ("<s>", inner.token_to_id("<s>"))
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[begin])
        chat = chat and chat.removeprefix("{{ bos_token }}")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, additional_special_tokens=list(special), chat_template=chat
    )


def save(model: Any, processor: Any, folder: Path, seed: int = 0, scale: float = 1.0) -> None:
    """Save a model with random weights, and its processor.

    Norms and biases become random too: at their initial values they would hide a mistake.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (
            parameter.data + 0.1 * noise if parameter.dim() < 2 else noise * (scale * noise.shape[-1] ** -0.5)
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
