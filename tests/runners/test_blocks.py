"""Records in blocks: what is asked again, what is written, and shards and tables as records."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vlm.common.errors import DataError, UserError
from vlm.datasets.formats.table.read import AllRows
from vlm.inference.generation import EVALUATION
from vlm.runners.evaluate.blocks import Block, PartFolder, answer_block, blocks_of
from vlm.runners.evaluate.generate import Records, Request
from vlm.runners.evaluate.on_ray import STARTS, Answering, Job
from vlm.tasks.answers import Answer

from ..tasks.asked import Asked


class Processor:
    def encode_chat(self, messages):
        for medium in messages[0].media:
            Image.open(io.BytesIO(medium.source))
        return messages


class Engine(Asked):
    """Says what it was asked."""

    processor = Processor()

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, conversations, generation, batch_size=16):
        (messages,) = conversations
        self.asked.append(messages[-1].text)
        return [f"{messages[-1].text}!"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    write(path, [f"q{k}" for k in range(5)])
    return path


def write(path: Path, questions: list[str]) -> None:
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))


def png(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def answered(blocks: list[Block], request: Request, folder: PartFolder) -> list[str]:
    """What was asked."""
    engine = Engine()
    for block in blocks:
        answer_block(block, request, folder, lambda: engine, EVALUATION, 2)
    return sorted(engine.asked)


def test_blocks_cover_the_records_of_all_files(tmp_path: Path, file: Path) -> None:
    write(tmp_path / "b.jsonl", ["x", "y"])
    blocks = blocks_of([str(file), str(tmp_path / "b.jsonl")], 3)
    assert [(b.start, b.count, b.first) for b in blocks] == [(0, 3, 0), (3, 2, 3), (0, 2, 5)]
    assert [b.number for b in blocks] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_only_what_has_no_answer_is_asked_again(tmp_path: Path, file: Path, suffix: str) -> None:
    request, folder = Request([str(file)]), PartFolder(tmp_path / "out.parts", suffix)
    write(file, ["q0", "q1", "\ud800", "q3", "q4"])
    blocks = blocks_of(request.files, 3)
    folder.begin("f", len(blocks))
    assert answered(blocks, request, folder) == ["q0", "q1", "q3", "q4"]
    assert [bool(row.get("error")) for row in folder.rows(0)] == [False, False, True]
    assert [row["index"] for n in (0, 1) for row in folder.rows(n)] == [0, 1, 2, 3, 4]
    folder.begin("f", len(blocks))
    assert answered(blocks, request, folder) == []
    write(file, ["q0", "q1", "q2", "q3", "new"])  # mended, and changed
    assert answered(blocks, request, folder) == ["new", "q2"]
    for name in ("out.jsonl", "out.json", "out.parquet"):
        folder.merge(tmp_path / name, len(blocks))
        rows = AllRows([str(tmp_path / name)])
        assert [rows[k][0]["text_output"] for k in range(len(rows))] == ["q0!", "q1!", "q2!", "q3!", "new!"]
    (folder.path / "part-000001.keys").unlink()  # killed between the two files: the part does not count
    assert answered(blocks, request, folder) == ["new", "q3"]
    folder.remove()
    assert not folder.path.exists()


def test_a_folder_of_others_or_of_another_run_is_not_touched(tmp_path: Path, file: Path) -> None:
    folder = PartFolder(tmp_path / "p")
    folder.begin("f", 9)
    for number in (0, 8):
        folder.write(number, [{"index": number, "text_output": "x"}], ["k"])
    with pytest.raises(UserError, match="another prompt, another model or other options"):
        folder.begin("g", 9)
    folder.begin("f", 3)
    assert folder.part(0).exists() and not folder.part(8).exists()  # there are fewer records now
    folder.begin("g", 3, overwrite=True)
    assert not folder.part(0).exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files of others"):
        PartFolder(tmp_path / "mine").begin("f", 1, overwrite=True)


def test_a_block_that_ends_every_actor_ends_the_run(tmp_path: Path, file: Path) -> None:
    folder = PartFolder(tmp_path / "p")
    folder.begin("f", 1)
    job = Job(None, Request([str(file)]), EVALUATION, str(folder.path), ".jsonl")
    batch = {"number": [0], "file": [str(file)], "start": [0], "count": [5], "first": [0]}
    for _ in range(STARTS):
        folder.start(0)
    (said,) = Answering(job)(batch)["failure"]
    assert f"records 0 to 4 ({file}) ended {STARTS} actors" in said
    folder.begin("f", 1)  # the next run tries again
    assert folder.start(0) == 1


def test_tar_shards_are_records_with_images(tmp_path: Path) -> None:
    members = {
        "0001.png": png("red"), "0001.json": b'{"caption": "a field", "uid": 7}', "0001.txt": b" hello\n",
        "0002.jpg": png("blue"), "0003.json": b"[1]", "0004.json": b"{}",
    }  # fmt: skip
    path = shard(tmp_path / "a.tar", members)
    rows = AllRows([str(path)])
    record, where = rows[0]
    assert (record["id"], record["caption"], record["text"], record["uid"]) == ("0001", "a field", "hello", 7)
    assert record["image"]["bytes"] == members["0001.png"] and where == f"{path}: record 0"
    with pytest.raises(DataError, match="record 0003: its .json is a list"):
        rows[2]
    request = Request([str(path)], prompt="What is it?", copy=["uid"], answer_field="")
    engine, folder = Engine(), PartFolder(tmp_path / "p")
    folder.begin("f", 1)
    bad, reason = answer_block(blocks_of([str(path)], 9)[0], request, folder, lambda: engine, EVALUATION, 2)
    assert bad == 1 and "its .json is a list" in reason
    assert folder.rows(0)[0] == {"index": 0, "text_output": "What is it?!", "uid": 7}
    whole = Request([str(path)], prompt="What is it?", answer_field="said")
    assert json.dumps(Records(whole).line(0, Answer("x"))) == json.dumps(
        {"id": "0001", "text": "hello", "caption": "a field", "uid": 7, "said": "x"}
    )
    keys = Records(request).keys()
    shard(path, members | {"0002.jpg": png("blue") + b"longer"})
    again = Records(request).keys()
    assert keys[0] == again[0] and keys[1] != again[1]
