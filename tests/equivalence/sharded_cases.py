"""The five shipped compositions at test size, with random weights, and dialogues of which some have no image."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
IMAGE = 28
EVA = {"name": "eva_vit", "image_size": IMAGE, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3}
CLIP = {"patch_size": 14, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
QFORMER = {"num_query_tokens": 3, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
LLAMA |= {"num_attention_heads": 4, "vocab_size": 520, "max_position_embeddings": 256, "bos_token_id": 1}
LINEAR = {"name": "linear"}
SPLICE = {"name": "splice"}


def lora(*targets: str) -> dict[str, Any]:
    """LoRA without dropout, of which every process draws its own."""
    return {"r": 2, "alpha": 4, "dropout": 0.0, "targets": list(targets)}


PERCEIVER = {"name": "perceiver", "depth": 2, "dim_head": 8, "heads": 2, "num_latents": 3, "ff_mult": 2}
LLM_WIDTH = {"width": "llm", "latents_in_keys": False}
GATED = {"name": "gated_xattn", "every": 2, "dim_head": 8, "heads": 2, "ff_mult": 2}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "minigpt4": {
        "vision": EVA,
        "bridge": [{"name": "qformer", **QFORMER, "intermediate_size": 48, "cross_attention_freq": 2}, LINEAR],
        "llm": {"lora": lora("q_proj", "v_proj")},
        "train": ["bridge.1.*", "llm.lora"],
    },
    "lynx": {
        "vision": EVA,
        "bridge": [{"name": "frame_positions", "num_frames": 2}, {**PERCEIVER, **LLM_WIDTH}],
        "inserts": [{"name": "adapter", "every": 2, "bottleneck": 8}],
        "train": ["bridge.*", "inserts.*"],
    },
    "open_flamingo": {
        "vision": {"name": "clip", "config": {**CLIP, "image_size": IMAGE}, "layer": -1, "post_layernorm": False},
        "bridge": [PERCEIVER],
        "fusion": {"name": "cross_attn", "image_token_id": 515},
        "inserts": [{**GATED, "lora": lora("to_q", "to_kv", "to_out", "ff.1", "ff.3")}],
        "llm": {"lora": lora("q_proj", "o_proj")},
        "train": ["bridge.0.*", "inserts.*", "llm.lora", "llm.model.model.embed_tokens.*"],
    },
    "visualcla": {
        "vision": {
            "name": "clip",
            "config": {**CLIP, "image_size": IMAGE},
            "layer": -1,
            "lora": lora("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        },
        "bridge": [{"name": "bert_resampler", **QFORMER, "intermediate_size": 48, **NO_DROPOUT}, LINEAR],
        "llm": {"lora": lora("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
        "train": ["bridge.*", "vision.lora", "llm.lora", "llm.model.model.embed_tokens.*", "llm.model.lm_head.*"],
    },
    "minigpt_v2": {
        "vision": EVA,
        "bridge": [{"name": "concat", "group": 2, "drop_cls": True}, LINEAR],
        "llm": {"lora": lora("q_proj", "v_proj")},
        "train": ["vision.*", "bridge.1.*", "llm.lora"],
    },
}


def write_dialogues(folder: Path) -> Path:
    """Twelve dialogues, every third of them without an image."""
    records = []
    for number in range(12):
        turns = [
            {"from": "human", "value": f"<image>\nWhat is in picture {number}?"},
            {"from": "gpt", "value": f"A box with {number} red balls" + " and one more" * (number % 4) + "."},
        ]
        record: dict[str, Any] = {"id": f"d{number}", "conversations": turns}
        if number % 3 == 2:
            turns[0]["value"] = f"What is {number} and one?"
        else:
            record["image"] = f"{number}.png"
            Image.new("RGB", (40, 40), (20 * number, 255 - 20 * number, 90)).save(folder / record["image"])
        records.append(record)
    file = folder / "dialogues.json"
    file.write_text(json.dumps(records))
    return file


def write_composition(folder: Path, name: str) -> Path:
    """The configuration of one composition; its data must be there."""
    parts = COMPOSITIONS[name]
    llm = {"name": "hf", "config": LLAMA, "dtype": "fp32", **parts.get("llm", {})}
    beside = ["vision", "llm", *(f"bridge.{k}" for k in range(len(parts["bridge"])))]
    beside = [b for b in beside if b != "bridge.0" or parts["bridge"][0]["name"] not in ("concat",)]
    build = {"ann_path": str(folder / "dialogues.json"), "image_path": str(folder)}
    entry = {"dialogues": {"format": "conversation_json", "build_info": build, "batch_size": 2}}
    config = {
        "model": {
            "fusion": SPLICE,
            **parts,
            "llm": llm,
            "template": {"name": "user_bot", "prompt_template": "User: {}\nBot:"},
            "image": {"size": IMAGE},
            "text": {"tokenizer": str(LLM), "max_txt_len": 60, "legacy": True, "pad_token": "<unk>"},
            "weights": [{"format": "random", "into": part} for part in beside],
        },
        "datasets": entry,
        "valid_datasets": entry,
        "run": {
            "task": "image_text_pretrain", "init_lr": 0.01, "warmup_steps": 1, "max_steps": 2, "iters_per_epoch": 100,
            "val_freq": 2, "log_freq": 1, "num_workers": 0, "device": "cpu", "trackers": ["jsonl"], "report": False,
            "max_grad_norm": 0.5, "weight_decay": 0.0, "accum_grad_iters": 2,
        },
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file
