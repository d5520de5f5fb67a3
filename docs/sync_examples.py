"""Copies the examples into the pages that show them: ``python docs/sync_examples.py``.

A code block whose first line ends in ``title="FILE"`` shows ``docs/extend/examples/FILE``. The pages hold the text
itself, so that they can be read on a code host as well; a test compares it with the files.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS / "extend" / "examples"
BLOCK = re.compile(r'(```\w+ title="([^"]+)"\n)(.*?)(```)', re.DOTALL)


def synced(text: str) -> str:
    """``text`` of a page with its blocks as the files are now."""

    def block(match: re.Match[str]) -> str:
        return match[1] + (EXAMPLES / match[2]).read_text(encoding="utf-8") + match[4]

    return BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the pages."""
    for page in DOCS.glob("extend/*.md"):
        page.write_text(synced(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
