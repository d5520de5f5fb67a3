from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.datasets.formats.caption_folder import CaptionFolder


def test_a_record_becomes_a_image_and_its_caption(caption_folder: Callable[..., Path]) -> None:
    root = caption_folder(3)
    data = CaptionFolder(CaptionFolder.Config(storage=str(root), image_ext=".png"))
    assert len(data) == 3
    user, assistant = data[2].messages
    assert [m.source for m in user.media] == [str(root / "image" / "2.png")]
    assert user.text == ""
    assert assistant.text == json.loads((root / "filter_cap.json").read_text())["annotations"][2]["caption"]
    assert data[2].id == "2"


def test_the_published_layout_of_the_golden_case() -> None:
    root = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "data" / "cc_sbu_align"
    data = CaptionFolder(CaptionFolder.Config(storage=str(root)))
    assert len(data) == 5
    assert all(Path(data[i].messages[0].media[0].source).is_file() for i in range(5))
    assert data[0].messages[1].text == "The red boat stands near the water."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file .*filter_cap.json"),
        ("{", "is not JSON"),
        ("[1, 2]", r'expected \{"annotations": \[objects\]\}, found list'),
        ('{"annotations": {}}', "found dict"),
    ],
)
def test_unusable_files(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "filter_cap.json").write_text(content)
    with pytest.raises(DataError, match=words):
        CaptionFolder(CaptionFolder.Config(storage=str(tmp_path)))


def test_a_record_without_caption_names_itself(tmp_path: Path) -> None:
    (tmp_path / "filter_cap.json").write_text('{"annotations": [{"image_id": "1", "text": "x"}]}')
    data = CaptionFolder(CaptionFolder.Config(storage=str(tmp_path)))
    with pytest.raises(DataError, match=r"annotation 0: no field 'caption' \(it has image_id, text\)"):
        data[0]


@pytest.mark.parametrize("caption", [" ", None, 3])
def test_empty_captions(tmp_path: Path, caption: Any) -> None:
    tree = {"annotations": [{"image_id": "1", "caption": caption}]}
    (tmp_path / "filter_cap.json").write_text(json.dumps(tree))
    data = CaptionFolder(CaptionFolder.Config(storage=str(tmp_path)))
    with pytest.raises(DataError, match=f"annotation 0: the caption is {caption!r}, not a text\n  fix: remove"):
        data[0]
