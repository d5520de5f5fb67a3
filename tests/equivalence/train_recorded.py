"""``train_recorded.py FILE BATCHES CONFIG [key=value ...]``: trains and writes a fingerprint of every batch to FILE.

SIGKILL comes from within, up to 20 ms after BATCHES batches: from outside it comes late on a busy machine.
"""

import dataclasses
import hashlib
import os
import random
import signal
import sys
import threading

import torch

from vlm.common.logging import setup_logging
from vlm.config.api import load_config
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.runners.train.run import run_training


def fingerprint(batch):
    """A hash of all that is in a batch."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


def recorded(file, plain=TrainLoader.__next__, kill_after=None):
    """``TrainLoader.__next__`` that appends a line to ``file``."""
    given = 0

    def following(loader):
        nonlocal given
        batch = plain(loader)
        with open(file, "a") as out:
            out.write(fingerprint(batch) + "\n")
        given += 1
        if given == kill_after:
            wait = random.SystemRandom().uniform(0, 0.02)
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return batch

    return following


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup_logging()
    TrainLoader.__next__ = recorded(sys.argv[1], kill_after=int(sys.argv[2]))
    sys.exit(run_training(load_config(sys.argv[3], sys.argv[4:])).exit_code)
