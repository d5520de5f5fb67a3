"""Quantised layers in an LLM that is about to be filled, so that no more than one full matrix is held at a time."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.lora import is_lora
from vlm.models.quantized.layers import KINDS, QuantisedLinear
from vlm.models.quantized.options import QuantizeOptions

log = logging.getLogger(__name__)

Place = tuple[nn.Module, str]
"""A module, and the attribute of it that is a linear layer."""


def linears(root: nn.Module) -> list[tuple[nn.Module, str, nn.Linear, str]]:
    """(module, attribute, layer, name) of the plain linear layers below ``root``, except LoRA's."""
    return [
        (module, child_name, child, f"{name}.{child_name}".lstrip("."))
        for name, module in root.named_modules()
        for child_name, child in module.named_children()
        if type(child) is nn.Linear and not is_lora(f".{name}.{child_name}")
    ]


def choose(llm: Any, mode: str, options: QuantizeOptions) -> list[tuple[nn.Module, str, str]]:
    """The decoder's linear layers that are quantised, but not the head.

    Args:
        llm: an ``HFCausalLM``.
        mode: ``nf4`` or ``int8``.
        options: what is skipped, among others.

    Returns:
        Module, attribute of it, and name within the decoder, whether LoRA wraps the layer or not.

    Raises:
        ConfigError: no layer is left; a glob that selects nothing.
    """
    every = linears(llm.model.base_model)
    found = [(parent, to, plain_name(name)) for parent, to, layer, name in every if KINDS[mode].takes(layer, options)]
    _check_globs(options.skip, [plain_name(name) for _, _, _, name in every])
    chosen = [place for place in found if not any(fnmatch.fnmatchcase(place[2], glob) for glob in options.skip)]
    if not chosen:
        least = "that can be divided into blocks" if every else "in its decoder"
        what = "all of them are skipped" if found else f"{type(llm.model).__name__} has none {least}"
        raise ConfigError(
            f"model.llm.quantize: no linear layer to quantise ({what})", fix="set model.llm.quantize=null"
        )
    if others := len(every) - len(found):
        log.info("model.llm.quantize: %d layers of other widths than %s takes stay as they are", others, mode)
    return chosen


def place_layers(llm: Any, mode: str, options: QuantizeOptions, device: torch.device) -> dict[str, QuantisedLinear]:
    """Put empty quantised layers in place of those that :func:`choose` gives. The matrices are released.

    Args:
        llm: an ``HFCausalLM`` whose trainable parameters are chosen.
        mode: ``nf4`` or ``int8``.
        options: what is skipped, among others.
        device: where the weights are quantised.

    Returns:
        Name within the decoder -> layer.

    Raises:
        ConfigError: as :func:`choose`; or a layer whose weights train.
    """
    chosen = choose(llm, mode, options)
    trained = [name for parent, to, name in chosen if getattr(parent, to).weight.requires_grad]
    if trained:
        more = f" and {len(trained) - 1} more" if len(trained) > 1 else ""
        raise ConfigError(
            f"model.llm.quantize: {mode}, but model.train trains the weights of {trained[0]}{more} themselves",
            fix="train llm.lora instead, set model.llm.quantize=null, or add the layers to quantize_options.skip",
        )
    made = {}
    for parent, to, name in chosen:
        made[name] = KINDS[mode](getattr(parent, to), options, device)
        setattr(parent, to, made[name])
    return made


def plain_name(name: str) -> str:
    """The name of a layer, whether LoRA wraps it or not."""
    return name.removesuffix(".base_layer")


def fill_rest(layers: Collection[QuantisedLinear]) -> None:
    """Quantise what no file has filled, from its random values, and say what there is now."""
    for layer in layers:
        if not layer.filled:
            layer.fill()
    report(list(layers))


def report(layers: list[QuantisedLinear]) -> None:
    """A line in the log: how many layers, in what, and how large."""
    before = sum(layer.in_features * layer.out_features for layer in layers) * 2
    after = sum(tensor.nbytes for layer in layers for tensor in layer.tensors().values())
    told = (len(layers), layers[0].mode, before / 2**20, after / 2**20)
    log.info("model.llm.quantize: %d layers in %s, %.1f MiB in 16 bits -> %.1f MiB", *told)


def _check_globs(globs: list[str], names: list[str]) -> None:
    for glob in globs:
        if not fnmatch.filter(names, glob):
            near = difflib.get_close_matches(glob.strip("*."), names, n=3, cutoff=0.3) or names[:3]
            raise ConfigError(
                f"model.llm.quantize_options.skip: {glob!r} selects no linear layer of the decoder",
                fix=f"names are such as {', '.join(near)}",
            )
