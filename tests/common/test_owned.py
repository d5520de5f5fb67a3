"""Only files that a command wrote are replaced by it."""

import json

import pytest

from vlm.common.errors import UserError
from vlm.common.owned import is_page, is_records, is_table, write_own
from vlm.pages.parts import AnswerCard
from vlm.pages.samples import page

FOREIGN = ["# notes\n", '{"a": 1}\n', '{\n  "a": 1\n}\n', "<!doctype html><title>mine</title>", "\ufeff", "\0\1", "[1]"]


@pytest.mark.parametrize("ours", [is_page, is_table, is_records("dataset")])
@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_files_stay(tmp_path, text, ours):
    file = tmp_path / "x"
    file.write_text(text)
    with pytest.raises(UserError, match=r"not written by this command[\s\S]*another file"):
        write_own(file, "new", ours)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (is_table, json.dumps({"vqa": {"right": {}}}, indent=1)),
        (is_table, "{}\n"),
        (is_records("dataset"), json.dumps({"dataset": "a"}) + "\n"),
        (is_page, '<!doctype html>\n<html><head><meta charset="utf-8"><meta name="generator" content="vlm">'),
        (is_page, ""),
    ],
)
def test_our_files_are_replaced(tmp_path, ours, text):
    file = tmp_path / "new" / "x"
    write_own(file, text, ours)
    assert write_own(file, text, ours).read_text() == text and [p.name for p in file.parent.iterdir()] == ["x"]


def test_folders_and_loops_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "."):
        with pytest.raises(UserError, match="is not a file"):
            write_own(tmp_path / name, "x", is_page)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        write_own(tmp_path / "file" / "x", "x", is_page)


def test_pages_say_that_they_are_ours():
    from vlm.pages.compare import page as compare_page

    assert AnswerCard and is_page(page("t", [], None, None, None)) and callable(compare_page)
