"""The configuration reference, read from the dataclasses of the parts: ``python docs/gen_reference.py`` prints it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vlm.config.schema import spelled  # noqa: E402 - found by the line above

KINDS = {
    "vision": "model.vision",
    "bridge": "model.bridge",
    "fusion": "model.fusion",
    "insert": "model.inserts",
    "llm": "model.llm",
    "template": "model.template",
    "image": "model.image",
    "video": "model.video",
    "text": "model.text",
    "generation": "model.generation",
    "dataset": "datasets.NAME.build_info",
    "benchmark": "run.benchmark",
}
"""Kind -> where its options are written."""

NAMED = {
    "task": "run.task",
    "runner": "run.runner",
    "scheduler": "run.lr_sched",
    "tracker": "run.trackers",
    "checkpoint_format": "model.weights[].format",
    "source": "argument of commands and of vlm.load",
    "architecture": "model_type in the config.json of a folder",
    "export": "vlm weights export --format",
}
"""Kinds without options of their own."""


def comments(cls: type) -> dict[str, str]:
    """Field -> the comment after it in the source of the class."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            tail = lines[node.end_lineno - 1][node.end_col_offset :]  # type: ignore[index]
            if "#" in tail:
                found[node.target.id] = tail.partition("#")[2].strip()
    return found


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default as YAML shows it."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "{}"
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    return f"`{text or repr(value)}`"


def as_code(text: str) -> str:
    """A type as a cell of a table."""
    return "`" + text.replace("|", "\\|").replace("\n", " ") + "`"


def table(cls: type) -> list[str]:
    """One row per field of a dataclass."""
    notes: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        notes |= comments(base)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    types = spelled(cls)
    for field in dataclasses.fields(cls):
        form, allowed = types[field.name]
        about = str(field.metadata.get("help") or notes.get(field.name, "")).replace("|", "\\|")
        default = default_of(field).replace("|", "\\|").replace("\n", "\\n")
        rows.append(f"| `{field.name}` | {as_code(form)} | {default} | {'; '.join(filter(None, (about, allowed)))} |")
    return rows


def paragraph(doc: str | None) -> str:
    """A docstring as Markdown."""
    return inspect.cleandoc(doc or "").replace("``", "`")


def part(kind: str, name: str) -> list[str]:
    """A registered class with its options."""
    from vlm.common.registry import resolve

    cls = resolve(kind, name)
    options = getattr(cls, "Config", None)
    if options is None and dataclasses.is_dataclass(cls):
        options = cls
    text = [f"### {kind}: {name}", paragraph(cls.__doc__)]
    if options is not None and dataclasses.is_dataclass(options):
        if options is not cls and options.__doc__ and "(" not in options.__doc__.split("\n")[0][:12]:
            text.append(paragraph(options.__doc__))
        if dataclasses.fields(options):
            text.append("\n".join(table(options)))
    return text


def configuration() -> str:
    """The page."""
    from vlm.common.registry import FOLDERS, names
    from vlm.config.run import RunConfig

    text = [
        "# Configuration reference",
        "Made from the source at build time. `vlm config show X.yaml` prints every value in force with `--origin` for "
        "where it comes from; `vlm list KIND` prints names.",
        "## run",
        "\n".join(table(RunConfig)),
    ]
    for kind, place in KINDS.items():
        if kind in FOLDERS and names(kind):
            text.append(f"## {place}")
            for name in names(kind):
                text += part(kind, name)
    for kind, place in NAMED.items():
        if kind in FOLDERS and names(kind):
            text.append(f"## {place}")
            for name in names(kind):
                text += part(kind, name)
    return "\n\n".join(piece for piece in text if piece) + "\n"


if __name__ == "__main__":
    sys.stdout.write(configuration())
