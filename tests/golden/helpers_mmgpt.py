"""A published Multimodal-GPT case folder as the shipped composition, its files and its recorded tensors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.load import load_model
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.vlm import VLM
from vlm.processors.processor import Processor, build_processor
from vlm.testing import RecordedCase


class MmgptCase(RecordedCase):
    """One case folder; sizes come from its config.json only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records, self.texts = self.case["json"], self.case["texts"]
        self.image: int = self.config["token_ids"]["image"]
        self.lora, self.tuned = self._adapters()
        self.clip = next(p for kind in ("safetensors", "pt") for p in sorted((folder / "clip").glob(f"*.{kind}"))).name

    def _adapters(self) -> tuple[str, str]:
        """Names of the adapter file as published and of the trainer's last one, below the case folder."""
        names = [f"lora/{p.name}" for p in sorted((self.folder / "lora").glob("*.pt"))]
        saved = [n for n in names if "/checkpoint_" in n]
        other = [n for n in names if n not in saved and "/two_tensors" not in n and "/final_weights" not in n]
        return other[0] if other else "lora/final_weights.pt", max(saved, key=lambda n: (len(n), n), default="")

    @property
    def unfrozen(self) -> list[str]:
        """Globs of our names for the substrings of published names that train besides LoRA."""
        ours = {"perceiver": "bridge.0", "gated_cross_attn_layer": "inserts.0.layers.*"}
        globs = []
        for text in self.config["tuning_config"]["unfrozen"]:
            for theirs, name in ours.items():
                text = text.replace(theirs, name)
            globs.append(f"*{text}*")
        return globs

    def looking(self) -> dict[str, Any]:
        """Options of the fusion; the published rule for all media never leaves a position without any."""
        immediate = self.config["gated_cross_attention"]["only_attend_immediate_media"]
        return {"image_token_id": self.image, "immediate": immediate, "uniform_when_missing": not immediate}

    def composition(self, lora: str | None = None, clip: str = "", **changes: Any) -> Any:
        """The shipped composition over this folder's files, with its sizes; ``lora`` empty: without adapter file."""
        lora = self.lora if lora is None else lora
        clip_config, vision = self.config["clip_open_clip_config"], self.config["clip_open_clip_config"]["vision_cfg"]
        tuning, gated = self.config["tuning_config"], self.config["gated_cross_attention"]
        perceiver = {k: self.config["perceiver"][k] for k in ("depth", "dim_head", "heads", "num_latents", "ff_mult")}
        perceiver["max_num_frames"] = self.config["perceiver"].get("max_num_frames")
        ids, rows = self.config["token_ids"], self.config["vocab_after_special_tokens"]
        every = self.config["cross_attn_every_n_layers"]
        adapter = {"r": tuning["lora_r"], "alpha": tuning["lora_alpha"], "dropout": tuning["lora_dropout"]}
        inner = ["to_q", "to_kv", "to_out", "ff.1", "ff.3"]
        targets = tuning["lora_target_modules"]
        block = {k: gated[k] for k in ("dim_head", "heads", "ff_mult")}
        model: dict[str, Any] = {
            "arch": "mmgpt",
            "model_type": "open_flamingo_9b_lora",
            "clip_path": str(self.folder / (clip or f"clip/{self.clip}")),
            "lm_path": str(self.folder / "llama"),
            "pretrained_path": str(self.folder / "OpenFlamingo-9B/checkpoint.pt"),
            "finetune_path": str(self.folder / lora) if lora else "",
            "vision": {
                "config": {
                    "image_size": vision["image_size"],
                    "patch_size": vision["patch_size"],
                    "hidden_size": vision["width"],
                    "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
                    "num_hidden_layers": vision["layers"],
                    "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                    "hidden_act": "quick_gelu" if clip_config.get("quick_gelu", True) else "gelu",
                }
            },
            "bridge": [{"name": "perceiver", **perceiver}],
            "fusion": self.looking(),
            "inserts": [
                {
                    "name": "gated_xattn",
                    "every": every,
                    **block,
                    "lora": {**adapter, "targets": [t for t in targets if t in inner]},
                }
            ],
            "llm": {
                "vocab_size": rows,
                "banned_ids": [ids["endofchunk"], ids["image"], ids["pad"]],
                "lora": {**adapter, "targets": [t for t in targets if t not in inner]},
            },
            "image": {"size": vision["image_size"]},
            "train": dict.fromkeys(self.unfrozen, True),
        }
        return load_config({"model": model | changes}, check="none")

    def load(self, lora: str | None = None, **changes: Any) -> VLM:
        """A model of one's own, with the head's added rows as recorded (no published file holds them)."""
        model = load_model(self.composition(lora, **changes), device="cpu")
        rows = self.tensor("lm_head_added_rows")
        with torch.no_grad():
            model.llm.model.lm_head.weight[-len(rows) :] = rows
        return model

    @cached_property
    def processor(self) -> Processor:
        """Tokenizer, template and picture recipe of the composition."""
        return build_processor(self.composition().model)

    @cached_property
    def model(self) -> VLM:
        """The composition with all its files, in eval mode; tests must leave its weights as they are."""
        return self.load()

    def fused(self, **options: Any) -> VLM:
        """``model`` with other options of its fusion."""
        config = CrossAttention.Config(**self.looking() | options)
        model = VLM(self.model.vision, list(self.model.bridge), self.model.llm, list(self.model.inserts))
        model.fusion = CrossAttention(config, self.model.llm)
        return model.eval()

    def batch(
        self, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None, pictures: Tensor | None = None
    ) -> Batch:
        """The batch of recorded ids ``[b, s]``; right padding.

        ``pictures [b, t, f, 3, h, w]`` stand for each row's first t marks; without them a mark is a token like others.
        """
        segments = torch.ones_like(ids) if mask is None else mask.long()
        marks = (ids == self.image) & (segments > 0)
        row: list[int] = []
        position: list[int] = []
        pixels: list[Tensor] = []
        for r in range(len(ids) if pictures is not None else 0):
            for picture, place in zip(pictures[r], marks[r].nonzero()[:, 0].tolist(), strict=False):
                row.append(r)
                position.append(place)
                pixels.append(picture)
        return Batch(
            ids=ids if pictures is None else ids.masked_fill(marks, MEDIA_TOKEN),
            labels=torch.full_like(ids, IGNORE_INDEX) if labels is None else labels,
            segments=segments,
            pixels=torch.stack(pixels) if pixels else None,
            media_row=torch.tensor(row, dtype=torch.long),
            media_pos=torch.tensor(position, dtype=torch.long),
        )


class FirstMarks(Engine):
    """Takes prompts with more marks than pictures, as the published chat page did."""

    def batch(self, examples: Any) -> Batch:
        examples = list(examples)
        short = [Example([0 if i == MEDIA_TOKEN else i for i in e.ids], e.labels, [], e.id) for e in examples]
        batch = super().batch(short)
        places: list[tuple[int, int]] = []
        for row, e in enumerate(examples):
            batch.ids[row, : len(e.ids)] = torch.tensor(e.ids)
            marks = [k for k, i in enumerate(e.ids) if i == MEDIA_TOKEN]
            places += [(row, k) for k, _ in zip(marks, e.media, strict=False)]
        batch.pixels = torch.stack([picture for e in examples for picture in e.media])
        batch.media_row, batch.media_pos = torch.tensor(places).T
        return batch
