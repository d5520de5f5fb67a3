"""Videos -> ``[f, 3, h, w]`` tensors: which frames are taken, each through the image recipe."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from vlm.common.bounds import Count, Positive, violations
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_video
from vlm.common.types import Prepared
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.video.read import Backend, Clip, Short, check_backend, open_clip

if TYPE_CHECKING:
    import torch


@register_video("recipe")
class VideoRecipe:
    """What happens to a video before the vision encoder; pickles into loader workers.

    A video shorter than ``num_frames`` repeats frames (``uniform``, ``segments``), gives fewer (``fps``) or is refused.
    """

    @dataclass
    class Config:
        """How many frames, and which. Example: ``video: {num_frames: 8, sampling: fps, fps: 2}``"""

        num_frames: Count = 8  # the maximum with sampling: fps
        sampling: Literal["uniform", "fps", "segments"] = "uniform"  # see uniform_ids, fps_ids, segment_ids
        fps: Positive = 1.0  # frames per second of sampling fps
        on_short_video: Literal["repeat", "error"] = "repeat"  # fewer frames than asked: repeat (published)
        backend: Backend = "auto"  # auto: decord, or OpenCV if decord is missing or fails

        def __post_init__(self) -> None:
            if wrong := violations(self):
                raise ConfigError("; ".join(wrong))

    def __init__(self, config: Config, image: ImageRecipe) -> None:
        """Raises ConfigError: ``backend`` is not installed, or the image recipe makes tiles of an image."""
        if not image.makes_frames:
            raise ConfigError(
                f"model.video: the image recipe {type(image).__name__} makes tiles of an image, so none is a frame",
                fix="leave model.video out, or use model.image: {name: recipe} or {name: native}",
            )
        self.config, self.image = config, image
        check_backend(config.backend)

    def __call__(self, source: Any, name: str = "", rng: random.Random | None = None) -> torch.Tensor | Prepared:
        """Read and transform one video.

        Args:
            source: path or bytes of a video file, a folder of frames (jpg, png, webp), a ``.json`` file with base64
                frames (one string is a video of one frame), or a list of frames: base64 texts, paths, bytes, images;
                or what this recipe returned before (passed through).
            name: name of the video in errors.
            rng: training: draws the frames of ``segments``, and one crop for all frames; None: evaluation.

        Returns:
            ``[f, 3, size, size]`` float32; with the size of its frames where an image recipe of any size says it.

        Raises:
            DataError: missing, unreadable, without frames, a bad frame, frames of different sizes, no decoder; the
                message names the video.
        """
        import torch

        if isinstance(source, Prepared):
            return source
        if isinstance(source, torch.Tensor):
            return self._joined([self.image(frame, name) for frame in source], name)
        label = name or (source if isinstance(source, str) else type(source).__name__)
        seed = None if rng is None else rng.getrandbits(64)
        clip = open_clip(source, label, self.config.backend)
        ids = self.frame_ids(clip, label, seed)
        try:
            frames = clip.read(ids)
        except Short as error:  # the file has fewer frames than its header says
            clip.count = error.count
            ids = self.frame_ids(clip, label, seed)
            frames = clip.read(ids)
        tensors = {
            index: self.image(frame, f"{label} frame {index}", None if seed is None else random.Random(seed))
            for index, frame in dict(zip(ids, frames, strict=True)).items()
        }
        return self._joined([tensors[index] for index in ids], label)

    def _joined(self, frames: Sequence[torch.Tensor | Prepared], label: str) -> torch.Tensor | Prepared:
        """One video of what the image recipe made of its frames. Raises DataError: they differ in size."""
        import torch

        pixels = [frame.pixels[0] if isinstance(frame, Prepared) else frame for frame in frames]
        if len(sizes := {tuple(frame.shape[1:]) for frame in pixels}) > 1:
            found = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise DataError(f"video {label}: frames of different sizes ({found})", fix="give them one size")
        joined = torch.stack(pixels)
        return Prepared(joined, frames[0].size) if isinstance(frames[0], Prepared) else joined

    def frame_ids(self, clip: Clip, label: str, seed: int | None) -> list[int]:
        """Indices of the frames to take, ascending.

        Raises DataError: no frame, or sampling: fps of a video without a frame rate.
        """
        config = self.config
        if clip.count < 1:
            raise DataError(f"video {label}: no frames", fix="fetch it again or remove the record")
        if config.on_short_video == "error" and clip.count < config.num_frames:
            raise DataError(
                f"video {label}: {clip.count} frames, but video.num_frames asks for {config.num_frames}",
                fix="remove the record, ask for fewer frames, or set video.on_short_video to repeat",
            )
        if config.sampling == "segments":
            return segment_ids(clip.count, config.num_frames, None if seed is None else random.Random(seed))
        if config.sampling == "uniform":
            return uniform_ids(clip.count, config.num_frames)
        if not clip.rate or clip.rate < 0:
            fix = "set model.video.sampling to uniform or segments"
            raise DataError(f"video {label}: frames without a frame rate", fix=fix)
        return fps_ids(clip.count, clip.rate, config.fps, config.num_frames)


def segment_ids(total: int, wanted: int, rng: random.Random | None = None) -> list[int]:
    """The published rule for sampled frames: one of each of ``wanted`` consecutive stretches.

    Segments are as equal as possible, the longer ones first. Without ``rng`` the first frame of each is taken, and a
    video that is too short is repeated; with it the lengths are shuffled, a random frame of each is taken, and a video
    that is too short repeats random frames.
    """
    if total <= wanted:
        if rng is None:
            return sorted(k % total for k in range(wanted))
        return sorted([*range(total), *rng.choices(range(total), k=wanted - total)])
    length, longer = divmod(total, wanted)
    lengths = [length + 1] * longer + [length] * (wanted - longer)
    if rng is not None:
        rng.shuffle(lengths)
    starts = [0, *accumulate(lengths)][:-1]
    return [start + (0 if rng is None else rng.randrange(n)) for start, n in zip(starts, lengths)]


def uniform_ids(total: int, wanted: int) -> list[int]:
    """The middle frame of each of ``wanted`` equal segments; a video that is too short is repeated."""
    if total <= wanted:
        return segment_ids(total, wanted)
    return [(2 * k + 1) * total // (2 * wanted) for k in range(wanted)]


def fps_ids(total: int, rate: float, fps: float, most: int) -> list[int]:
    """A frame every ``1 / fps`` seconds from the first on; ``most`` evenly spaced ones of them if there are more."""
    step = max(rate / fps, 1.0)
    result: Sequence[int] = [round(k * step) for k in range(int((total - 1) / step) + 1)]
    if len(result) > most:
        result = [result[k] for k in uniform_ids(len(result), most)]
    return [min(k, total - 1) for k in result]
