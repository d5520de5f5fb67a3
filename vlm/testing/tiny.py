"""A model of a few thousand random parameters: every kind of part, built as a real one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.common.registry import config_class, resolve
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Features
from vlm.config.types import UNNAMED, Config, ModelConfig, Part, WeightFile
from vlm.inference.engine import Engine
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.build import build_model
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.base import BaseTemplate
from vlm.processors.templates.roles import Plain
from vlm.processors.tokenizer.tokenizer import Tokenizer

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
"""Sizes of the language model."""


def part(name: str, config: Any = None) -> Part:
    """A named part with an instance of its class's ``Config``."""
    return Part(name, config)


def weight(kind: str, path: Path | str | None = None, into: str | None = None) -> WeightFile:
    """An entry of ``model.weights``."""
    return WeightFile(kind, None if path is None else str(path), into)


def composition(**changes: Any) -> ModelConfig:
    """EVA at 28 pixels -> Q-Former (3 queries) -> linear -> LLaMA; the projection trains.

    Args:
        changes: fields of ``ModelConfig`` to replace, e.g. ``llm=part("hf", HFCausalLM.Config(...))``; ``train`` may
            be a list of globs, ``image``, ``video``, ``text`` and ``generation`` plain options.
    """
    whole: dict[str, Any] = {
        "vision": part("eva_vit", EvaViT.Config(image_size=28, embed_dim=16, depth=2, num_heads=2)),
        "bridge": [part("qformer", QFormer.Config(3, 16, 2, 2, 24)), part("linear", Linear.Config())],
        "fusion": part("splice", Splice.Config()),
        "llm": part("hf", HFCausalLM.Config(config=dict(LLAMA))),
        "template": part("plain", Plain.Config()),
        "train": {"bridge.1.*": True},
        "image": {},
        "text": {},
        "generation": {},
        **changes,
    }
    for kind in ("image", "video", "text", "generation"):
        if isinstance(whole.get(kind), dict):
            whole[kind] = Part(UNNAMED[kind], config_class(resolve(kind, UNNAMED[kind]))(**whole[kind]), whole[kind])
    if isinstance(whole["train"], list):
        whole["train"] = dict.fromkeys(whole["train"], True)
    return ModelConfig(**whole)


def tiny_config(**changes: Any) -> Config:
    """:func:`composition` as a whole configuration, for ``load_model`` and the like."""
    return Config(model=composition(**changes))


def tiny_model(**changes: Any) -> VLM:
    """:func:`composition` built with the same random weights each time."""
    torch.manual_seed(0)
    return build_model(composition(**changes))


def tiny_example(before: int, after: int, answer: int, media: int = 1, seed: int = 0, size: int = 28) -> Example:
    """A random training example for :func:`tiny_model`; ``seed`` draws ids and pixels.

    ``before`` ids (besides the begin id), ``media`` images ``[1, 3, size, size]``, each with an id after its
    placeholder, ``after`` ids, and ``answer`` supervised ids.
    """
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, LLAMA["vocab_size"], (before + after + answer,), generator=draw).tolist()
    head = [1, *ids[:before], *[MEDIA_TOKEN, 5] * media, *ids[before : before + after]]
    images = [torch.randn(1, 3, size, size, generator=draw) for _ in range(media)]
    answer_ids = ids[before + after :]
    return Example(head + answer_ids, [IGNORE_INDEX] * len(head) + answer_ids, images, id=f"s{seed}")


class MeanColors(nn.Module):
    """A vision encoder that sees colours: one token for each third of the image, its mean colour.

    Attributes:
        calls: images encoded so far.
    """

    out_dim, image_size, num_tokens, calls = 32, 6, 3, 0

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config
        self.lift = nn.Linear(3, self.out_dim)

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, h, w]`` -> ``[n, f, 3, 32]``."""
        self.calls += len(pixels)
        thirds = pixels.unflatten(-2, (3, -1)).mean(dim=(-1, -2))  # [n, f, 3, 3]
        return Features(self.lift(thirds.transpose(-1, -2)))


def tiny_engine(tokenizer: Path | str, template: BaseTemplate | None = None, **llm: Any) -> Engine:
    """An engine over :class:`MeanColors` and a random LLaMA (``llm``: sizes to replace), enough to decode with.

    ``tokenizer`` is a folder with the files of a tokenizer; the default template is ``plain``.
    """
    torch.manual_seed(0)
    vision, model = MeanColors(), HFCausalLM(HFCausalLM.Config(config={**LLAMA, **llm}))
    whole = VLM(vision, [], model)
    whole.fusion = Splice(Splice.Config(), model)
    recipe = ImageRecipe(ImageRecipe.Config(size=vision.image_size))
    return Engine(whole, Processor(Tokenizer.from_folder(tokenizer), template or Plain(Plain.Config()), recipe))
