"""Ways to get a 224 x 224 image out of a JPEG: milliseconds, and how far each is from PIL's exact result.

    python -m benchmarks.image_decode

``exact`` is PIL's decoder and bicubic resizing, ``fast`` what ``image: {decode: fast}`` does, both with normalising;
the others, without it, were tried.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from benchmarks.common import alternate, median, write
from benchmarks.images import jpeg, photo
from vlm.processors.image.recipe import ImageRecipe

SIZE = 224
RECIPES = {d: ImageRecipe(ImageRecipe.Config(SIZE, (0, 0, 0), (1, 1, 1), decode=d)) for d in ("exact", "fast")}


def levels(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """``[224, 224, 3]`` from 0 to 255, also of a recipe's ``[3, 224, 224]`` from 0 to 1."""
    if isinstance(image, torch.Tensor):
        image = (image.permute(1, 2, 0).numpy() * 255).round()
    return image.astype(float)


def pil(data: bytes, draft: bool, gap: float | None) -> np.ndarray:
    """PIL, decoding in reduced size (draft), resizing in two steps (gap)."""
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIZE, SIZE))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=gap))


def opencv(data: bytes, interpolation: str, reduced: bool) -> np.ndarray:
    """OpenCV for both steps; ``reduced`` decodes to half the size."""
    import cv2

    flag = cv2.IMREAD_REDUCED_COLOR_2 if reduced else cv2.IMREAD_COLOR
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flag), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, (SIZE, SIZE), interpolation=getattr(cv2, interpolation))


def torchvision(data: bytes) -> np.ndarray:
    """torchvision's decoder and torch's antialiased resizing."""
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import resize

    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return resize(image, [SIZE, SIZE], interpolation=3, antialias=True).permute(1, 2, 0).numpy()


WAYS: dict[str, Callable[[bytes], np.ndarray | torch.Tensor]] = {
    "exact": RECIPES["exact"],
    "fast": RECIPES["fast"],
    "PIL, reducing_gap 2": lambda data: pil(data, False, 2.0),
    "PIL, draft": lambda data: pil(data, True, None),
    "OpenCV, area": lambda data: opencv(data, "INTER_AREA", False),
    "OpenCV, cubic (aliased)": lambda data: opencv(data, "INTER_CUBIC", False),
    "OpenCV, half size, area": lambda data: opencv(data, "INTER_AREA", True),
    "torchvision.io": torchvision,
}


def main() -> None:
    """Measure and write ``benchmarks/results/image_decode_cpu.json``."""
    import cv2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found = {}
    for width, height in ((640, 480), (1280, 960)):
        files = [jpeg(photo(width, height, seed)) for seed in range(6)]
        want = [levels(WAYS["exact"](data)) for data in files]
        errors = {
            name: [float(np.abs(levels(way(data)) - w).mean()) for data, w in zip(files, want)]
            for name, way in WAYS.items()
        }
        sides = {name: lambda way=way, files=files: [way(data) for data in files] for name, way in WAYS.items()}
        seconds = alternate(sides, rounds)
        found[f"{width}x{height}"] = {
            name: {
                "ms": round(1000 * median(seconds[name]) / len(files), 2),
                "mean_abs_error": round(sum(errors[name]) / len(files), 3),
            }
            for name in WAYS
        }
    for size, (name, values) in itertools.chain.from_iterable(((s, i) for i in r.items()) for s, r in found.items()):
        print(f"{size:10} {name:28} {values['ms']:7.2f} ms  {values['mean_abs_error']:.3f} levels")
    what = "a JPEG to a 224 x 224 image on one core; mean absolute difference to PIL's result in levels of 256"
    print("written:", write("image_decode_cpu", {"what": what, "rounds": rounds, "sizes": found}))


if __name__ == "__main__":
    main()
