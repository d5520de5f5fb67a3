"""Random states and trainable tensors survive the way through a file."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from vlm.checkpoint.run_folder import check_plain, read_state
from vlm.checkpoint.train_state import (
    capture_rng,
    load_trainable_tensors,
    restore_rng,
    trainable_tensors,
)
from vlm.common.errors import WeightsError

CPU = torch.device("cpu")


def draw():
    return random.random(), float(np.random.standard_normal()), torch.rand(3).tolist()


def test_rng_states_continue_after_a_file(tmp_path):
    draw()
    np.random.standard_normal()  # leaves a cached gaussian
    state = capture_rng(CPU)
    check_plain(state)
    torch.save(state, tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)]
    restore_rng(read_state(tmp_path / "rng.pt"), CPU)
    assert [draw() for _ in range(3)] == expected


def test_only_trainable_tensors_travel():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    tensors = trainable_tensors(model)
    assert list(tensors) == ["1.weight", "1.bias"]
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    other[0].requires_grad_(False)
    load_trainable_tensors(other, tensors, "file")
    assert torch.equal(other[1].weight, model[1].weight) and not torch.equal(other[0].weight, model[0].weight)


def test_misfit_names_missing_unexpected_and_shapes():
    model = nn.Linear(2, 3)
    with pytest.raises(WeightsError) as error:
        load_trainable_tensors(model, {"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, "run/last")
    message = str(error.value)
    assert "run/last" in message
    for part in ("missing: bias", "unexpected: extra", "weight (file [3, 4], model [3, 2])"):
        assert part in message


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "state.pt")
    with pytest.raises(WeightsError):
        read_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()
