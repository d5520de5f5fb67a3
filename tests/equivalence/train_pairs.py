"""``train_pairs.py MODE COUNT CONFIG FOLDER``: trains COUNT times with two processes each, on a machine with load.

Prints a JSON list of the exit codes of both processes per run. Everything is imported once and the processes are
forked, so that a run takes a second and not ten. Standard error of process R of run N goes to ``FOLDER/runN.logR``.

Modes: ``end``; ``plain``: the processes end as Python ends, to see what that does; ``kill``: the second process is
killed when three steps are logged; ``fail``, ``fail0``: the second, the first one raises an error at its third batch.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from vlm.checkpoint.load import load_model
from vlm.cli.main import main
from vlm.common.processes import ending
from vlm.config.api import load_config
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.runners.train import run as _imported  # noqa: F401


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def spin():
    while True:
        pass


def failing(plain, after=3):
    """``TrainLoader.__next__`` that raises at its third batch."""
    given = []

    def following(loader):
        given.append(1)
        if len(given) == after:
            raise ValueError("a fault of one process")
        return plain(loader)

    return following


def train(rank, port, folder, config, mode):
    """One of the two processes; returns in it, at the end of the command."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in given.items()}, MASTER_ADDR="127.0.0.1")
    os.dup2(os.open(f"{folder}.log{rank}", os.O_WRONLY | os.O_CREAT), 2)
    if (mode, rank) in (("fail", 1), ("fail0", 0)):
        TrainLoader.__next__ = failing(TrainLoader.__next__)
    most = 3 if mode in ("end", "plain") else 100_000
    steps = [f"run.max_steps={most}", f"run.iters_per_epoch={most}", f"run.val_freq={most}", f"run.save_freq={most}"]
    return main(["train", config, "--options", f"run.output_dir={folder}", *steps, "run.log_freq=1"])


def wait_for_lines(file, count):
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        time.sleep(0.02)


def run(mode, count, config, folder):
    spinning = []
    for _ in range(os.cpu_count() or 1 if mode in ("end", "plain") else 0):
        spinning.append(os.fork())
        if not spinning[-1]:
            spin()
    codes = []
    for number in range(count):
        port, place, pair = free_port(), Path(folder) / f"run{number}", []
        for rank in range(2):
            pair.append(os.fork())
            if not pair[-1]:
                return train(rank, port, place, config, mode)
        if mode == "kill":
            wait_for_lines(place / "log.jsonl", 3)
            os.kill(pair[1], signal.SIGKILL)
        started = time.monotonic()
        codes.append([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in pair])
        if mode == "kill":
            print(f"{time.monotonic() - started:.1f} s after the kill", file=sys.stderr)
    for process in spinning:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    print(json.dumps(codes))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_model(load_config(sys.argv[3]), device="cpu")  # imports what a run needs
    if sys.argv[1] == "plain":
        ending.mark_several = lambda peers: None
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
