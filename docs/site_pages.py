"""mkdocs hook: pages from elsewhere in the repository, the generated reference, and links that work in both places.

A page under ``docs/`` links to files of the repository by relative paths, as a code host needs them. Here such a link
is turned into one to the page of the site, or into plain code where the site has no page for the file.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"^(?:[a-z]+:|#|/)")
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.DOTALL | re.MULTILINE)


def copied() -> dict[str, str]:
    """Files of the repository outside ``docs/`` that are pages of the site: path in the repository -> page."""
    pages = {
        "README.md": "index.md",
        "ARCHITECTURE.md": "architecture.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "vlm/assets/tiny/README.md": "systems/tiny_foundations.md",
    }
    for file in sorted(ROOT.glob("vlm/systems/*/README.md")):
        pages[file.relative_to(ROOT).as_posix()] = f"systems/{file.parent.name}.md"
    for file in sorted(ROOT.glob("dataset/*.md")):
        pages[file.relative_to(ROOT).as_posix()] = f"dataset/{file.name}"
    return pages


def rewrite(text: str, source: str, page: str, pages: dict[str, str]) -> str:
    """The links of ``text`` as they have to be on ``page``.

    Args:
        text: Markdown.
        source: the file that it comes from, relative to the repository.
        page: the page, relative to the site.
        pages: file of the repository -> page, for every page of the site.
    """

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if OUTSIDE.match(target):
            return match[0]
        path, mark, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if file in pages:
            there = posixpath.relpath(pages[file], posixpath.dirname(page) or ".")
            return f"[{label}]({there}{mark}{anchor})"
        if not (ROOT / file).exists():
            return match[0]  # broken: mkdocs reports it
        return label if label.startswith("`") else f"{label} (`{file}`)"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def on_files(files: Any, config: Any) -> Any:
    """Add the copied and the generated pages."""
    sys.path.insert(0, str(Path(__file__).parent))
    from gen_reference import configuration
    from mkdocs.structure.files import File

    pages = copied()
    start = files.get_file_from_path("index.md")
    if start is not None:  # docs/index.md is the table of contents on a code host; the site starts with the README
        files.remove(start)
    for source, page in pages.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/chat.png)", "](chat.png)")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    pages = {f"docs/{f.src_uri}": f.src_uri for f in files.documentation_pages()} | copied()
    pages["docs/index.md"] = "index.md"
    origin = {target: source for source, target in copied().items()}
    return rewrite(markdown, origin.get(page.file.src_uri, f"docs/{page.file.src_uri}"), page.file.src_uri, pages)
