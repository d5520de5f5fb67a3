"""A PNG of a page, or of its part from one element to another: python docs/screenshot.py PAGE.html OUT.png

With ``--first '#table' --last '#cost'``, only what is between these elements, both included.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MARGIN = 24


def main() -> None:
    """Draw the page with Chromium, without a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--first", default="main", metavar="SELECTOR")
    parser.add_argument("--last", default="main", metavar="SELECTOR")
    parser.add_argument("--scheme", default="light", choices=["light", "dark"])
    args = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, names)), None)
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        context = browser.new_context(
            viewport={"width": args.width, "height": 900}, color_scheme=args.scheme, offline=True
        )
        page = context.new_page()
        page.goto(args.page.resolve().as_uri())
        first, last = (page.locator(selector).first.bounding_box() for selector in (args.first, args.last))
        if first is None or last is None:
            parser.error(f"{args.page} has no visible {args.first if first is None else args.last}")
        top = max(first["y"] - MARGIN, 0)
        height = last["y"] + last["height"] + MARGIN - top
        page.screenshot(
            path=args.output, full_page=True, clip={"x": 0, "y": top, "width": args.width, "height": height}
        )
        browser.close()


if __name__ == "__main__":
    main()
