"""A published Lynx case folder as a composition, its weight files and its recorded tensors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm.checkpoint.load import load_model
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example
from vlm.config.api import Config, load_config
from vlm.config.types import ModelConfig, Part
from vlm.models.bridges.frame_positions import FramePositions
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.fusion.splice import Splice
from vlm.models.inserts.adapter import Adapter
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM
from vlm.processors.collate import collate
from vlm.systems.lynx.checkpoint import key_map
from vlm.testing import RecordedCase, composition, part, weight

KINDS = ("image", "video")


class LynxCase(RecordedCase):
    """One case folder; sizes come from its config.json only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records = self.case
        self.tensors = {
            k: t.long() if t.dtype == torch.int32 else t for k, t in load_file(self.file("tensors")).items()
        }

    def file(self, name: str) -> Path:
        found = {
            "tensors": self.folder / "tensors.safetensors",
            "vision": self.folder / self.config["vision_file"]["path"],
            "llm": self.folder / self.config["llm_folder"]["path"],
            "checkpoint": self.folder / self.config["system_checkpoint"]["path"],
        }
        return found[name]

    def parts(self, *, checkpoint: bool = True, **changes: Any) -> ModelConfig:
        """The composition that config.json describes."""
        vision, bridge, adapters = self.config["vision"], self.config["bridge"], self.config["adapters"]
        eva = EvaViT.Config(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["embed_dim"],
            depth=vision["depth"],
            num_heads=vision["num_heads"],
            mlp_ratio=vision["mlp_ratio"],
            ln_vision=False,
        )
        perceiver = Perceiver.Config(
            depth=bridge["depth"],
            dim_head=bridge["dim_head"],
            heads=bridge["heads"],
            num_latents=bridge["num_latents"],
            ff_mult=bridge["ff_mult"],
            latents_in_keys=False,
            width="llm",
        )
        frames = FramePositions.Config(num_frames=self.config["video"]["num_frames"])
        files = [weight("eva", self.file("vision")), weight("hf_llm", self.file("llm"))]
        whole = {
            "vision": part("eva_vit", eva),
            "bridge": [part("frame_positions", frames), part("perceiver", perceiver)],
            "fusion": part("splice", Splice.Config()),
            "inserts": [part("adapter", Adapter.Config(every=adapters["freq"], bottleneck=adapters["bottleneck"]))],
            "llm": self.language_model(),
            "train": {"bridge.*": True, "inserts.*": True},
            "weights": [*files, weight("lynx", self.file("checkpoint"))] if checkpoint else files,
        }
        return composition(**(whole | changes))

    def language_model(self, **options: Any) -> Part:
        """The LLM; with a row for the pad token that published code adds where the folder names none."""
        rows = self.records["tokenizer"]["len"]
        if rows > self.config["llm"]["vocab_size"]:
            options = {"vocab_size": rows, "new_rows": "mean"} | options
        return part("hf", HFCausalLM.Config(path=str(self.file("llm")), **options))

    def load(self, **changes: Any) -> VLM:
        return load_model(Config(model=self.parts(**changes)), device="cpu")

    @cached_property
    def model(self) -> VLM:
        """The composition with all its files, in eval mode; tests must leave it as it is."""
        return self.load()

    def shipped(self, model_type: str = "finetune", **params: Any) -> Config:
        """The shipped composition with this case's sizes and files."""
        vision, bridge, adapters = self.config["vision"], self.config["bridge"], self.config["adapters"]
        asked = {
            "image_res": vision["image_size"],
            "num_frames": self.config["video"]["num_frames"],
            "vit_path": str(self.file("vision")),
            "LLM": str(self.file("llm")),
            "checkpoint": str(self.file("checkpoint")),
            "bridge_depth": bridge["depth"],
            "num_bridge_tokens": bridge["num_latents"],
            "adapter_freq": adapters["freq"],
            **{name: self.config["peer_config"][name] for name in ("prompt", "lower_text", "max_input_tokens")},
        }
        small = [f"model.vision.{name}={vision[name]}" for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")]
        small += [f"model.bridge.1.{name}={bridge[name]}" for name in ("dim_head", "heads", "ff_mult")]
        small.append(f"model.inserts.0.bottleneck={adapters['bottleneck']}")
        llm = self.language_model().config
        if llm.vocab_size is not None:
            small += [f"model.llm.vocab_size={llm.vocab_size}", f"model.llm.new_rows={llm.new_rows}"]
            small.append(f"model.text.new_pad_token={self.records['tokenizer']['pad'][0]}")
        model = {"arch": "lynx", "model_type": model_type, **asked, **params}
        return load_config({"model": model}, small)

    def pixels(self, kind: str) -> Tensor:
        """``[n, f, 3, h, w]`` of the recorded pictures or clips."""
        pixels = self.tensors[f"{kind}/pixel_values"]
        return pixels[:, None] if pixels.dim() == 4 else pixels

    def train_batch(self, kind: str) -> Batch:
        """The recorded training rows."""
        return collate(self.train_examples(kind), 0)

    def train_examples(self, kind: str) -> list[Example]:
        """The recorded training rows: the medium, then the text."""
        get = lambda key: self.tensors[f"train_{kind}/{key}"]  # noqa: E731
        q = self.config["bridge"]["num_latents"]
        examples = []
        for row, pixels in enumerate(self.pixels(kind)):
            real = get("text_mask")[row].bool()
            labels = get("labels")[row, q:][real].tolist()
            ids = get("input_ids")[row][real].tolist()
            examples.append(Example([MEDIA_TOKEN, *ids], [IGNORE_INDEX, *labels], [pixels]))
        return examples

    def prompts(self, kind: str) -> list[Example]:
        """The recorded prompts; ``text_only`` has no medium."""
        source = "image" if kind == "text_only" else kind
        ids, real = self.tensors[f"{source}/input_ids"], self.tensors[f"{source}/input_atts"].bool()
        rows = [ids[i][real[i]].tolist() for i in range(len(ids))]
        if kind == "text_only":
            return [Example(row, [IGNORE_INDEX] * len(row)) for row in rows]
        media = self.pixels(kind)
        return [
            Example([MEDIA_TOKEN, *row], [IGNORE_INDEX] * (len(row) + 1), [m])
            for row, m in zip(rows, media, strict=True)
        ]

    def published(self, name: str) -> str:
        """Our parameter name of a published one."""
        ours = key_map(self.model).ours(name)
        assert ours is not None, name
        return ours


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``case`` on every case folder below ``<golden root>/lynx``."""
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        folders = sorted(p.parent for p in Path(root, "lynx").rglob("tensors.safetensors"))
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True, scope="module")
