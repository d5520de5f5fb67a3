"""What :mod:`vlm.models.vision.hf` has to know about a vision tower of transformers, found by looking at it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vlm.common.errors import ConfigError
from vlm.models.hf.config import read_hf_config
from vlm.models.layer_hooks import check_depth
from vlm.models.vision.clip import FOLDERS

NORMS = ("post_layernorm", "final_layernorm", "layernorm", "layer_norm", "rms_norm", "norm")
"""Names of the norm after the last block."""
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
OTHER_TOKENS = ("register_tokens", "distillation_token")
"""Parameters of the tokens that stand before the patches."""
HEADS = ("vision_use_head", "use_head", "use_mask_token")
"""Options of configurations that add modules whose output nothing here reads."""
POOLING = "add_pooling_layer"
"""The same as an argument of the class."""
MASK = "mask_token"
PIXELS, SHAPES, REAL = "pixel_values", "spatial_shapes", "pixel_attention_mask"
"""Arguments of ``forward``; with ``SHAPES`` it takes patches ``[n, v, patch * patch * 3]``."""
ASKED = "interpolate_pos_encoding"
"""Argument of ``forward``, or method of the embeddings, that fits the positions to the image."""
WORKS = "SigLIP, SigLIP 2, DINOv2, DINOv3 (ViT), CLIP, InternViT, AIMv2, ViT, DeiT, Pixtral and towers built like them"


@dataclass(frozen=True)
class Tower:
    """Facts about a tower.

    Attributes:
        patch: side of a patch in pixels.
        size: side of the image that it was made for.
        width: of its tokens.
        blocks: name of the list of its blocks.
        norm: name of the norm after the last block, or None.
        cls: class tokens, which stand first.
        others: register and distillation tokens, which follow.
        sizes: which images it takes: of its own size, others too if asked for, or any.
        patches: whether it takes patches instead of images.
    """

    patch: int
    size: int
    width: int
    blocks: str
    norm: str | None
    cls: int
    others: int
    sizes: Literal["own", "asked", "any"]
    patches: bool


def read_config(path: str | None, sizes: dict[str, Any] | None, part: str) -> Any:
    """The configuration of a tower, or of the tower within a larger model; errors: :func:`read_hf_config`."""
    config = read_hf_config(path, sizes, part, "vision tower", FOLDERS)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    return config


def build_tower(config: Any, depth: int, part: str) -> tuple[Any, Tower]:
    """The first ``depth`` blocks of a tower with random weights, without pooling head; and the facts about it.

    Raises ConfigError: it is not a stack of blocks over patches, or transformers does not know its class.
    """
    cls = class_of(config, part)
    config.num_hidden_layers = depth
    for name in HEADS:
        setattr(config, name, False)
    options = {POOLING: False} if POOLING in inspect.signature(cls.__init__).parameters else {}
    model = cls(config, **options)
    for module in model.modules():
        if MASK in module._parameters:
            module.register_parameter(MASK, None)  # of pretraining: a parameter that gets no gradient
    return model, examine(model, config, part)


def class_of(config: Any, part: str) -> Any:
    """transformers' class of a tower; some that only occur in larger models are not in its list of models.

    Raises ConfigError: it has none that takes just images.
    """
    from transformers import AutoModel, PreTrainedModel

    listed = type(config) in AutoModel._model_mapping
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    classes = [AutoModel._model_mapping[type(config)]] if listed else list(vars(module).values())
    models = [c for c in classes if isinstance(c, type) and issubclass(c, PreTrainedModel)]
    for cls in models:
        arguments = inspect.signature(cls.forward).parameters
        needed = {name for name, p in arguments.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        takes = PIXELS in arguments and not needed - {"self", PIXELS, SHAPES, REAL}
        if takes and (listed or cls.config_class is type(config)):
            return cls
    raise unsupported(part, config.model_type, "transformers has no model of it that takes just images")


def depth_of(config: Any, part: str) -> int:
    """Number of blocks of the whole tower. Raises ConfigError: not a stack of blocks, or an absurd number."""
    if not hasattr(config, "num_hidden_layers"):
        raise unsupported(part, config.model_type, "its configuration states no num_hidden_layers")
    check_depth(config.num_hidden_layers, part)
    return config.num_hidden_layers


def examine(model: Any, config: Any, part: str) -> Tower:
    """The facts about a tower. Raises ConfigError: it is not a stack of blocks over the patches of an image."""
    arguments = inspect.signature(model.forward).parameters
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    equal = [name for name, m in lists.items() if len(m) == config.num_hidden_layers and len(set(map(type, m))) == 1]
    blocks = [name for name in equal if not any(inner.startswith(f"{name}.") for inner in lists)]  # else: stages
    patch = _side(getattr(config, "patch_size", None))
    if not blocks or patch is None or not hasattr(config, "hidden_size"):
        raise unsupported(part, config.model_type, "it is not a stack of equal blocks over square patches")
    own, children = _side(getattr(config, "image_size", None)), dict(model.named_children())
    if own is None and not hasattr(config, "num_patches"):
        raise unsupported(part, config.model_type, "its images are not square")
    outside = {n: p for n, p in model.named_parameters() if not n.startswith(f"{blocks[0]}.")}
    return Tower(
        patch=patch,
        size=own or round(config.num_patches**0.5) * patch,
        width=config.hidden_size,
        blocks=blocks[0],
        norm=next((name for name in NORMS if name in children), None),
        cls=_tokens(outside, CLASS_TOKENS),
        others=_tokens(outside, OTHER_TOKENS),
        sizes=_sizes(model, arguments, outside),
        patches=SHAPES in arguments,
    )


def unsupported(part: str, kind: Any, why: str) -> ConfigError:
    """The error about a model that is not a tower for this part."""
    fix = f"hf_vision runs {WORKS}; convolutional and window networks: {{name: timm}}"
    return ConfigError(f"{part}: a {kind} is not a vision tower that hf_vision can run ({why})", fix=fix)


def _sizes(model: Any, arguments: Any, outside: dict[str, Any]) -> Literal["own", "asked", "any"]:
    if ASKED in arguments:
        return "asked"
    fits = any(hasattr(module, ASKED) for module in model.modules())
    given = {SHAPES, "patch_attention_mask"} & set(arguments)  # positions are computed from the shape
    learned = any(re.search("pos(ition)?_embed", name) for name in outside)
    return "any" if fits or given or not learned else "own"


def _tokens(parameters: dict[str, Any], names: Sequence[str]) -> int:
    """Tokens that the parameters of these names hold: ``[d]`` or ``[..., tokens, d]``."""
    found = [p for name, p in parameters.items() if name.rpartition(".")[2] in names]
    return sum(p.shape[-2] if p.dim() > 1 else 1 for p in found)


def _side(size: Any) -> int | None:
    """``size`` of a square: a number, or two equal ones."""
    sides = [size] if isinstance(size, int) else list(size or ())
    return sides[0] if len(set(sides)) == 1 else None
