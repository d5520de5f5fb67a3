"""Two runs of one small model that trained nothing but LoRA, each with numbers of its own."""

from __future__ import annotations

from pathlib import Path

from ..equivalence.tiny import DATA, Tiny

IMAGE = DATA / "data" / "cc_sbu_align" / "image"


def two_runs(folder: Path) -> list[Path]:
    """``a`` and ``b`` below ``folder``."""
    tiny = Tiny(folder)
    text = tiny.config.read_text().replace('train: ["bridge.1.*", "llm.lora"]', 'train: ["llm.lora"]')
    text = text.replace("- {format: hf_llm", "- {format: random, into: bridge.1}\n    - {format: hf_llm")
    tiny.config.write_text(text)
    for name, rate in {"a": 0.3, "b": 0.1}.items():
        tiny.train(name, max_steps=3, save_freq=0, val_freq=0, init_lr=rate)
    return [folder / "a", folder / "b"]
