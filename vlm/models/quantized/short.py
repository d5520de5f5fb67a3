"""Int8 and bf16 on a CPU through torch, for answers. No gradient passes.

The head is stored so too, where it is a large share of what a token reads from memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm.models.fusion.base import LLMInputs
from vlm.models.inserts.base import InsertData
from vlm.models.layer_hooks import hooks_of
from vlm.models.llm.linear import bf16, int8
from vlm.models.llm.linear.bf16 import Bf16Linear
from vlm.models.llm.linear.frozen import wide
from vlm.models.llm.linear.int8 import Int8Linear
from vlm.models.llm.linear.joined import Joined, JoinedPart, find_siblings, one_layer
from vlm.models.lora import is_lora
from vlm.models.precision import autocast
from vlm.models.quantized.place import Place, linears

log = logging.getLogger(__name__)


def on_cpu(llm: Any, mode: str) -> torch.dtype | None:
    """Layers with int8 weights, else with packed bf16 weights, where they pass their test; else an LLM in bf16."""
    groups = _siblings(llm)
    head = llm.model.get_output_embeddings()
    which = "head included" if any(getattr(*group[0]) is head for group in groups) else "without the head"
    del head
    some = sorted({0, len(groups) // 2, len(groups) - 1}) if groups else []
    tried = [one_layer([getattr(*place) for place in groups[number]]) for number in some]
    if mode == "int8":
        why = int8.unsupported() or int8.self_test(tried)
        if why is None:
            del tried  # so that each layer's float weights go as it is replaced
            _replace(groups, Int8Linear.of, "int8", which)
            return None
        log.warning("model.llm.quantize: no int8 because %s; the LLM is stored in bf16", why)
    why = bf16.unsupported() or bf16.self_test(tried)
    if why is None:
        del tried
        _replace(groups, Bf16Linear.of, "bf16", which)
        return None
    log.warning("model.llm.quantize: bf16 is not faster here because %s", why)
    return store_bf16(llm)


def store_bf16(llm: Any) -> torch.dtype:
    """Keep all of ``llm`` but LoRA in bfloat16; the dtype that it then computes in."""
    for name, parameter in llm.model.named_parameters():
        if parameter.is_floating_point() and not is_lora(name):
            parameter.data = parameter.data.to(torch.bfloat16)
    return torch.bfloat16


def _siblings(llm: Any) -> list[list[Place]]:
    """The wide linear layers of ``llm``, those that read the same input together."""
    places = {id(layer): (parent, name) for parent, name, layer, _ in linears(llm.model) if wide(layer)}
    layers = [getattr(*place) for place in places.values()]
    groups = [[id(layer) for layer in group] for group in find_siblings(lambda: _one_call(llm), layers)]
    first = {group[0]: group for group in groups}
    later = {key for group in groups for key in group[1:]}
    return [[places[one] for one in first.get(key, [key])] for key in places if key not in later]


def quantize_images(model: Any) -> None:
    """Replace the frozen linear layers of the vision encoder and the bridges of a ``VLM`` by int8 ones, on a CPU.

    Only layers that an image passes are replaced. Where int8 cannot be computed, or no image of noise can be encoded,
    all stay as they are, with a warning.
    """
    places: dict[int, Place] = {}
    for part in (model.vision, *model.bridge) if model.vision is not None else ():
        for module in part.modules():
            if "qkv_bias_separate" in vars(module):  # else timm's attention reads the weight, and calls no layer
                module.qkv_bias_separate = True
        found = [(parent, name) for parent, name, layer, _ in linears(part) if wide(layer)]
        places |= {id(getattr(*place)): place for place in found if not getattr(*place).weight.requires_grad}
    layers = [getattr(*place) for place in places.values()]
    groups = find_siblings(lambda: _one_image(model), layers)
    why = int8.unsupported() or int8.self_test([one_layer(group) for group in groups[:1]])
    if why is None and not groups:
        why = "no image of noise could be encoded"
    if why is not None:
        log.warning("model.llm.quantize_images: no int8 because %s; images are encoded as without it", why)
        return
    named = [[places[id(layer)] for layer in group] for group in groups]
    del groups, layers
    _replace(named, lambda layer: Int8Linear.of(layer, packed=True), "int8", "of images")


def _one_image(model: Any) -> None:
    """Encode noise, of the size that the encoder takes."""
    size = model.vision.image_size
    model.encode(torch.rand(1, 1, 3, size, size, generator=torch.Generator().manual_seed(0)))


def _one_call(llm: Any) -> None:
    """One call of the decoder for two tokens."""
    table = llm.model.get_input_embeddings().weight
    tokens = torch.randn(1, 2, llm.hidden_size, generator=torch.Generator().manual_seed(0)).to(table.dtype)
    ones, place = torch.ones(1, 2, dtype=torch.long), torch.arange(2)[None]
    axes = llm.position_axes
    place = place if axes == 1 else place[..., None].expand(-1, -1, axes)
    inserts = InsertData() if any(hooks_of(layer).inserts for layer in llm.layers()) else None
    with autocast(tokens.device, table.dtype):
        llm(LLMInputs(tokens, ones, place, -100 * ones, inserts=inserts))


def _replace(groups: list[list[Place]], make: Callable[[nn.Linear], nn.Module], kind: str, which: str) -> None:
    """Put short layers where ``groups`` are. Each group's float weights are released before the next one is made."""
    before, after = 0, 0
    for group in groups:
        layers = [getattr(*place) for place in group]
        before += sum(_bytes(layer) for layer in layers)
        made = make(one_layer(layers))
        after += _bytes(made)
        whole = Joined(made, [layer.out_features for layer in layers])
        del layers
        for number, (parent, name) in enumerate(group):
            setattr(parent, name, made if len(group) == 1 else JoinedPart(whole, number))
    told = (sum(map(len, groups)), kind, which, before / 2**20, after / 2**20)
    log.info("model.llm.quantize: %d layers in %s (%s), %.0f -> %.0f MiB", *told)


def _bytes(layer: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False))


def replace_linears(
    root: nn.Module, make: Callable[[nn.Linear], nn.Module], chosen: Callable[[nn.Linear], bool] = lambda _: True
) -> int:
    """Replace every plain linear layer below ``root`` that is ``chosen`` by ``make(layer)``, except LoRA's.

    Returns:
        Their number. Each layer is released before the next is made.
    """
    places = [(parent, name) for parent, name, layer, _ in linears(root) if chosen(layer)]
    for parent, name in places:
        setattr(parent, name, make(getattr(parent, name)))
    return len(places)
