"""Writes the tables of ``docs/guides/study_file.md`` from the classes of a study file: ``python docs/sync_study.py``.

The page holds the text itself; a test compares it with the classes.
"""

from __future__ import annotations

import re
from pathlib import Path

from gen_reference import table

from vlm.runners.study.file import Budget, Cluster, Evaluation, Search, Stage, StudyFile

PAGE = Path(__file__).resolve().parent / "guides" / "study_file.md"
TABLES: dict[str, type] = {
    "study": StudyFile,
    "stage": Stage,
    "budget": Budget,
    "evaluation": Evaluation,
    "search": Search,
    "cluster": Cluster,
}


def synced(text: str) -> str:
    """``text`` of the page with its tables as the classes are now."""
    for name, cls in TABLES.items():
        rows = "\n".join(table(cls))
        pattern = rf"(<!-- {name}-table -->\n).*?(<!-- end {name}-table -->)"
        text = re.sub(pattern, lambda found, rows=rows: f"{found[1]}\n{rows}\n\n{found[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(synced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
