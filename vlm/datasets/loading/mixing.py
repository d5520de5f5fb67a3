"""Which dataset each sample of a batch comes from: policies of pure functions, so that nothing has to be stored."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

MixingName = Literal["batch", "sample", "joint"]
"""Values of ``run.mixing``."""


def derive_seed(*parts: str | int) -> int:
    """A 64-bit seed that depends on all parts and on nothing else (not on the process or its hash seed)."""
    text = "\0".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def draw_source(seed: int, step: int, weights: Sequence[float], purpose: str = "mix") -> int:
    """The dataset of a step (or sample): index drawn with probability proportional to ``weights``.

    ``purpose`` keeps draws for different uses apart.
    """
    if len(weights) == 1:
        return 0
    return random.Random(derive_seed(seed, purpose, step)).choices(range(len(weights)), weights)[0]


@dataclass
class MixingPolicy:
    """Chooses the dataset of every sample of a global job; :meth:`draw` is what a policy must have."""

    name: ClassVar[MixingName]  # value of run.mixing, stored with a checkpoint
    seed: int
    weights: Sequence[float]  # ratio of each source
    sizes: Sequence[int]  # samples of a batch of one process: of each source (batch), of each group (joint), or one
    groups: Sequence[Sequence[int]] = ()  # source numbers of each group that takes turns; empty if there are none

    def draw(self, step: int, position: int, world_size: int, taken: Callable[[int], int]) -> list[int]:
        """The source of each sample of a global job.

        Args:
            step: number of the job.
            position: samples of all jobs before it.
            world_size: processes that share the job.
            taken: samples taken so far of a map-style source.
        """
        raise NotImplementedError

    def backlog_size(self, sources: Sequence[int]) -> int:
        """How many samples of a backlog make its next batch; ``sources`` of those that are left."""
        return self.sizes[0]

    def expected_shares(self) -> list[float]:
        """Expected samples of each source, up to a common factor."""
        return list(self.weights)

    def _draw_members(self, positions: range, members: Sequence[int]) -> list[int]:
        own = [self.weights[m] for m in members]
        return [members[draw_source(self.seed, p, own, "mix sample")] for p in positions]


class BatchMixing(MixingPolicy):
    """Every step draws one dataset by its ratio and takes a whole batch of it."""

    name = "batch"

    def draw(self, step: int, position: int, world_size: int, taken: Callable[[int], int]) -> list[int]:
        """One source for the whole job."""
        source = draw_source(self.seed, step, self.weights)
        return [source] * (self.sizes[source] * world_size)

    def backlog_size(self, sources: Sequence[int]) -> int:
        """Samples of one dataset only, at most its batch size."""
        run = next((k for k, s in enumerate(sources) if s != sources[0]), len(sources))
        return min(run, self.sizes[sources[0]])

    def expected_shares(self) -> list[float]:
        """Ratio times batch size."""
        return [weight * size for weight, size in zip(self.weights, self.sizes, strict=True)]


class SampleMixing(MixingPolicy):
    """Every sample draws its dataset, which depends on the sample's position alone."""

    name = "sample"

    def draw(self, step: int, position: int, world_size: int, taken: Callable[[int], int]) -> list[int]:
        """A source for each sample."""
        return self._draw_members(range(position, position + self.sizes[0] * world_size), range(len(self.weights)))


@dataclass
class JointMixing(MixingPolicy):
    """Groups of datasets take turns, and every sample draws its dataset within the group.

    A group with ``counts`` (numbers of records of its datasets) is one shuffled list of all its records instead.
    """

    name = "joint"
    counts: Sequence[Sequence[int] | None] = ()
    _orders: dict[int, tuple[int, list[int]]] = field(init=False, default_factory=dict)

    def draw(self, step: int, position: int, world_size: int, taken: Callable[[int], int]) -> list[int]:
        """A source of the group whose turn it is for each sample."""
        turn = step % len(self.groups)
        members, counts, size = self.groups[turn], self.counts[turn], self.sizes[turn] * world_size
        if not counts:
            return self._draw_members(range(position, position + size), members)
        start = sum(taken(m) for m in members)
        places = (divmod(p, sum(counts)) for p in range(start, start + size))
        return [members[self._order(turn, counts, number)[place]] for number, place in places]

    def _order(self, turn: int, counts: Sequence[int], number: int) -> list[int]:
        """Members of a group in the order of pass ``number`` over it, each as often as it has records."""
        if self._orders.get(turn, (-1, []))[0] != number:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "group order", turn, number)))
            self._orders[turn] = (number, rng.permutation(np.repeat(np.arange(len(counts)), counts)).tolist())
        return self._orders[turn][1]

    def expected_shares(self) -> list[float]:
        """Each group's size, divided by the ratios within the group."""
        shares = list(self.weights)
        for size, members in zip(self.sizes, self.groups, strict=True):
            total = sum(self.weights[m] for m in members)
            for m in members:
                shares[m] *= size / total
        return shares
