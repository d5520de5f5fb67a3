"""A published VisualCLA case folder as compositions, its weight files and its recorded tensors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.load import load_model
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch
from vlm.config.api import load_config
from vlm.models.vlm import VLM
from vlm.systems.visualcla.api import WITHOUT_EFFECT
from vlm.testing import RecordedCase


def asked(record: dict[str, Any]) -> dict[str, Any]:
    """What a recorded generation asked for, by our names."""
    return {k: v for k, v in record["generation_config"].items() if k not in WITHOUT_EFFECT and v is not None}


class VisualCLACase(RecordedCase):
    """One case folder; the compositions are the shipped ones, with the folder's paths and sizes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.queries: int = self.config["num_patch"]
        ids = self.config["special_ids"]
        self.start, self.end, self.slot = ids["<img>"], ids["</img>"], ids["<img_token>"]

    def composition(self, merged: bool = False) -> Any:
        """The shipped composition over this folder's files."""
        files = ("text_model", "vision_model", "lora_model")
        paths = {"visualcla_model": "merged_model"} if merged else {name: name for name in files}
        model: dict[str, Any] = {"arch": "visualcla", "model_type": "7b_v0_1"}
        model |= {name: str(self.folder / path) for name, path in paths.items()}
        model |= {"image_size": self.config["vision_config"]["image_size"], "num_query_token": self.queries}
        return load_config({"model": model}, check="none")

    @cached_property
    def unmerged(self) -> VLM:
        """Three folders, in eval mode; tests must leave it as it is."""
        return load_model(self.composition(), device="cpu")

    @cached_property
    def merged(self) -> VLM:
        """The folder that the published script wrote."""
        return load_model(self.composition(merged=True), device="cpu")

    def batch(self, ids: Tensor, mask: Tensor, labels: Tensor | None = None, pixels: Tensor | None = None) -> Batch:
        """The batch of recorded ids ``[b, s]`` with one media mark for each run of placeholders.

        ``pixels [b, 3, h, w]`` has a row for each sample; rows of samples without picture are left out.
        """
        rows: list[list[int]] = []
        answers: list[list[int]] = []
        for row in range(len(ids)):
            real = mask[row].bool()
            given = ids[row][real].tolist()
            wanted = [IGNORE_INDEX] * len(given) if labels is None else labels[row][real].tolist()
            if self.start in given and pixels is not None:
                at = given.index(self.start) + 1
                slots = self.queries if self.slot in given else 0  # the older layout has none
                assert given[at : at + slots] == [self.slot] * slots
                assert given[at + slots] == self.end
                given[at : at + slots] = [MEDIA_TOKEN]
                wanted[at : at + slots] = [IGNORE_INDEX]
            rows.append(given)
            answers.append(wanted)
        size = max(map(len, rows))
        fill = lambda values, pad: torch.tensor([v + [pad] * (size - len(v)) for v in values])  # noqa: E731
        filled = fill(rows, 0)
        where = (filled == MEDIA_TOKEN).nonzero()
        return Batch(
            ids=filled,
            labels=fill(answers, IGNORE_INDEX),
            segments=fill([[1] * len(r) for r in rows], 0),
            pixels=pixels[where[:, 0]][:, None] if pixels is not None and len(where) else None,
            media_row=where[:, 0],
            media_pos=where[:, 1],
        )
