"""Bad records in a real run: one message each, a line in the quarantine, counts; above the limit the run stops."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from vlm.cli.main import main

from .test_command_line import CASE, config  # noqa: F401

FAULTS = {
    "bomb.png": "3600000000 pixels, allowed are",
    "half.jpg": "corrupt or truncated",
    "none.jpg": "no such file",
    "marks": "2 <image> placeholders but 1 images",
    "answer": "the answer is empty",
    "line": "is not JSON",
}


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def lines(good: str) -> list[str]:
    """A record with each of the faults, far from one another."""
    record = {"image": good, "question": "What is it?", "answer": "a boat"}
    bad: dict[str, str] = {name: json.dumps({**record, "image": name}) for name in list(FAULTS)[:3]}
    bad["marks"] = json.dumps({**record, "question": "<image> or <image>?"})
    bad["answer"] = json.dumps({**record, "answer": " "})
    bad["line"] = "{oops"
    return [line for name in FAULTS for line in [bad[name], *[json.dumps(record)] * 7]]


@pytest.mark.parametrize(("share", "code"), [(0.5, 0), (0.01, 2)])
def test_a_run_on_bad_records(
    tmp_path: Path,
    config: dict,  # noqa: F811
    capsys: pytest.CaptureFixture,
    share: float,
    code: int,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    source = next((CASE / "data" / "cc_sbu_align" / "image").iterdir())
    (images / source.name).write_bytes(source.read_bytes())
    (images / "half.jpg").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    (images / "bomb.png").write_bytes(bomb())
    (tmp_path / "a.jsonl").write_text("\n".join(lines(source.name)))
    build_info = {"ann_path": str(tmp_path / "a.jsonl"), "image_path": str(images)}
    config["datasets"] = {"mine": {"format": "table", "batch_size": 6, "build_info": build_info}}
    config["run"].update(max_steps=12, max_bad_share=share)
    for key in ("valid_datasets", "evaluation_datasets", "val_freq"):
        config.pop(key, None)
        config["run"].pop(key, None)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    assert main(["train", "--cfg-path", str(file)]) == code
    shown = capsys.readouterr()
    told = shown.out + shown.err
    assert "Traceback" not in told
    written = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    if code:
        assert "records could not be used, allowed are 1.0%" in shown.err
        assert len([line for line in shown.err[shown.err.index("error: ") :].splitlines() if line[:4] == "  - "]) == 3
        assert 3 <= len(written) <= len(FAULTS)
        return
    reasons = sorted(line["reason"] for line in written)
    assert len(reasons) == len(FAULTS)
    assert all(any(words in reason for reason in reasons) for words in FAULTS.values())
    assert all(told.count(reason.splitlines()[0]) >= 1 for reason in reasons)
    assert "finished after step 12" in told
