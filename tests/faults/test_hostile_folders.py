"""Folders and files that somebody sends: each oddity is one message, and nothing outside of them is touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.checkpoint import run_files
from vlm.checkpoint.run_folder import RunDir, find_checkpoint
from vlm.cli.main import main
from vlm.common.errors import ConfigError, DataError, UserError, WeightsError
from vlm.common.paths import ASSETS
from vlm.common.trust import was_trained_here
from vlm.config.types import Part
from vlm.datasets.formats.plain_pickle import read_plain_pickle
from vlm.datasets.formats.shard_reader import expand, read_shard
from vlm.models.build import _part
from vlm.models.llm.hf import HFCausalLM
from vlm.processors.tokenizer.tokenizer import Tokenizer

LLM = ASSETS / "tiny" / "llm"
DEEP = "[" * 100_000


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    found.prepare()
    found.write_config("model: {}\n")
    for step in (1, 2):
        found.save(step, {"a": torch.zeros(2)}, {"step": step}, {}, "model: {}\n")
    return found


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([1], 2)[:2] + b"]r\xff\xff\xff\xff.",  # a place in the memo for which C would make 64 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"N.",
        b"\x80\x02\x82\x01.",
        b"cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_a_pickle_takes_no_more_than_it_has(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "refs.p"
    file.write_bytes(content)
    code = (
        "import resource, sys; from vlm.datasets.formats.plain_pickle import read_plain_pickle as read\n"
        "from vlm.common.errors import DataError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)\n"
        "try: read(sys.argv[1], 'referring')\n"
        "except DataError as error: print(error)\n"
    )
    if b"r\xff" in content:  # only this one would be allocated, whatever the limits of the machine
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    else:
        with pytest.raises(DataError, match="is refused: ."):
            read_plain_pickle(file, "referring")


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="cannot be read"):
        read_plain_pickle(tmp_path / "pipe", "referring")
    assert [r.fault for r in read_shard(f"file://{tmp_path}/pipe")] == ["unreadable ([Errno 22] is not a regular file)"]
    assert not was_trained_here(tmp_path / "pipe") and not was_trained_here(Path("/dev/zero"))
    with pytest.raises(UserError):
        expand("x" * 5000)


@pytest.mark.parametrize(
    "listed", [DEEP, "[1, null]", '{"a": {"bytes": Infinity, "crc32": ""}}', '{"a\\u0000": {"bytes": 1, "crc32": ""}}']
)
def test_odd_checksums_are_a_damaged_checkpoint(run: RunDir, listed: str) -> None:
    (run.folder(2) / run_files.CHECKSUMS).write_text(listed)
    assert find_checkpoint(run.path) == run.folder(1).resolve()
    assert run_files.remove_checkpoint(run.folder(2)) is (not listed.startswith("{"))  # what is not listed stays


def test_checksums_that_fit_do_not_make_weights(run: RunDir) -> None:
    weights, list_file = run.folder(2) / run_files.WEIGHTS, run.folder(2) / run_files.CHECKSUMS
    listed, content = json.loads(list_file.read_text()), b"version https://git-lfs.github.com/spec/v1\n" * 9
    weights.write_bytes(content)
    listed[weights.name] = {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    list_file.write_text(json.dumps(listed))
    assert find_checkpoint(run.path) == run.folder(1).resolve()
    with pytest.raises(WeightsError, match="not a weight file"):
        find_checkpoint(run.folder(2))


def test_a_step_has_one_name(run: RunDir) -> None:
    shutil.copytree(run.folder(2), run.checkpoints / "step_0000000003")
    assert run.steps() == [1, 2] and run.prune(1) == [1]


def test_what_a_link_leads_to_is_never_deleted(run: RunDir, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    run_files.write_manifest(sent)
    (sent / "config.yaml").write_text("model: {}\n")
    for name in ("checkpoints", "tensorboard"):
        (sent / name).symlink_to(run.checkpoints)
    with pytest.raises(UserError, match="already holds a run"):
        RunDir(sent).prepare(overwrite=True)
    (sent / run_files.MANIFEST).write_text(DEEP)
    assert run_files.own_names(sent) == set() and run.steps() == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"hidden_act": "x"},
        {"dtype": "x"},
        {"text_config": {}},
        {"attention_bias": []},
        {"model_type": ["llama"]},
        {"hidden_size": 10**9},
        {"vocab_size": -1},
        {"pad_token_id": 10**9},
        {"attn_implementation": "evil/kernels"},
    ],
)
def test_odd_configurations_of_language_models(tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((LLM / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    part = Part("hf", HFCausalLM.Config(path=str(tmp_path)))
    if "attn_implementation" in change:  # named by a file, and never fetched
        assert "evil" not in _part("llm", part, ()).model.config._attn_implementation
        return
    with pytest.raises((ConfigError, WeightsError), match=r"model\.llm|config\.json"):
        _part("llm", part, ())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"pad_token": 5}),
        ("tokenizer_config.json", {"pad_token": {"content": "\ud800"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": {"content": None}}}),
        ("tokenizer_config.json", {"additional_special_tokens": 5}),
        ("special_tokens_map.json", {"bos_token": ["<s>"]}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": 1}]}),
        ("added_tokens.json", {"<a>": None}),
        ("added_tokens.json", {"<a>": -1}),
        ("tokenizer.json", {"model": {}}),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}, "version": "1.0"}),
        ("tokenizer.json", DEEP),
    ],
)
def test_odd_tokenizers(tmp_path: Path, file: str, content: Any) -> None:
    for source in LLM.glob("*token*"):
        if file != "tokenizer.json" or source.name != "tokenizer.model":
            shutil.copy(source, tmp_path)
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    if content == {"added_tokens_decoder": []}:  # empty
        Tokenizer.from_folder(tmp_path)
        return
    with pytest.raises(WeightsError, match=file):
        Tokenizer.from_folder(tmp_path)


def test_a_name_that_no_file_can_have_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "x" * 5000]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: xxx") and "Traceback" not in said
