"""``vlm generate --ray`` on this machine: two actors, one of which is killed; the answers are those of one process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from vlm.cli.main import main
from vlm.datasets.formats.table.read import AllRows

from ..inference.small import write_config

pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
SHARDS, PER_SHARD, BAD = 3, 32, 50


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tar shards of images, one of which is damaged, and the answers of one process."""
    folder = tmp_path_factory.mktemp("ray")
    write_config(folder)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                out = io.BytesIO()
                Image.new("RGB", (40, 30), (number * 7 % 256, number * 13 % 256, number * 29 % 256)).save(out, "PNG")
                data = out.getvalue()[: 40 if number == BAD else None]
                for ext, content in (("png", data), ("json", json.dumps({"uid": number}).encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{ext}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert main([*asked(folder), "--output", str(folder / "plain.jsonl")]) == 0
    return folder


def asked(folder: Path) -> list[str]:
    shards = [str(folder / f"{shard:05d}.tar") for shard in range(SHARDS)]
    answer = ["--prompt", "Describe it.", "--max-new-tokens", "8", "--sample", "--top-p", "0.8", "--copy", "uid"]
    return ["generate", str(folder / "small.yaml"), "--data", *shards, *answer, "--batch-size", "1"]


def on_ray(folder: Path, output: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlm.cli", *asked(folder), "--output", output]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp"}
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONWARNINGS")} | own
    more = ["--ray", "auto", "--ray-actors", "2"]
    return subprocess.Popen([*command, *more], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def actors(root: int) -> list[int]:
    """Processes of actors below a process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [pid for pid, name in names.items() if b"Answering" in name and is_below(pid)]


@pytest.mark.heavy
def test_every_record_is_answered_once_though_an_actor_is_killed(corpus: Path) -> None:
    run = on_ray(corpus, str(corpus / "ray.jsonl"))
    parts, killed = corpus / "ray.jsonl.parts", 0
    while run.poll() is None and not killed:
        if len(list(parts.glob("part-*.keys"))) >= 2 and (found := actors(run.pid)):
            os.kill(found[0], signal.SIGKILL)
            killed = found[0]
        time.sleep(0.05)
    said = run.communicate(timeout=500)[0]
    assert run.returncode == 0 and killed, said[-3000:]
    assert (corpus / "ray.jsonl").read_text() == (corpus / "plain.jsonl").read_text()
    rows = [json.loads(line) for line in (corpus / "ray.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(SHARDS * PER_SHARD))
    assert "ray.jsonl: 95 answers" in said and "1 of 96 records could not be used" in said
    assert parts.exists()  # one record is left, which the same command would ask again


@pytest.mark.heavy
def test_a_killed_run_goes_on_where_it_stopped(corpus: Path) -> None:
    output = corpus / "tables"
    run = on_ray(corpus, f"{output}/")
    while run.poll() is None and not list(output.glob("part-*.keys")):
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    before = {file: file.stat().st_mtime_ns for file in output.glob("part-*.parquet")}
    assert before and json.loads((output / "manifest.json").read_text())["finished"] is False
    again = on_ray(corpus, f"{output}/")
    said = again.communicate(timeout=500)[0]
    assert again.returncode == 0, said[-3000:]
    rows = AllRows(sorted(str(file) for file in output.glob("part-*.parquet")))
    plain = [json.loads(line) for line in (corpus / "plain.jsonl").read_text().splitlines()]
    assert [rows[k][0]["text_output"] for k in range(len(rows))] == [row["text_output"] for row in plain]
    assert json.loads((output / "manifest.json").read_text())["bad"] == 1
