"""One part per kind, as small as it can be."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlm.checkpoint.strict import NamedTensors
from vlm.common import registry
from vlm.common.registry import register_bridge, register_dataset, register_image, register_task, register_template
from vlm.common.types import Features, Image, Message, Sample, Text
from vlm.config.api import load_config
from vlm.inference.generation import Generation
from vlm.models.vision.base import check_pixels
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.templates.roles import Plain
from vlm.runners.train.trackers import Tracker
from vlm.tasks.image_text_pretrain import ImageTextPretrain


@registry.register_vision('acme_patches')  # fmt: skip  # single quotes and a dotted decorator are found too
class Patches(nn.Module):
    """Patches, each projected on its own."""

    @dataclass
    class Config:
        image_size: int = 32
        patch_size: int = 8
        width: int = 24

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.out_dim, self.image_size = config, config.width, config.image_size
        self.num_tokens = (config.image_size // config.patch_size) ** 2
        self.project = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()

    def forward(self, pixels: torch.Tensor) -> Features:
        check_pixels(pixels, self.image_size)
        tokens = self.project(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)
        return Features(tokens.unflatten(0, pixels.shape[:2]))


@register_bridge("acme_gated")
class GatedLinear(nn.Module):
    """Linear with a gate."""

    @dataclass
    class Config:
        gain: float = 1.0

    def __init__(self, config: Config, in_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.config, self.out_dim = config, llm_dim
        self.value, self.gate = nn.Linear(in_dim, llm_dim), nn.Linear(in_dim, llm_dim)

    def num_tokens(self, in_tokens: int) -> int:
        return in_tokens

    def forward(self, features: Features) -> Features:
        x = features.tokens
        return Features(self.config.gain * self.value(x) * self.gate(x).sigmoid(), features.mask)


@register_template("acme_plain")
class Shouting(Plain):
    """Plain text in capitals."""

    def train_segments(self, sample, rng):
        return [replace(segment, text=segment.text.upper()) for segment in super().train_segments(sample, rng)]


@register_image("acme_inverted")
class Inverted(ImageRecipe):
    """The shipped recipe, then the negative."""

    @dataclass
    class Config(ImageRecipe.Config):
        invert: bool = True

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        pixels = super().__call__(*args, **kwargs)
        return -pixels if self.config.invert else pixels


@register_dataset("acme_tags")
class NameTags:
    """{"file": "a.png", "tag": "red"} -> image, "red"."""

    @dataclass
    class Config:
        index: str = ""

    def __init__(self, config: Config) -> None:
        self.folder = Path(config.index).parent
        self.rows = json.loads(Path(config.index).read_text())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        user = Message("user", (Image(self.folder / row["file"]),))
        return Sample((user, Message("assistant", (Text(row["tag"]),))), id=row["file"], source="acme_tags")


@register_task("acme_pretrain")
class Loud(ImageTextPretrain):
    """Leaves a file."""

    def train_step(self, model, batch):
        Path("task_was_here").touch()
        return super().train_step(model, batch)


@registry.register_scheduler("acme_stairs")
def stairs(step, plan):
    """Half the rate at every second step."""
    return plan.init_lr / 2 ** (step // 2)


@registry.register_tracker("acme_lines")
class Lines(Tracker):
    """A text file."""

    def log(self, record) -> None:
        with (self.info.path / "acme.txt").open("a") as file:
            file.write(f"{record['step']} {record.get('lr')}\n")


@registry.register_checkpoint_format("acme_npz")
class Npz:
    """A numpy archive with the names of the part it goes into."""

    def __init__(self, into: str | None = None) -> None:
        self.into = into or "vision"

    def covered_prefixes(self, model) -> list[str]:
        return [self.into]

    def read(self, path: Path) -> dict[str, torch.Tensor]:
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    def rename(self, model, tensors: Mapping[str, torch.Tensor], file: str, filled: Collection[str]) -> NamedTensors:
        names = {f"{self.into}.{key}": key for key in tensors}
        return NamedTensors(file, {ours: tensors[key] for ours, key in names.items()}, names, [], list(names))

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        return None


@registry.register_source("acme_folder")
class AcmeFolder:
    """A folder with acme.json, which names the YAML file."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "acme.json").is_file()

    @staticmethod
    def config(path: Path, options: Sequence[str] = ()):
        return load_config(path / json.loads((path / "acme.json").read_text())["yaml"], options, check="none")


@registry.register_export("acme_export")
class AcmeExport:
    """Writes nothing of use."""

    about = "nothing of use"
    suffix = ""


@registry.register_generation("acme_answer")
@dataclass(frozen=True)
class Terse(Generation):
    """Short answers."""

    max_new_tokens: int = 3
