"""What a bridge that is solved for should say of an image: the embedding of its answer, or which answer it is."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlm.common import dist
from vlm.common.errors import DataError
from vlm.common.types import IGNORE_INDEX, Batch
from vlm.models.protocols import NamesWords
from vlm.models.vlm import VLM
from vlm.runners.fit.ridge import RidgeSums


class Targets(Protocol):
    """The regression's targets."""

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``[b, k]`` of each row, and whether it has one ``[b]``."""

    def over_processes(self, sums: RidgeSums) -> None:
        """Make the columns of the targets mean the same in all processes; a collective call."""

    def finish(self) -> None:
        """Tell the bridge what its outputs mean."""


def taught(batch: Batch) -> Tensor:
    """Where the supervised tokens are ``[b, s]``, without each row's last one, which ends the answer."""
    supervised = batch.labels != IGNORE_INDEX
    return supervised & (supervised.flip(1).cumsum(1).flip(1) > 1)


class MeanEmbeddings:
    """The mean embedding of the answer's tokens."""

    def __init__(self, model: VLM) -> None:
        self.model = model

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :class:`Targets`."""
        words = taught(batch)
        vectors = self.model.llm.embed(torch.where(words, batch.ids, 0)) * words[..., None]
        count = words.sum(1)
        return vectors.sum(1).float() / count.clamp_min(1)[:, None], count > 0

    def over_processes(self, sums: RidgeSums) -> None:
        """See :class:`Targets`: nothing to do."""

    def finish(self) -> None:
        """See :class:`Targets`: nothing to do."""


class Answers:
    """One column for each answer that occurs, 1 where it is the row's: the answers become the visual words."""

    def __init__(self, model: VLM, bridge: NamesWords, layer: nn.Linear) -> None:
        self.model, self.bridge, self.width = model, bridge, layer.out_features
        self.known: dict[tuple[int, ...], int] = {}

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :class:`Targets`."""
        shown = torch.zeros(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
        shown[batch.media_row] = True  # an answer without a medium does not become a word
        use = taught(batch) & shown[:, None]
        chosen = [tuple(ids[own].tolist()) for ids, own in zip(batch.ids, use, strict=True)]
        columns = [self.known.setdefault(answer, len(self.known)) if answer else -1 for answer in chosen]
        found = torch.tensor(columns, device=batch.ids.device)
        known = (found >= 0) & (found < self.width)  # too many are counted, and refused at the end
        targets = torch.zeros(len(columns), self.width, device=found.device)
        targets.scatter_(1, torch.where(known, found, 0)[:, None], known.float()[:, None])
        return targets, known

    def over_processes(self, sums: RidgeSums) -> None:
        """See :class:`Targets`. Raises DataError: there are more answers than visual words."""
        own, union = self.known, dict.fromkeys(answer for known in dist.gather_objects(self.known) for answer in known)
        self.known = {answer: column for column, answer in enumerate(union)}
        if len(self.known) > self.width:
            raise DataError(
                f"closed_form: the data have {len(self.known):,} different answers, but the last bridge has "
                f"{self.width:,} visual words",
                fix=f"set model.bridge.{len(self.model.bridge) - 1}.size to {len(self.known)} or more",
            )
        sums.move_targets([self.known[answer] for answer in own])

    def finish(self) -> None:
        """See :class:`Targets`: the words get the embeddings of their answers' tokens."""
        embed, slots = self.model.llm.embed, self.bridge.config.tokens_per_word
        device = next(iter(self.model.llm.parameters())).device
        with torch.no_grad():
            empty = embed(torch.arange(self.model.llm.vocab_size, device=device)).float().mean(0)
            words = [embed(torch.tensor(answer, device=device)).float() for answer in self.known]
            self.bridge.name_words(torch.stack([spread(word, slots, empty) for word in words]))


def spread(tokens: Tensor, slots: int, empty: Tensor) -> Tensor:
    """``[t, d]`` as ``[slots, d]``: one by one, the rest's mean in the last slot; ``empty [d]`` where none is left."""
    first, rest = tokens[: slots - 1], tokens[slots - 1 :]
    last = rest.mean(0, keepdim=True) if len(rest) else empty[None]
    return torch.cat([first, empty.expand(slots - 1 - len(first), -1), last])


def targets_of(model: Any, layer: nn.Linear) -> Targets:
    """What the last bridge of the model is solved for."""
    last = model.bridge[-1]
    return Answers(model, last, layer) if isinstance(last, NamesWords) else MeanEmbeddings(model)
