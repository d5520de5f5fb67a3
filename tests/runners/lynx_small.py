"""The published tiny case of Lynx as files that a user has: LYNX.yaml, weights, records; and a video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from ..golden.helpers_lynx import LynxCase

CASE = Path(__file__).parents[1] / "golden" / "lynx" / "open"


def sizes() -> list[str]:
    """The sizes that the published file cannot say, as options."""
    config = json.loads((CASE / "config.json").read_text())
    vision, bridge = config["vision"], config["bridge"]
    found = [f"model.vision.{name}={vision[name]}" for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")]
    found += [f"model.bridge.1.{name}={bridge[name]}" for name in ("dim_head", "heads", "ff_mult")]
    return [*found, f"model.inserts.0.bottleneck={config['adapters']['bottleneck']}"]


def lynx_yaml(folder: Path, **changes: Any) -> Path:
    """A published file in ``folder`` that reads the case's records; None leaves a key out."""
    keys = json.loads((CASE / "config.json").read_text())["peer_config"] | changes
    file = folder / "LYNX.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}))
    return file


def composition(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """The shipped composition at the case's sizes as a YAML file, with further sections."""
    model = LynxCase(CASE).shipped().resolved["model"]
    file = folder / "lynx.yaml"
    file.write_text(yaml.safe_dump({"model": model, **sections}))
    return file


def moving_square(file: Path, color: tuple[int, int, int], step: int = 3, frames: int = 12) -> Path:
    """A video of 64 x 64 pixels at 10 frames per second in which a square of ``color`` (RGB) goes right."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    for k in range(frames):
        frame = np.full((64, 64, 3), 30, np.uint8)
        at = (2 + k * step) % 48
        frame[16:48, at : at + 14] = color[::-1]
        writer.write(frame)
    writer.release()
    return file
