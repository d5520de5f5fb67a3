"""Tensors in parts of several processes: files, joining, reading, faults. Split models are in tests/equivalence."""

import os
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.checkpoint.shards.optimizer import load_state, split_state
from vlm.checkpoint.shards.parts import Parts, part_files
from vlm.checkpoint.shards.pieces import Piece, join_pieces, own_pieces, write_pieces
from vlm.checkpoint.shards.reader import PiecesReader
from vlm.common.errors import UserError, WeightsError

MATRIX = torch.arange(15.0).reshape(5, 3)
HALF = torch.arange(4).to(torch.bfloat16)


@pytest.fixture
def files(tmp_path):
    """A matrix in rows 0 to 2 and 3 to 4, a vector and a number of one process."""
    one = [Piece("m", (5, 3), (0, 0), MATRIX[:3].clone()), Piece("v", (4,), (0,), HALF)]
    one.append(Piece("n", (), (), torch.tensor(7.0)))
    paths = [tmp_path / f"optimizer.{rank:05d}.safetensors" for rank in range(2)]
    write_pieces(paths[0], one)
    write_pieces(paths[1], [Piece("m", (5, 3), (3, 0), MATRIX[3:].clone())])
    return paths


def empty():
    return {"m": torch.zeros(5, 3), "v": torch.zeros(4, dtype=torch.bfloat16), "n": torch.zeros(())}


def test_parts_are_joined_and_read(files, tmp_path):
    join_pieces(files, tmp_path / "whole.safetensors", {"step": "3"})
    targets = empty()
    PiecesReader(files).read_into(targets, "run")
    for found in (load_file(tmp_path / "whole.safetensors"), targets):
        assert torch.equal(found["m"], MATRIX) and torch.equal(found["v"], HALF) and found["n"] == 7
    again = empty()
    PiecesReader([tmp_path / "whole.safetensors"]).read_into(again, "run")
    assert all(torch.equal(again[key], targets[key]) for key in targets)


@pytest.mark.filterwarnings("ignore")
def test_torch_reads_the_files_with_its_own_reader(files, tmp_path):
    targets = {"m": torch.zeros(5, 3)}
    dcp.load(targets, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(targets["m"], MATRIX)


def test_a_part_that_is_missing_is_said(files, tmp_path):
    with pytest.raises(WeightsError, match=r"run: m is \[5, 3\] with 9 numbers, expected \[5, 3\] with 15"):
        PiecesReader(files[:1]).read_into(empty(), "run")
    with pytest.raises(WeightsError, match="run lacks 2 tensors, first v"):
        PiecesReader(files[1:]).read_into(empty(), "run")
    with pytest.raises(ValueError, match="m: 9 of 15 numbers"):
        join_pieces(files[:1], tmp_path / "whole.safetensors", {})


@pytest.mark.parametrize(
    "where",
    ["no json", "[]", "[1]", '{"m": 3}', '{"m": {"saved_offsets": [4, 0], "shape": [5, 3]}}', '{"m": {}}',
     '{"m": {"saved_offsets": [0, 0], "shape": [5, 1e400]}}',
     '{"m": {"saved_offsets": [0, 0], "shape": [4611686018427387904, 4611686018427387904]}}',
     '{"m": {"saved_offsets": [-1, 0], "shape": [5, 3]}}', '{"m": {"saved_offsets": [0], "shape": [5]}}'],
)  # fmt: skip
def test_odd_metadata_is_one_message(tmp_path, where):
    save_file({"m": torch.zeros(2, 3)}, tmp_path / "a.safetensors", metadata={"DCP_SHARDING_INFO": where})
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        PiecesReader([tmp_path / "a.safetensors"])


@pytest.mark.parametrize("rows, said", [(1 << 40, "with 6 numbers"), (4, "overlap")])
def test_no_memory_is_taken_for_what_parts_only_say(tmp_path, rows, said):
    for rank in range(2):
        if rank == 0 or rows == 4:
            part = Piece("exp_avg/w", (rows, 3), (0, 0), torch.ones(2, 3))
            write_pieces(tmp_path / f"optimizer.{rank:05d}.safetensors", [part])
    saved = {"form": "parts", "groups": [{}], "sizes": [1], "plain": {}, "kept": {"w": ["exp_avg"]}}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(4, 3))])
    with pytest.raises(WeightsError, match=said):
        load_state(optimizer, ["w"], saved, ["w"], tmp_path)


def test_a_part_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "optimizer.00000.safetensors")
    with pytest.raises(WeightsError, match="not a regular file"):
        PiecesReader(part_files(tmp_path))


def trained():
    """A model and its optimiser after a step."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved_in_parts(tmp_path):
    """The run folder of a run in parts with one process."""
    model, optimizer = trained()
    names = [name for name, _ in model.named_parameters()]
    plain, pieces = split_state(optimizer, names)
    run = RunDir(tmp_path / "run")
    run.prepare()
    weights = [piece for name, p in model.named_parameters() for piece in own_pieces(name, p)]
    for step in (1, 2):
        parts = Parts(run.begin(step), f"{step}", weights, pieces)
        run.save(step, parts.join, {"optimizer": plain, "names": names}, {}, "a: 1\n")
    return run, model, optimizer, names


def test_a_checkpoint_in_parts_has_one_weight_file_and_is_whole(tmp_path):
    run, model, optimizer, names = saved_in_parts(tmp_path)
    files = sorted(p.name for p in run.last().iterdir())
    assert "optimizer.00000.safetensors" in files and not any(name.startswith("weights.") for name in files)
    tensors, state = read_checkpoint(run.last())
    assert all(torch.equal(tensors[name], p) for name, p in model.named_parameters())
    _, other = trained()
    order = names[::-1]
    other.param_groups[0]["params"].reverse()
    load_state(other, order, state["optimizer"], state["names"], run.last())
    for one, two in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"][::-1]):
        assert all(torch.equal(optimizer.state[one][key], other.state[two][key]) for key in optimizer.state[one])


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_part_that_is_not_as_it_was_written_leads_back_to_the_checkpoint_before(tmp_path, fault, caplog):
    run, *_ = saved_in_parts(tmp_path)
    (part,) = part_files(run.folder(2))
    if fault == "missing":
        part.unlink()
    else:
        part.write_bytes(b"x" * part.stat().st_size)
    assert RunDir(run.path).prepare(resume="auto") == run.folder(1)
    assert (
        f"optimizer.00000.safetensors is {'missing' if fault == 'missing' else 'not what was written'}" in caplog.text
    )


def test_state_of_other_parameters_is_refused(tmp_path):
    run, _, optimizer, names = saved_in_parts(tmp_path)
    state = read_checkpoint(run.last())[1]["optimizer"]
    with pytest.raises(WeightsError, match="is of other parameters, first 1.bias"):
        load_state(optimizer, names[:-1], state, names, run.last())


def test_a_part_that_cannot_be_written_leaves_no_checkpoint(tmp_path):
    run, *_ = saved_in_parts(tmp_path)
    work = run.begin(3)
    parts = Parts(work, "3", [Piece("m", (1,), (0,), torch.zeros(1))], [])
    shutil.rmtree(work)
    with pytest.raises(UserError, match="process 0 cannot write its part"):
        parts.write()
    with pytest.raises(UserError, match=r"checkpoint of step 3 cannot be written .*last good checkpoint is .*0002"):
        run.save(3, parts.join, {}, {}, "")
    assert run.steps() == [1, 2]


def test_what_a_killed_process_left_in_parts_is_removed(tmp_path):
    run, *_ = saved_in_parts(tmp_path)
    stale = run.checkpoints / ".step_00000003.999999999"
    stale.mkdir()
    for name in ("weights.00001.safetensors", "optimizer.00001.safetensors", "model.safetensors"):
        (stale / name).write_bytes(b"x")
    RunDir(run.path).prepare(resume="auto")
    assert not stale.exists()
