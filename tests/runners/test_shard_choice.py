"""``run.parallel``: what is refused before anything is loaded, and which parts are split or copied."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm.common.errors import ConfigError
from vlm.config.run import Parallel, RunConfig
from vlm.models.vlm import VLM
from vlm.runners.train.parallel.mesh import check_parallel
from vlm.runners.train.parallel.units import choose, size_of

CPU, CARD = torch.device("cpu"), torch.device("cuda")
PLAIN = SimpleNamespace(quantize=None)


def options(**changes):
    run = {key: changes.pop(key) for key in list(changes) if key not in vars(Parallel())}
    return RunConfig(parallel=Parallel(**{"shard": "all", **changes}), **run)


@pytest.mark.parametrize(
    ("given", "processes", "device", "text"),
    [
        ({}, 1, CPU, "splits the model over several processes, but this run has one"),
        ({"replicate": 3}, 4, CPU, "replicate=3 does not divide 4 processes.*\n.*it can be 1, 2$"),
        ({"replicate": 4}, 4, CPU, "replicate=4 does not divide 4 processes"),
        ({"offload": "cpu"}, 2, CPU, "this run computes on a CPU"),
        ({"offload": "cpu", "amp": True, "amp_dtype": "fp16"}, 2, CARD, "fp16, whose scaler needs"),
        ({"shard": "llm", "frozen": "shard"}, 2, CPU, "set run.parallel.shard=all"),
        ({"activation_checkpointing": "fairscale"}, 2, CPU, "set run.activation_checkpointing=torch"),
        ({"compile": True}, 2, CPU, "set run.compile=false"),
        ({"broadcast_buffers": True}, 2, CPU, "about copies"),
        ({"shard": "none", "replicate": 2}, 2, CPU, "replicate=2 is about shards"),
        ({"shard": "none", "offload": "cpu"}, 2, CARD, "offload=cpu is about shards"),
        ({"shard": "none", "frozen": "shard"}, 2, CPU, "frozen=shard is about shards"),
    ],
)
def test_what_cannot_work_is_one_message(given, processes, device, text):
    with pytest.raises(ConfigError, match=text):
        check_parallel(options(**given), PLAIN, processes, device)


@pytest.mark.parametrize("given", [{}, {"replicate": 2}, {"shard": "llm"}, {"shard": "none"}, {"frozen": "replicate"}])
def test_what_works_passes(given):
    check_parallel(options(**given), PLAIN, 4, CPU)


class Layers(nn.Module):
    """A stack of layers, called one by one, and one layer outside."""

    def __init__(self, count=2, width=8, trains=()):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.outside = nn.Linear(width, width)
        for name, p in self.named_parameters():
            p.requires_grad_(any(name.startswith(start) for start in trains))

    def layers(self):
        return self.blocks


def model(vision=(), bridge=("",), inserts=True):
    inserted = nn.Module()
    inserted.layers = nn.ModuleDict({"1": nn.Linear(8, 8)})
    return VLM(Layers(trains=vision), [Layers(1, trains=bridge)], Layers(), [inserted] if inserts else [])


def names(found):
    return [unit.name for unit in found.units]


def test_llm_copies_what_is_frozen_beside_it():
    built = model()
    found = choose(built, Parallel(shard="llm"), free=1)
    assert names(found) == ["llm layer 0", "llm layer 1"] and not found.even
    assert {id(p) for p in found.copied} == {id(p) for p in built.vision.parameters()}
    assert found.units[1].guests == (built.inserts[0].layers["1"],) and found.units[0].guests == ()


def test_a_frozen_part_is_copied_where_it_takes_little():
    built = model()
    size = size_of(list(built.vision.parameters()))
    for free, copied in ((10 * size, True), (10 * size - 10, False)):
        found = choose(built, Parallel(shard="all"), free)
        assert bool(found.copied) is copied and found.even is not copied
        assert ("vision.blocks.0" in names(found)) is not copied
        assert [line for line in found.reasons if line.startswith("vision")][0].count("copied") == copied


def test_what_trains_in_a_copied_part_needs_no_layers_of_its_own_unless_it_is_large():
    built = model(vision=("blocks.1",))
    assert "vision.blocks.1" not in names(choose(built, Parallel(shard="all"), free=10**6))
    assert "vision.blocks.1" in names(choose(built, Parallel(shard="all", frozen="replicate"), free=1000))
    assert choose(built, Parallel(shard="all", frozen="shard"), free=10**6).even


def test_lists_that_are_not_called_are_no_units():
    """A perceiver's layers are pairs in lists, of which only the members are called."""
    built = model()
    built.bridge[0].blocks = nn.ModuleList(nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]) for _ in range(2))
    found = choose(built, Parallel(shard="all", frozen="shard"), free=1)
    assert not [name for name in names(found) if name.startswith("bridge")]
