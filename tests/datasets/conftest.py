from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.templates.roles import Plain
from vlm.processors.tokenizer.tokenizer import Tokenizer

LLM = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
WORDS = ["a", "red", "boat", "on", "the", "river", "near", "an", "old", "house", "and", "two", "people", "look"]


def caption(k: int) -> str:
    """A short text that is different for every k."""
    return " ".join(WORDS[(k * 7 + j * (1 + k // 13)) % len(WORDS)] for j in range(3 + k % 4)) + f" {k}"


@pytest.fixture(scope="session")
def processor() -> Processor:
    recipe = ImageRecipe(ImageRecipe.Config(size=4))
    return Processor(Tokenizer.from_folder(LLM), Plain(Plain.Config()), recipe, TextConfig(max_txt_len=64))


def image(k: int, kind: str = "PNG") -> bytes:
    """An image whose colour tells k."""
    out = io.BytesIO()
    Image.fromarray(np.full((5, 6, 3), (k * 5 % 256, k // 50, 9), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def caption_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a caption folder of n images; ``bad`` ones are cut in half."""

    def make(n: int, bad: tuple[int, ...] = (), name: str = "folder") -> Path:
        root = tmp_path / name
        (root / "image").mkdir(parents=True)
        notes = [{"image_id": str(k), "caption": caption(k)} for k in range(n)]
        (root / "filter_cap.json").write_text(json.dumps({"annotations": notes}))
        for k in range(n):
            data = image(k)
            (root / "image" / f"{k}.png").write_bytes(data[: len(data) // 2] if k in bad else data)
        return root

    return make


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of tar shards with the given numbers of records."""

    def make(sizes: tuple[int, ...], bad: tuple[int, ...] = (), name: str = "shards") -> Path:
        root = tmp_path / name
        root.mkdir()
        k = 0
        for number, size in enumerate(sizes):
            with tarfile.open(root / f"{number:05d}.tar", "w") as tar:
                for _ in range(size):
                    data = image(k)
                    add(tar, f"{k:06d}.png", data[: len(data) // 2] if k in bad else data)
                    add(tar, f"{k:06d}.json", json.dumps({"caption": f"The {caption(k)}!", "n": k}).encode())
                    k += 1
        return root

    return make


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One member of a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tar_add() -> Callable[[tarfile.TarFile, str, bytes], None]:
    return add


@pytest.fixture
def image_of() -> Callable[..., bytes]:
    return image
