"""Copying from mapped files: the numbers are the same, and what was read is given back."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.common.processes.pages import MappedFiles
from vlm.common.processes.shards import fill, is_split, rows_of, whole


def resident() -> int:
    """Bytes of mapped files that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_mapped_file_are_given_back_and_read_again(tmp_path):
    tensor = torch.arange(2**22, dtype=torch.float32).view(64, -1)  # 16 MiB
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    mapped = load_file(tmp_path / "a.safetensors")["a"]
    assert torch.equal(mapped, tensor)
    held = resident()
    MappedFiles().give_back(mapped)
    assert held - resident() > 0.9 * tensor.nbytes
    assert torch.equal(mapped, tensor)


def test_memory_that_is_no_file_is_left_alone():
    tensor = torch.arange(2**20)
    MappedFiles().give_back(tensor)
    MappedFiles().give_back(tensor[:0])
    assert torch.equal(tensor, torch.arange(2**20))


def test_a_tensor_is_copied_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("vlm.common.processes.shards.PIECE", 40)
    source, target, seen = torch.arange(35.0).view(7, 5), torch.zeros(7, 5, dtype=torch.bfloat16), []
    fill(target, source, seen.append)
    assert torch.equal(target, source.bfloat16())
    assert [len(rows) for rows in seen] == [2, 2, 2, 1] and torch.equal(torch.cat(seen), source)


@pytest.mark.parametrize("shape", [(), (0, 3), (4,)])
def test_any_shape_is_copied(shape):
    source, target = torch.full(shape, 3.0), torch.zeros(shape)
    fill(target, source, lambda rows: None)
    assert torch.equal(target, source)


def test_plain_tensors_are_whole():
    tensor = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    assert not is_split(tensor) and whole(tensor) is tensor
    assert torch.equal(rows_of(tensor, torch.tensor([2, 0])), tensor.detach()[[2, 0]])
