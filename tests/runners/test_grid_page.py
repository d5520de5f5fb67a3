"""The page with many images in a grid."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlm.common.errors import DataError
from vlm.pages.grid import Cell, page


def test_images_answers_and_captions_in_groups(tmp_path: Path) -> None:
    cells = [Cell(Image.new("RGB", (8, 8), "red"), [("<b>", True), ("", False)], "a & b")]
    text = page("Title", [("First", cells), ("", cells)], "About <it>")
    assert text.count("<figure>") == 2 and text.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;" in text and "About &lt;it&gt;" in text and 'alt="a &amp; b"' in text
    assert text.count('<div class="wrong">(empty)</div>') == 2 and text.count("<h2>") == 1
    with pytest.raises(DataError):
        page("Title", [("", [Cell(str(tmp_path / "none.png"), [])])])
