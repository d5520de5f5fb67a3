"""The parts of one checkpoint, written by a thread in each process and put together by that of rank 0."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.checkpoint.run_files import PARTS
from vlm.checkpoint.shards.pieces import Piece, join_pieces, write_pieces
from vlm.common import dist
from vlm.common.errors import UserError

LOOK = 0.02
"""Seconds between two looks for the parts of the others."""


@dataclass(eq=False)
class Parts:
    """What this process writes into the hidden folder of a checkpoint."""

    folder: Path
    name: str  # of the save, in which the processes tell each other that their parts are written
    weights: list[Piece]
    states: list[Piece]

    def write(self) -> None:
        """Write the parts of this process and tell rank 0. Raises UserError: they cannot be written."""
        found, fault = self._write()
        told = {"files": found, "fault": fault and f"process {dist.rank()}: {fault}"}
        dist.tell(f"saved/{self.name}/{dist.rank()}", json.dumps(told))
        if fault:
            raise UserError(
                f"process {dist.rank()} cannot write its part of a checkpoint to {self.folder} ({fault})",
                fix="free space or mend the folder, then continue with run.resume=auto",
            )

    def _write(self) -> tuple[dict[str, Any], str]:
        found = {}
        try:
            for kind, pieces in (("weights", self.weights), ("optimizer", self.states)):
                if pieces:
                    file = self.folder / f"{kind}.{dist.rank():05d}.safetensors"
                    found[file.name] = write_pieces(file, pieces)
        except OSError as error:
            return {}, error.strerror or str(error)
        return found, ""

    def join(self, target: Path, metadata: dict[str, str]) -> dict[str, Any]:
        """Write the parts of this process, wait for the others', and make one weight file; for rank 0.

        Returns:
            size and CRC-32 of the files that stay as the processes wrote them.

        Raises:
            OSError: a process cannot write its part, or is gone.
        """
        known, fault = self._write()
        for rank in range(1, dist.world_size()):
            told = self._wait_for(rank)
            known |= told["files"]
            fault = fault or told["fault"]
        if fault:
            raise OSError(errno.EIO, fault)
        files = sorted(self.folder / name for name in known if name.startswith("weights."))
        join_pieces(files, target, metadata)
        for file in files:
            os.unlink(file)
            del known[file.name]
        return known

    def _wait_for(self, rank: int) -> dict[str, Any]:
        while True:
            try:
                text = dist.told(f"saved/{self.name}/{rank}")
            except RuntimeError as error:
                raise OSError(errno.EIO, str(error)) from error
            if text is not None:
                told: dict[str, Any] = json.loads(text)
                return told
            time.sleep(LOOK)


def part_files(folder: Path) -> list[Path]:
    """The parts of the optimiser's state in a checkpoint."""
    return sorted(f for f in folder.glob("optimizer.*") if PARTS.fullmatch(f.name))
