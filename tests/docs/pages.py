"""Commands and code blocks of the pages that people read, and what checks a command without running it."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from vlm.cli.main import parser_of
from vlm.common.errors import UserError
from vlm.common.registry import names, resolve
from vlm.config.shipped import find

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "extend" / "examples"
FREE = (
    "python3",
    "pip",
    "conda",
    "cd",
    "source",
    "wget",
    "curl",
    "docker",
    "sbatch",
    "img2dataset",
    "hf",
    "head",
    "pytest",
    "lmms-eval",
)
"""Programs of others, whose arguments nothing here can check."""


def pages() -> list[Path]:
    """README, docs, the systems' and the corpora's pages."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("dataset/*.md")]
    return sorted([*found, *ROOT.glob("vlm/systems/*/README.md")])


def blocks(text: str, language: str) -> list[str]:
    """The contents of the code blocks in a language."""
    return re.findall(rf"```{language}(?: [^\n]*)?\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """Every command line: of ``bash`` blocks, after ``$`` in ``console`` blocks, and in single backticks."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    lines += [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += re.findall(r"`((?:vlm|make|python|torchrun|head) [^`]+)`", prose)
    parts = [part for line in lines for part in re.split(r" && ", line.split("  #")[0].split(" # ")[0])]
    return [part.strip() for part in parts if part.strip()]


def problem(command: str) -> str | None:
    """What is wrong with a command, or None: its flags, and the files and names of this repository in it."""
    words = shlex.split(command)
    while re.fullmatch(r"\w+=\S*", words[0]):  # PYTHONPATH=.
        words = words[1:]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = [w for w in words[1:] if "=" not in w]
        missing = [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]
        return f"no target {missing}" if missing else None
    if words[0] in FREE:
        return None
    if words[:2] == ["python", "-m"]:
        return None if (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file() else f"no module {words[2]}"
    if words[0] == "torchrun":
        at = words.index("vlm.cli") + 1 if "vlm.cli" in words else words.index("train.py")
        words = ["vlm", *words[at:]] if "vlm.cli" in words else words[at:]
    if words[0] == "python" and words[1].endswith(".py"):
        words = words[1:]
    if words[0] in ("train.py", "demo.py"):
        words = ["vlm", words[0].removesuffix(".py"), *words[1:]]
    if words[0].endswith(".py"):
        return None if (ROOT / words[0]).is_file() else f"no file {words[0]}"
    return check_vlm(words[1:]) if words[0] == "vlm" else "a command that nothing checks"


def check_vlm(words: list[str]) -> str | None:
    """Whether the arguments of ``vlm`` parse, and the shipped files in them exist."""
    if any(word.isupper() or "..." in word for word in words):  # `vlm list KIND`: a form, not a command
        return None
    if words[0] == "--plugin":
        for module in words[1].split(","):
            if not (EXAMPLES / f"{module}.py").is_file() and not (EXAMPLES / module).is_dir():
                return f"no example {module}"
        words = words[2:]
    size = 2 if " ".join(words[:2]) in names("command") else 1
    name, arguments = " ".join(words[:size]), words[size:]
    if name not in names("command"):
        return None if f'"{name}"' in (EXAMPLES / "my_command.py").read_text() else f"no command {name}"
    if not arguments or (size == 1 and len(arguments) == 1 and arguments[0].isalpha()):  # `vlm config check`
        return None
    parser: argparse.ArgumentParser = parser_of(name, resolve("command", name)())
    try:
        parser.parse_args(arguments)
    except SystemExit:
        return "its arguments do not parse"
    return next((wrong for word in arguments if (wrong := missing(word, name))), None)


def missing(word: str, command: str) -> str | None:
    """What a word of a command names that does not ship, if anything."""
    if word.startswith(("train_configs/", "eval_configs/")) and not (ROOT / word).is_file():
        return f"no file {word}"
    named = command in ("train", "demo", "chat", "eval", "config") and re.fullmatch(r"[a-z_\d]+/[a-z_\d]+", word)
    if named and not word.startswith(("output/", "results/", "data/", "checks/")):
        try:
            find(word, train=command == "train")
        except UserError as error:
            return str(error)
    return None
