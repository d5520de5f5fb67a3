"""One word for each thing (docs/glossary.md): retired words are refused in prose, help texts, messages and comments."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RETIRED = {
    r"\bpictures?\b": "image",
    r"\bclips?\b": "video",
    r"\bmarks?\b": "placeholder (or: say, show)",
    r"\bstand-ins?\b": "replacement, placeholder",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|other\b)": "is not a, does not",
    r"\b(?:stands(?! for\b)|stood|lies)\b": "is, was",
    r"\banew\b": "again",
    r"\bbehind\b": "after",
    r"(?<![-_\w`])shots?\b": "few-shot examples",
    r"\bpassports?\b": "provenance",
    r"\btall(?:y|ies)\b": "statistics",
    r"\bSaid\b": "UserText",
}
"""Pattern of a retired word -> what to write. Cases are ignored, except for ``Said`` and ``CLIP``."""

ALLOWED = re.compile(
    r"""
      CLIP | [Gg]radients?\b.{0,40}\bclip | \bclip(?:s|ped)?\b.{0,30}(?:[Gg]radient|norm)  # another thing
    | \bclip[_./-]\w | [`'"]clip[`'"] | (?:name|format):\ clip\b | ^\#*\ *clip\ =            # a registered name
    | (?:pytest|page)\.mark | model\.vision\ clip | --vision-model\ clip                  # names again
    | (?:question|end|record|exclamation)[ -]mark | boat\ stands | PIL\ would\ clip       # English
    | What\ is\ behind\ it
    | `shots`  # a key
    | Picture\ of  # a prompt of the emoji example
    """,
    re.VERBOSE,
)
"""A line with one of these may hold the word of the same pattern."""

EXEMPT = {
    "docs/glossary.md",
    "vlm/datasets/synthetic/language.py",  # sentences of the drawn world
    "vlm/config/renamed.py",  # the old spellings
}


def prose() -> list[Path]:
    """Pages for people."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("dataset/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("vlm/**/*.md")]
    pages += ROOT.glob("notebooks/*.ipynb")
    return sorted(p for p in pages if not p.is_relative_to(ROOT / "output"))


def settings() -> list[Path]:
    """YAML files whose comments and help texts people read."""
    files = [*ROOT.glob("vlm/**/*.yaml"), *ROOT.glob("docs/**/*.yaml"), *ROOT.glob("*_configs/**/*.yaml")]
    return sorted({p.resolve() for p in files})


def sources() -> list[Path]:
    """Python whose docstrings, comments and messages people read."""
    return sorted([*ROOT.glob("vlm/**/*.py"), *ROOT.glob("docs/**/*.py"), *ROOT.glob("benchmarks/*.py")])


def lines_of_python(file: Path) -> Iterator[tuple[int, str]]:
    """Comments, and the lines of strings that hold more than one word."""
    text = file.read_text(encoding="utf-8")
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds and " " in token.string.strip():
            for offset, line in enumerate(token.string.split("\n")):
                yield token.start[0] + offset, line


def lines_of_text(file: Path) -> Iterator[tuple[int, str]]:
    """Every line."""
    yield from enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)


def offenders(files: list[Path]) -> list[str]:
    """``file:line: word -> better: the line`` of every retired word."""
    found = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if name in EXEMPT:
            continue
        for number, line in lines_of_python(file) if file.suffix == ".py" else lines_of_text(file):
            for pattern, better in RETIRED.items():
                flags = 0 if "Said" in pattern else re.IGNORECASE
                match = re.search(pattern, line, flags)
                if match and not ALLOWED.search(line):
                    found.append(f"{name}:{number}: {match[0].strip()!r} -> {better}: {line.strip()}")
    return found


@pytest.mark.parametrize("kind", ["prose", "settings", "sources"])
def test_no_retired_word(kind: str) -> None:
    found = offenders({"prose": prose, "settings": settings, "sources": sources}[kind]())
    assert not found, f"{len(found)} retired words:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "retired"),
    [
        ("Look at the picture.", True),
        ("A clip of 5 frames.", True),
        ("It is no number.", True),
        ("There is no such file.", False),
        ("It is no longer used.", False),
        ("The gradient is clipped; clip the gradient norm.", False),
        ("CLIP ViT-L/14 and `clip`", False),
        ("few-shot examples, --shots FILE", False),
        ("The file lies there.", True),
    ],
)
def test_the_patterns(line: str, retired: bool) -> None:
    hit = any(re.search(p, line, re.IGNORECASE) for p in RETIRED if "Said" not in p) and not ALLOWED.search(line)
    assert hit is retired
