"""``train_recorded.py FILE CONFIG [key=value ...]``: trains and writes a fingerprint of every batch to FILE."""

import dataclasses
import hashlib
import sys

import torch

from vlm.common.config import load_config
from vlm.common.logging import setup_logging
from vlm.datasets.loader import TrainLoader
from vlm.runners.train import run_training


def fingerprint(batch):
    """A hash of all that is in a batch."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


def recorded(file, plain=TrainLoader.__next__):
    """``TrainLoader.__next__`` that appends a line to ``file``."""

    def following(loader):
        batch = plain(loader)
        with open(file, "a") as out:
            out.write(fingerprint(batch) + "\n")
        return batch

    return following


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup_logging()
    TrainLoader.__next__ = recorded(sys.argv[1])
    sys.exit(run_training(load_config(sys.argv[2], sys.argv[3:])).exit_code)
