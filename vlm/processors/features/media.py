"""Looks a medium up in a feature cache before it is decoded.

The key is a digest of the recipe's options and of the bytes of the file (of a folder of frames: of the frames that are
taken), not of its name. Media that are not encoded, such as arrays and ``PIL`` images, are not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from vlm.common.errors import ConfigError
from vlm.common.files import open_regular
from vlm.common.types import Prepared, Split, StoredMedium
from vlm.processors.features.index import KEY, RECIPE
from vlm.processors.features.store import Reader
from vlm.processors.image.decode import encoded
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.video.read import IMAGES, installed, is_image_bytes, open_clip
from vlm.processors.video.recipe import VideoRecipe

_CHUNK = 1 << 20
Encoded = bytes | tuple["Encoded", ...]
"""The bytes of an image, or of those that are shown side by side."""


@dataclass(frozen=True)
class Recipe:
    """What tells recipes apart: a digest, and what was digested."""

    digest: bytes
    about: dict[str, Any]


def image_recipe(image: Any) -> Recipe:
    """The recipe of images. Raises ConfigError: it may draw at random, or does not say that it does not."""
    if not isinstance(image, ImageRecipe):
        raise ConfigError(
            f"run.feature_cache: model.image is a {type(image).__name__}, which does not say whether it is random",
            fix="derive it from vlm.processors.image.recipe.ImageRecipe, or set run.feature_cache to null",
        )
    if image.draws:
        raise ConfigError(
            "run.feature_cache: model.image.train changes each image at random, so that no two epochs see the same",
            fix="set model.image.train to null, or run.feature_cache to null",
        )
    return _recipe({"image": _options(image)})


def video_recipe(video: Any) -> Recipe | None:
    """The recipe of videos; None: there is none, or it draws frames at random, so that videos are not kept."""
    if not isinstance(video, VideoRecipe) or video.config.sampling == "segments":
        return None
    decoders = [name for name in ("decord", "opencv") if video.config.backend in ("auto", name) and installed(name)]
    return _recipe({"video": _options(video), "image": _options(video.image), "decoders": decoders})


def _options(recipe: Any) -> dict[str, Any]:
    name = f"{type(recipe).__module__}.{type(recipe).__qualname__}"
    return {"class": name, **dataclasses.asdict(recipe.config)}


def _recipe(about: dict[str, Any]) -> Recipe:
    text = json.dumps(about, sort_keys=True, default=str)
    return Recipe(hashlib.sha256(text.encode()).digest()[:RECIPE], json.loads(text))


@dataclass
class MediaCache:
    """What a processor asks before it decodes a medium; pickles into loader workers."""

    reader: Reader
    images: Recipe
    videos: Recipe | None  # None: they are not kept

    def image(self, recipe: ImageRecipe, source: Any, name: str, rng: random.Random | None) -> Any:
        """What ``recipe(source, name, rng)`` gives, with its place in the cache.

        Raises DataError: as the recipe.
        """
        data = image_bytes(source, name)
        if data is None:
            return recipe(source, name, rng)
        key = _key(self.images, data)
        if recipe.splits:
            return self._split(recipe, key, data, name, rng)
        medium, found = self._find(key, self.images, recipe)
        if found is not None:
            recipe.decoded += medium.decoded
            return found
        before = recipe.decoded
        return _with_place(recipe(data, name, rng), medium, recipe.decoded - before)

    def video(self, recipe: VideoRecipe, source: Any, name: str, rng: random.Random | None) -> Any:
        """The same for a video."""
        data = None if self.videos is None else video_bytes(recipe, source, name)
        if data is None or self.videos is None:
            return recipe(source, name, rng)
        medium, found = self._find(_key(self.videos, data), self.videos, recipe.image)
        if found is not None:
            recipe.image.decoded += medium.decoded
            return found
        before = recipe.image.decoded
        return _with_place(recipe(source, name, rng), medium, recipe.image.decoded - before)

    def _find(self, key: bytes, recipe: Recipe, image: ImageRecipe) -> tuple[StoredMedium, Prepared | None]:
        """The place of a medium, and the medium if its features are there."""
        entry, damaged = self.reader.features(key)
        if entry is None:
            return StoredMedium(key, recipe.digest, damaged=damaged), None
        frames, height, width = entry.shape
        pixels = torch.empty((frames, 3, height, width), dtype=image.dtype, device="meta")
        medium = StoredMedium(key, recipe.digest, entry.features, entry.dtype, entry.size, entry.decoded)
        return medium, Prepared(pixels, entry.size, medium)

    def _split(self, recipe: ImageRecipe, key: bytes, data: Encoded, name: str, rng: random.Random | None) -> Any:
        """An image that becomes several media: its texts are known if its layout is there."""
        layout = self.reader.layout(key)
        if layout is not None and (known := self._pieces(recipe, key, layout_of(layout))) is not None:
            return known
        before = recipe.decoded
        value = recipe(data, name, rng)
        made: tuple[Any, ...] = value.pieces if isinstance(value, Split) else (value,)
        numbers = count()
        text = json.dumps([piece if isinstance(piece, str) else next(numbers) for piece in made])
        result, number = list[str | Prepared](), 0
        for piece in made:
            if isinstance(piece, str):
                result.append(piece)
                continue
            medium, found = self._find(_tile(key, number), self.images, recipe)
            if number == 0:  # it is encoded in any case, since the layout is kept with it
                medium, found = dataclasses.replace(medium, features=None, layout=(key, text.encode())), None
            result.append(_with_place(found or piece, medium, 0 if number else recipe.decoded - before))
            number += 1
        return Split(tuple(result))

    def _pieces(self, recipe: ImageRecipe, key: bytes, layout: list[str | int] | None) -> Split | None:
        """The image as ``layout`` has it; None without one, or if features of one of its media are not there."""
        if layout is None:
            return None
        pieces: list[str | Prepared] = []
        decoded = 0
        for piece in layout:
            if isinstance(piece, str):
                pieces.append(piece)
                continue
            medium, found = self._find(_tile(key, piece), self.images, recipe)
            if found is None:
                return None
            pieces.append(found)
            decoded += medium.decoded
        recipe.decoded += decoded
        return Split(tuple(pieces))


def layout_of(data: bytes) -> list[str | int] | None:
    """Texts and numbers of media, from the bytes of an entry; None: not a layout."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(type(piece) in (str, int) for piece in found):
        return None
    numbers = [piece for piece in found if type(piece) is int]
    return found if numbers == list(range(len(numbers))) and numbers else None


def _with_place(value: torch.Tensor | Prepared, medium: StoredMedium, decoded: int) -> Prepared:
    size = value.size if isinstance(value, Prepared) else None
    pixels = value.pixels if isinstance(value, Prepared) else value.unsqueeze(0) if value.dim() == 3 else value
    return Prepared(pixels, size, dataclasses.replace(medium, size=size, decoded=decoded))


def image_bytes(source: Any, label: str) -> Encoded | None:
    """The encoded bytes of an image, None if it is not encoded. Raises DataError: a file that cannot be read."""
    if isinstance(source, tuple):
        parts = [image_bytes(part, label) for part in source]
        return None if None in parts or not parts else tuple(part for part in parts if part is not None)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return encoded(source, label or str(source))
    return None


def video_bytes(recipe: VideoRecipe, source: Any, label: str) -> Encoded | None:
    """A digest of a video's bytes, or the frames that are taken of it; None: it is not encoded, or cannot be read.

    Raises DataError: as the recipe.
    """
    if isinstance(source, Prepared | torch.Tensor):
        return None
    if isinstance(source, bytes | bytearray | memoryview) and not is_image_bytes(bytes(source[:8])):
        return hashlib.sha256(source).digest()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_file() and path.suffix.lower() not in (".json", *IMAGES):
            return _file_digest(path)
    clip = open_clip(source, label, recipe.config.backend)
    frames = clip.read(recipe.frame_ids(clip, label, None))
    return image_bytes(tuple(frames), label)


def _file_digest(path: Path) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except OSError:  # the recipe says why
        return None
    return digest.digest()


def _key(recipe: Recipe, data: Encoded) -> bytes:
    return hashlib.sha256(recipe.digest + _digest(data)).digest()[:KEY]


def _digest(data: Encoded) -> bytes:
    if isinstance(data, bytes):
        return b"1" + hashlib.sha256(data).digest()
    return b"n" + hashlib.sha256(b"".join(map(_digest, data))).digest()


def _tile(key: bytes, number: int) -> bytes:
    return hashlib.sha256(key + number.to_bytes(4, "little")).digest()[:KEY]


def stored_of(values: Sequence[torch.Tensor | Prepared]) -> list[StoredMedium | None]:
    """The places of media in a cache; empty if none has one."""
    found = [value.stored if isinstance(value, Prepared) else None for value in values]
    return found if any(medium is not None for medium in found) else []
