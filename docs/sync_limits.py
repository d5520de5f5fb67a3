"""Writes the tables of ``docs/guides/serve.md`` from the classes that they are about: ``python docs/sync_limits.py``.

The page holds the text itself; a test compares it with the classes.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from vlm.config.run import Serving
from vlm.serve.http.limits import Limits

PAGE = Path(__file__).resolve().parent / "guides" / "serve.md"
TABLES = {"limits": ("`--limit`", Limits), "serving": ("`--options run.serving.`", Serving)}


def synced(text: str) -> str:
    """``text`` of the page with its tables as the classes are now."""
    for name, (head, cls) in TABLES.items():
        pattern = rf"(<!-- {name}-table -->\n).*?(<!-- end {name}-table -->)"
        table = f"| {head} | default | |\n|---|---|---|\n{''.join(map(row, dataclasses.fields(cls)))}"
        text = re.sub(pattern, lambda found, table=table: found[1] + table + found[2], text, flags=re.DOTALL)
    return text


def row(field: dataclasses.Field) -> str:
    """A line of a table."""
    value = field.default
    shown = "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()
    return f"| `{field.name}` | {shown} | {field.metadata['help']} |\n"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(synced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
