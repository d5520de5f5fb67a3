"""Made-up photographs and texts for the data benchmarks."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WORDS = """
    a the red blue old small two people dog boat house river street near on with and standing beside under tree
    light window green hill table yellow man woman holding walking large white cloud over field morning
""".split()  # noqa: SIM905


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours at several scales, grain, and a dozen shapes."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0, np.float32)
    for across, strength in ((4, 80), (16, 40), (64, 25), (min(width, height) // 2, 12)):
        coarse = rng.integers(0, 256, (across * height // width + 1, across, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        total += (smooth - 128) / 128 * strength
    total += rng.normal(0, 5, total.shape)
    image = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, side = rng.integers(0, width), rng.integers(0, height), int(rng.integers(10, width // 5))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x, y, x + side, y + side], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Encoded as a JPEG with halved colour resolution, as cameras and crawlers write it."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def caption(seed: int, words: int = 12) -> str:
    """About ``words`` words."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(words - 4, words + 4)))


def write_shard(path: Path, records: int, size: tuple[int, int] = (640, 480)) -> None:
    """A tar as img2dataset writes it: ``000000012.jpg`` and ``000000012.json`` with the caption."""
    with tarfile.open(path, "w") as tar:
        for k in range(records):
            members = {
                "jpg": jpeg(photo(*size, seed=k)),
                "json": json.dumps({"caption": caption(k), "key": f"{k:09d}", "status": "success"}).encode(),
            }
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{k:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
