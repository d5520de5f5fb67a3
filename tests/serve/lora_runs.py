"""Run folders of one small model that differ in their LoRA, as training would have written them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vlm.checkpoint.load import load_model
from vlm.checkpoint.provenance import fingerprint, make_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.config.tree import to_yaml

from ..equivalence.tiny import Tiny

NORM = "llm.model.model.norm.weight"


def lora_run(folder: Path, name: str, seed: int, more: Sequence[str] = ()) -> Path:
    """The run ``name`` below ``folder``; it trained LoRA of the LLM, and the parameters of the LLM in ``more``."""
    tiny = Tiny(folder)
    train = ", ".join(f'"{key}"' for key in ("llm.lora", *more))
    text = tiny.config.read_text().replace('train: ["bridge.1.*", "llm.lora"]', f"train: [{train}]")
    tiny.config.write_text(
        text.replace("- {format: hf_llm", "- {format: random, into: bridge.1}\n    - {format: hf_llm")
    )
    config = tiny.load(name)
    torch.manual_seed(0)
    model = load_model(config, device="cpu")
    torch.manual_seed(seed)
    trained = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
    kept = {n: p.detach() for n, p in model.named_parameters() if n in model.random and not p.requires_grad}
    run = RunDir(folder / name)
    run.prepare()
    run.write_config(to_yaml(config.resolved))
    provenance = make_provenance(step=1, config=config.resolved, fingerprints=fingerprint(model))
    run.save(1, {**kept, **trained}, {}, provenance, to_yaml(config.resolved))
    return run.path
