"""Small models of every kind that an engine may meet, each with questions that it answers differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Images

from tests.golden.helpers_lynx import LynxCase
from tests.golden.helpers_mmgpt import MmgptCase
from tests.golden.helpers_visualcla import VisualCLACase
from tests.golden.installed import paligemma, qwen2_vl
from tests.inference.small import write_config
from vlm.common.types import Image, Message, Text
from vlm.config.api import load_config
from vlm.config.run import Serving
from vlm.config.types import Config
from vlm.inference.engine import Engine
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import composition, tiny_engine

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = GOLDEN / "minigpt4" / "open" / "llm"
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # random weights that still have an opinion
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # with tied ones a random model repeats its last token
}


def family(model_type: str, **sizes: Any) -> Callable[[Path], Engine]:
    """A random language model of a family behind a vision encoder that sees colours."""

    def make(folder: Path) -> Engine:
        engine = tiny_engine(WORDS, Vicuna0(Vicuna0.Config()), **SMALL, model_type=model_type, **sizes)
        with torch.no_grad():
            engine.model.vision.lift.weight.mul_(10)  # so that it matters what is seen
        return engine

    return make


def multimodal_gpt(folder: Path) -> Engine:
    case = MmgptCase(GOLDEN / "mmgpt" / "open")
    return Engine(case.load(), case.processor, config=case.composition())


def open_flamingo(folder: Path) -> Engine:
    """Its first release, over the recorded files without LoRA."""
    full = MmgptCase(GOLDEN / "mmgpt" / "open").composition(lora="").resolved["model"]
    files = {"clip_path": "clip/clip.safetensors", "lm_path": "llama"}
    files["pretrained_path"] = "OpenFlamingo-9B/checkpoint.pt"
    model: dict[str, Any] = {"arch": "open_flamingo", "model_type": "v1_9b"}
    model |= {key: str(GOLDEN / "mmgpt" / "open" / path) for key, path in files.items()}
    model |= {"vision": {"config": full["vision"]["config"]}, "bridge": full["bridge"]}
    model["inserts"] = [{k: v for k, v in full["inserts"][0].items() if k != "lora"}]
    model |= {"fusion": {"image_token_id": 451}, "image": {"size": full["image"]["size"]}}
    model["llm"] = {"vocab_size": 453, "banned_ids": [450, 451, 452]}
    return Engine.load(load_config({"model": model}, check="none"), "cpu", allow_random=True)


def saved(build: Callable[[Path], None]) -> Callable[[Path], Engine]:
    """A folder of transformers, read as one of its architectures."""

    def make(folder: Path) -> Engine:
        build(folder)
        return Engine.load(folder, "cpu")

    return make


@dataclass(frozen=True)
class Subject:
    """How to make an engine, and how many images its conversations may have at most."""

    make: Callable[[Path], Engine]
    images: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    runs_alone: bool = False  # its rows cannot share a step
    whole: bool = False  # all of a prompt sees all of it, so that no part of it can be kept


WINDOW = {"sliding_window": 40, "num_key_value_heads": 2, "head_dim": 8}
SUBJECTS: dict[str, Subject] = {
    "MiniGPT-4": Subject(lambda folder: Engine.load(write_config(folder), "cpu")),
    "Multimodal-GPT": Subject(multimodal_gpt),
    "OpenFlamingo": Subject(open_flamingo),
    "VisualCLA": Subject(lambda f: Engine.load(VisualCLACase(GOLDEN / "visualcla" / "open").composition(), "cpu"), 1),
    "Lynx": Subject(lambda folder: Engine.load(LynxCase(GOLDEN / "lynx" / "open").shipped(), "cpu"), 1),
    "llama": Subject(family("llama")),
    "qwen2 with grouped queries": Subject(family("qwen2", num_key_value_heads=2)),
    "gpt2": Subject(family("gpt2", n_positions=512)),
    "opt": Subject(family("opt", ffn_dim=40, word_embed_proj_dim=32)),
    "mistral": Subject(family("mistral", **WINDOW)),
    "gemma2": Subject(family("gemma2", attn_logit_softcapping=3.0, query_pre_attn_scalar=8, **WINDOW)),
    "gemma3": Subject(
        family("gemma3_text", query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"], **WINDOW)
    ),
    "gpt_oss": Subject(
        family(
            "gpt_oss",  # with sinks, and experts
            layer_types=["sliding_attention", "full_attention"],
            num_local_experts=4,
            num_experts_per_tok=2,
            **WINDOW,
        )
    ),
    "mamba": Subject(family("mamba", state_size=8), runs_alone=True),
    "PaliGemma": Subject(saved(paligemma.build), options={"repetition_penalty": 1.7}, whole=True),
    "PaliGemma 2": Subject(saved(paligemma.build_second), options={"repetition_penalty": 3.0}, whole=True),
    "Qwen2-VL": Subject(saved(qwen2_vl.build)),
}

QUICK = ("OpenFlamingo", "llama", "gpt2", "mistral", "gemma2", "mamba", "PaliGemma", "Qwen2-VL")
"""Those that are tried whenever the tests run; the others take their turn with the heavy ones."""


def picture(number: int) -> Image:
    """Blots of colour, each number another image."""
    colours = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image(Images.fromarray(colours).resize((48, 48), Images.Resampling.NEAREST))


def ask(text: str, *images: int) -> list[Message]:
    """One question about images by number."""
    return [Message("user", (*(picture(number) for number in images), Text(text)))]


LONG = "It was taken on a rainy day near the old harbour, and nobody knows who is standing there. "


def questions(most: int = 2) -> list[list[Message]]:
    """Seven questions of different length, with up to ``most`` images."""
    asked = [
        ("What is in the image?", (2,)),
        ("Is there a dog? " + LONG, (1,)),
        ("Compare them.", (3, 4)),
        ("No image here.", ()),
        (LONG + LONG + "Why?", (5, 3)),
        ("What is in the image?", (7,)),
        ("Tell me a story. " + LONG, ()),
    ]
    return [ask(text, *images[:most]) for text, images in asked]


def again(engine: Engine, **serving: Any) -> Engine:
    """The same weights in an engine of its own, with nothing remembered; ``serving`` changes ``run.serving``."""
    config = engine.config or Config(model=composition())
    config = replace(config, run=replace(config.run, serving=Serving(**serving)))
    return Engine(engine.model, engine.processor, config=config, device=engine.device)


def distinct(rows: Sequence[Sequence[int]], least: int = 8) -> bool:
    """Whether answers are long enough, and different, so that a mix-up would show."""
    return all(len(row) >= least for row in rows) and len({tuple(row) for row in rows}) == len(rows)
