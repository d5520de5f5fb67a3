"""A complete small composition on disk: the published case's weight files, written out as one YAML file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

CASE = Path(__file__).parents[1] / "golden" / "minigpt4" / "open"


def write_config(folder: Path, **run: object) -> Path:
    """Write ``small.yaml`` into ``folder``; the model is MiniGPT-4 at 42 pixels with random weights."""
    sizes = json.loads((CASE / "config.json").read_text())
    vision, qformer = sizes["vision"], sizes["qformer"]
    model = {
        "vision": {
            "name": "eva_vit",
            "image_size": vision["img_size"],
            **{k: vision[k] for k in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")},
            "precision": "fp32",
        },
        "bridge": [
            {
                "name": "qformer",
                "num_query_tokens": qformer["num_query_token"],
                **{
                    k: qformer[k]
                    for k in (
                        "hidden_size",
                        "num_hidden_layers",
                        "num_attention_heads",
                        "intermediate_size",
                        "cross_attention_freq",
                    )
                },
            },
            {"name": "linear"},
        ],
        "fusion": {"name": "splice"},
        "llm": {"name": "hf", "path": str(CASE / "llm"), "dtype": "fp32"},
        "template": "vicuna0",
        "image": {"size": vision["img_size"]},
        "train": {"bridge.1.*": True},
        "weights": [
            {"format": "eva", "path": str(CASE / "eva_vit_g.pth"), "into": "vision"},
            {"format": "blip2_qformer", "path": str(CASE / "blip2_pretrained_flant5xxl.pth")},
            {"format": "hf_llm", "path": str(CASE / "llm"), "into": "llm"},
            {"format": "trained", "path": str(CASE / "checkpoint.pth")},
        ],
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({"model": model, "run": {"device": "cpu", **run}}), encoding="utf-8")
    return file
