"""Image controls: the same questions with other images, which shows whether a model looks at them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Image, Message, Sample, Text, Video
from vlm.tasks.benchmarks.base import Questions

CONTROLS = {
    "right": "own image or video",
    "wrong": "that of another question",
    "none": "no image",
    "blank": "grey image",
}
"""Control -> what a question is shown."""
GREY = (128, 128, 128)


def check_control(name: str) -> None:
    """Raises ConfigError for an unknown control."""
    if name not in CONTROLS:
        raise ConfigError(f"image control {name!r} is unknown (allowed: {', '.join(CONTROLS)})")


class Controlled(Questions):
    """A dataset whose questions are shown what ``control`` says; records stay the same."""

    def __init__(self, dataset: Any, control: str = "right", *args: Any, **options: Any) -> None:
        """Further arguments are those of :class:`Questions`.

        Raises DataError: the control is ``wrong``, and all questions share one image, or those about videos one video.
        """
        check_control(control)
        super().__init__(dataset, *args, **options)
        self.control = control
        self._swapped: dict[Any, Any] = {}
        if control == "wrong":
            self.control = "right"  # while the images are collected
            media = [m for _, sample in self.usable() for message in sample.messages for m in message.media]
            for kind in (Image, Video):  # an image is exchanged for an image
                self._swapped |= swap_images([m.source for m in media if isinstance(m, kind)])
            self.control = control

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, messages=tuple(with_images(sample.messages, self.control, self._swapped)))


def key_of(source: Any) -> Any:
    """A medium's source as a dictionary key; a list of frames is spelled out."""
    return source if isinstance(source, str | bytes | tuple) else repr(source)


def swap_images(images: Sequence[Any], seed: int = 0) -> dict[Any, Any]:
    """Maps each distinct image to another one; a random cycle, the same for every run with this ``seed``.

    Shifting by one would not do: question sets often run through types and answers in a fixed order.

    Raises:
        DataError: all images are the same.
    """
    result = {key_of(source): source for source in images}
    distinct = list(result)
    if len(distinct) == 1:
        raise DataError(
            "the control with a wrong image needs at least two different images, and two videos where one is shown"
        )
    order = distinct.copy()
    random.Random(seed).shuffle(order)
    return {source: result[order[(i + 1) % len(order)]] for i, source in enumerate(order)}


def with_images(messages: Sequence[Message], control: str, swapped: Mapping[Any, Any]) -> list[Message]:
    """The messages with their own images, with those ``swapped`` maps them to, with grey ones, or with none."""
    from PIL import Image as Images

    if control == "right":
        return list(messages)
    grey, changed = Images.new("RGB", (64, 64), GREY), []
    for message in messages:
        parts: list[Text | Image | Video] = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append(part)
            elif control == "wrong":
                parts.append(type(part)(swapped[key_of(part.source)]))
            elif control == "blank":
                parts.append(Video([grey]) if isinstance(part, Video) else Image(grey))
        changed.append(Message(message.role, tuple(parts)))
    return changed
