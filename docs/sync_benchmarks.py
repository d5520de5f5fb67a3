"""Writes the tables of ``docs/guides/standard_benchmarks.md`` from the benchmarks: ``python docs/sync_benchmarks.py``.

The page holds the text itself; a test compares it with the benchmarks' YAML files.
"""

from __future__ import annotations

import re
from pathlib import Path

from vlm.common.registry import names, resolve
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.spec import Spec

PAGE = Path(__file__).resolve().parent / "guides" / "standard_benchmarks.md"
TITLES = {
    "vqa": "Short answers", "choice": "Multiple choice", "yes_no": "Yes or no", "caption": "Captions",
    "boxes": "Boxes", "open": "Open answers",
}  # fmt: skip


def found() -> dict[str, tuple[Spec, list[str]]]:
    """First name -> what the YAML says, and all names, of every standard benchmark that ships."""
    result: dict[type, tuple[Spec, list[str]]] = {}
    for name in names("benchmark"):
        cls = resolve("benchmark", name)
        if isinstance(cls, type) and issubclass(cls, StandardBenchmark) and cls.__module__.startswith("vlm."):
            result.setdefault(cls, (cls.spec(), []))[1].append(name)
    return {own[0]: (spec, own) for spec, own in result.values()}


def tables() -> str:
    """The whole text between the two comments of the page."""
    specs, text = found(), ""
    for task, title in TITLES.items():
        rows = [row(spec, own) for spec, own in specs.values() if spec.task == task]
        if rows:
            head = "| name | | files under `--data` | `--media-root` | splits | score |\n|---|---|---|---|---|---|\n"
            text += f"\n## {title}\n\n{head}{''.join(sorted(rows))}"
            text += "\n" + "".join(protocols(spec, own) for spec, own in specs.values() if spec.task == task)
    return text


def row(spec: Spec, own: list[str]) -> str:
    """A line of a table."""
    first = next(iter(spec.protocols.values()))
    score = "by others" if spec.unscored else first.primary or ", ".join(first.metrics)
    files = ", ".join(f"`{file}`" for file in spec.files)
    cells = (", ".join(f"`{name}`" for name in own), spec.about, files, spec.media, ", ".join(spec.splits), score)
    return "| " + " | ".join(cells) + " |\n"


def protocols(spec: Spec, own: list[str]) -> str:
    """What each protocol of a benchmark is, and the fields of a file of answers."""
    said = "".join(f" *{name}*: {protocol.about}" for name, protocol in spec.protocols.items())
    fields = [" or ".join(f"`{name}`" for name in found) for found in (spec.answers.id, spec.answers.text)]
    return f"- **{own[0]}** ({spec.source}).{said} Fields of `--answers`: {', '.join(fields)}.\n"


def synced(text: str) -> str:
    """``text`` of the page with its tables as the benchmarks are now."""
    mark = r"(<!-- benchmarks -->\n).*?(<!-- end benchmarks -->)"
    return re.sub(mark, lambda match: match[1] + tables() + match[2], text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(synced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
