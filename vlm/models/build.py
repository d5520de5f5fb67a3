"""Builds the modules of a checked composition; reads no weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.models.hf.config import CONTRADICTIONS
from vlm.models.precision import cast_matmuls, storage_dtype
from vlm.models.protocols import CountsTokens, ProvidesData, needs_llm_width
from vlm.models.trainable import select_trainable
from vlm.models.vlm import VLM

if TYPE_CHECKING:
    from vlm.config.types import ModelConfig, Part


def build_model(
    model_cfg: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    uninitialised: Collection[str] = (),
    meant_for: torch.device | str | None = None,
) -> VLM:
    """Build a composition in eval mode and choose the parameters that train.

    Args:
        model_cfg: a ``ModelConfig`` (vision, bridge, fusion, inserts, llm, train).
        device: where to build; ``"meta"`` allocates nothing.
        dtype: storage dtype of frozen weights; None: each part's own ``precision`` or ``dtype``.
        uninitialised: parts (``"vision"``, ``"bridge.0"``, ``"inserts.0"``, ``"llm"``) whose weights a file will fill,
            so that their random initialisation is skipped.
        meant_for: the device for which storage types are chosen, if the caller moves the model there.

    Raises:
        ConfigError: parts do not fit together, or a training glob selects nothing.
    """
    device = torch.device(device)
    meant_for = device if meant_for is None else torch.device(meant_for)
    with device:
        vision = None if model_cfg.vision is None else _part("vision", model_cfg.vision, uninitialised)
        with _default_dtype(_llm_dtype(model_cfg, meant_for, dtype)):
            llm: Any = _part("llm", model_cfg.llm, uninitialised)
        bridge, width = _bridges(model_cfg, vision, llm.hidden_size, uninitialised)
        sizes = (llm.hidden_size, len(llm.layers()), width)
        inserts: list[Any] = [
            _part(f"inserts.{index}", part, uninitialised, *sizes) for index, part in enumerate(model_cfg.inserts)
        ]
    model = VLM(vision, bridge, llm, inserts)
    for insert in inserts:
        insert.attach(llm)
    fusion = resolve("fusion", model_cfg.fusion.name)
    check_widths(model, not needs_llm_width(fusion))
    check_inserts(model, model_cfg.fusion.name, fusion.provides if isinstance(fusion, ProvidesData) else ())
    model.fusion = fusion(model_cfg.fusion.config, llm)
    model.eval()
    select_trainable(model, model_cfg.train)
    set_precision(model, model_cfg, dtype, meant_for)
    return model


def build_visual(model_cfg: ModelConfig, llm_width: int, uninitialised: Collection[str] = ()) -> VLM:
    """Vision encoder and bridges alone, for an LLM of this width that runs elsewhere; see :func:`build_model`.

    Raises ConfigError: parts do not fit together.
    """
    vision = None if model_cfg.vision is None else _part("vision", model_cfg.vision, uninitialised)
    return VLM(vision, _bridges(model_cfg, vision, llm_width, uninitialised)[0], nn.Identity()).eval()


def _bridges(
    model_cfg: ModelConfig, vision: Any, llm_width: int, uninitialised: Collection[str]
) -> tuple[list[nn.Module], int | None]:
    """The chain of bridges, and the width of the tokens that leave it."""
    bridge: list[Any] = []
    width = None if vision is None else vision.out_dim
    for index, part in enumerate(model_cfg.bridge):
        bridge.append(_part(f"bridge.{index}", part, uninitialised, width, llm_width))
        width = bridge[-1].out_dim
    return bridge, width


def set_precision(
    model: VLM, model_cfg: ModelConfig, dtype: torch.dtype | None, device: torch.device | None = None
) -> None:
    """Store frozen weights by the policy of :mod:`vlm.models.precision` and choose the autocast dtype.

    ``device``: where the model will be; None: where it is.
    """
    device = device or model.device
    llm = _llm_dtype(model_cfg, device, dtype)
    if model_cfg.vision is not None:
        model.vision_dtype = storage_dtype(model_cfg.vision.get("precision") or "fp32", device, dtype)
        cast_matmuls(model.vision, model.vision_dtype)
    for part in [*model.bridge, *model.inserts]:
        cast_matmuls(part, llm)
    model.compute_dtype = llm


def check_widths(model: VLM, any_width: bool) -> None:
    """Check the chain of bridges.

    Raises ConfigError: the last bridge does not end at the LLM's width, or token counts do not divide.
    """
    if model.vision is None:
        return
    last = model.bridge[-1] if len(model.bridge) else model.vision
    if not any_width and last.out_dim != model.llm.hidden_size:
        raise ConfigError(
            f"model.bridge ends at width {last.out_dim}, but the LLM's width is {model.llm.hidden_size}",
            fix="end the chain with {name: linear}, whose width follows the LLM",
        )
    _ = model.tokens_per_frame


def check_images(model: VLM, image: Part) -> None:
    """Check that the images are those that the vision encoder takes.

    Raises ConfigError: they have another size.
    """
    vision, size = model.vision, image.get("size")
    if vision is None or size is None or (isinstance(vision, CountsTokens) and vision.varies):
        return
    if size != vision.image_size:
        raise ConfigError(
            f"model.image.size is {size}, but the vision encoder takes images of {vision.image_size} x "
            f"{vision.image_size} pixels",
            fix=f"set model.image.size: {vision.image_size}",
        )


def check_positions(model: VLM, text: Part) -> None:
    """Check the number of positions that the text options state for an image; 1, the default, states none.

    Raises ConfigError: the encoder and its bridges give another number.
    """
    stated, given = text.get("tokens_per_medium"), model.visual_tokens()
    if stated not in (None, 1, given):
        raise ConfigError(
            f"model.text.tokens_per_medium is {stated}, but vision and bridge give {given} tokens for an image",
            fix=f"set model.text.tokens_per_medium: {given}",
        )


def check_inserts(model: VLM, fusion: str, provides: Collection[str]) -> None:
    """Check that the fusion provides what the inserts read, and that an insert reads what it provides.

    Raises ConfigError: one is missing.
    """
    for number, insert in enumerate(model.inserts):
        missing = sorted(set(insert.reads) - set(provides))
        if missing:
            raise ConfigError(
                f"model.inserts.{number} reads {', '.join(missing)}, which the fusion {fusion} does not provide",
                fix="gated_xattn goes with fusion: {name: cross_attn}",
            )
    if provides and not any(set(insert.reads) & set(provides) for insert in model.inserts):
        raise ConfigError(
            f"model.fusion {fusion} keeps media outside the sequence, but no part of model.inserts attends to them",
            fix="add inserts: [{name: gated_xattn}]",
        )


def _llm_dtype(model_cfg: ModelConfig, device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    return storage_dtype(model_cfg.llm.get("dtype") or "fp32", device, dtype)


def _part(kind: str, part: Any, uninitialised: Collection[str], *arguments: Any) -> Any:
    cls = resolve(kind.split(".")[0].replace("inserts", "insert"), part.name)
    # drawing 7 billion random numbers that a file then replaces would take minutes
    try:
        with _SkipRandom() if kind in uninitialised else contextlib.nullcontext():
            return cls(part.config, *arguments)
    except torch.OutOfMemoryError:
        raise
    except CONTRADICTIONS as error:
        raise ConfigError(f"model.{kind}: {part.name} cannot be built with these options ({error})") from error


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _SkipRandom(TorchFunctionMode):
    """Leaves tensors as allocated instead of drawing random numbers into them."""

    # by name, because transformers replaces torch's functions by its own
    RANDOM = ("normal_", "uniform_", "trunc_normal_")
    SCALED = ("erfinv_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_")
    SKIPPED = frozenset(RANDOM + SCALED)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.SKIPPED:
            return args[0] if args else kwargs["tensor"]
        if getattr(func, "__name__", "") == "empty_like":  # torch 2.15 draws truncated normals until all are in bounds
            return torch.zeros_like(*args, **kwargs)
        return func(*args, **kwargs)
