"""Tiny random compositions whose weights stand in a folder, as an export needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.stream import write_shards
from vlm.config.types import Config
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.models.build import build_model
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.models.vision.clip import Clip
from vlm.models.vision.hf import HFVision
from vlm.systems.minigpt4.template import Vicuna0
from vlm.testing import composition, part, weight

TOKENIZER = Path(__file__).resolve().parents[2] / "golden" / "minigpt4" / "open" / "llm"
CLIP = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIP |= {"image_size": 28, "patch_size": 14}
SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
LORA = LoraOptions(r=2, alpha=6, targets=["q_proj", "v_proj"])


def llava(
    folder: Path, *, depth: int = 2, keep_cls: bool = False, lora: bool = False, siglip: bool = False, **llm: Any
) -> Config:
    """CLIP -> one or two linear layers -> a LLM, with files in ``folder``."""
    options = LORA if lora else None
    if siglip:
        sizes = {**CLIP, "model_type": "siglip_vision_model"}
        tower_part = part("hf_vision", HFVision.Config(config=sizes, layer=-2, precision="fp32", lora=options))
    else:
        tower = Clip.Config(config=dict(CLIP), layer=-2, keep_cls=keep_cls, precision="fp32", lora=options)
        tower_part = part("clip", tower)
    sizes = {"model_type": "llama", **SIZES, **llm}
    return saved(
        folder,
        vision=tower_part,
        bridge=[part("mlp", MLP.Config()) if depth == 2 else part("linear", Linear.Config(bias=False))],
        llm=part("hf", HFCausalLM.Config(config=sizes, dtype="fp32", lora=options)),
    )


def saved(folder: Path, **parts: Any) -> Config:
    """A composition of these parts with random weights in ``folder``; every LoRA has an effect."""
    template = part("vicuna0", Vicuna0.Config(system="", chat_form=True))
    whole: dict[str, Any] = {"template": template, "image": {"size": 28}, "train": {"bridge.*": True}}
    whole |= {"text": {"tokenizer": str(TOKENIZER)}, **parts}
    model_cfg = composition(**whole, weights=[weight("whole", folder)])
    torch.manual_seed(0)
    model = build_model(model_cfg)
    state = {name: t.detach() for name, t in model.state_dict().items()}
    for name in [n for n in state if ".lora_B." in n]:
        state[name] = torch.randn_like(state[name]) * 0.2
    tied = {f"llm.model.{name}" for name in model.llm.model.all_tied_weights_keys or ()}
    folder.mkdir(parents=True)
    facts = {name: t for name, t in state.items() if name not in tied}
    write_shards(folder, facts, facts.__getitem__, safetensors=True)
    cfg = Config(model=model_cfg)
    cfg.run.output_dir = str(folder)
    return cfg
