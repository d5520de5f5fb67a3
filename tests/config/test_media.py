"""``model.image`` and ``model.video``: read, stored, shown, checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import ConfigError
from vlm.config.api import effective, load_config
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import build_processor
from vlm.processors.video.recipe import VideoRecipe

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"


def load(**model: Any) -> Any:
    base = {"llm": {"name": "hf", "path": str(LLM)}, "template": "vicuna0"}
    return load_config({"model": {**base, **model}}, check="none")


def test_images_only_by_default() -> None:
    config = load()
    assert config.model.video is None
    assert "video" not in effective(config)["model"]
    processor = build_processor(config.model)
    assert processor.video is None
    assert processor.image.config.train is None


def test_stored_and_read_back() -> None:
    config = load(
        image={"size": 28, "resize": "shorter", "decode": "fast", "train": {"scale": [0.9, 1.0]}},
        video={"num_frames": 5, "sampling": "segments"},
    )
    again = load_config(config.resolved, check="none")
    for found in (config, again):
        assert found.model.video.given.items() >= {"num_frames": 5, "sampling": "segments"}.items()
        assert found.model.video.config == VideoRecipe.Config(num_frames=5, sampling="segments")
        processor = build_processor(found.model)
        assert processor.video.config.num_frames == 5  # type: ignore[union-attr]
        assert processor.video.image is processor.image  # type: ignore[union-attr]
        assert processor.image.config.resize == "shorter"
        assert processor.image.config.train == ImageRecipe.Train(scale=(0.9, 1.0))
    assert effective(again)["model"]["video"] == dataclasses.asdict(config.model.video.config)


@pytest.mark.parametrize(
    ("section", "options", "words"),
    [
        ("video", {"num_frame": 5}, "unknown key 'num_frame'; did you mean 'num_frames'"),
        ("video", {"sampling": "random"}, "model.video.sampling.*expected one of 'uniform', 'fps', 'segments'"),
        ("video", {"num_frames": 0}, "num_frames: found 0"),
        ("video", 8, "expected a mapping with keys num_frames"),
        ("image", {"resize": "crop"}, "model.image.resize.*expected one of 'stretch', 'shorter', 'pad'"),
        ("image", {"decode": "quick"}, "model.image.decode.*expected one of 'exact', 'fast'"),
        ("image", {"train": {"scale": [0, 2]}}, "model.image.train.*scale"),
        ("image", {"train": {"crop": 1}}, "unknown key 'crop'"),
    ],
)
def test_problems(section: str, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(**{section: options})
