"""``train_elastic.py CONFIG FOLDER CASES``: trains every case twice: straight, and going through 1, 2, 4, 1 processes.

CASES is a JSON mapping of a name to options; those after ``several`` are for more than one process. The runs are
``FOLDER/NAME.straight`` and ``FOLDER/NAME.elastic``; beside each, ``.ids`` has a line for every step of every process:
the step's number and the samples of each micro-batch.
Everything is imported once and the processes are forked.
"""

import gc
import json
import os
import socket
import sys
from pathlib import Path

import torch

from vlm.checkpoint.load import load_model
from vlm.cli.main import main
from vlm.config.api import load_config
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.runners.train import run as _imported  # noqa: F401

STEPS = 2  # between changes of the number of processes
WORLDS = (1, 2, 4, 1)


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def recording(plain, file):
    """``TrainLoader.step`` that writes down what it gives."""

    def step(loader, count):
        batches = plain(loader, count)
        line = json.dumps([loader.state_dict()["step"], [batch.sample_ids for batch in batches]])
        with open(file, "a") as out:
            out.write(line + "\n")
        return batches

    return step


def train(rank, world, port, config, folder, options):
    """One process; returns in it, at the end of the command."""
    if world > 1:
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in given.items()}, MASTER_ADDR="127.0.0.1")
    os.dup2(os.open(f"{folder}.log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    TrainLoader.step = recording(TrainLoader.step, f"{folder}.ids")
    return main(["train", config, "--options", f"run.output_dir={folder}", *options])


def together(world, *given):
    """The exit codes of ``world`` forked processes."""
    port, members = free_port(), []
    for rank in range(world):
        members.append(os.fork())
        if not members[-1]:
            torch.set_num_threads(1)  # torch makes its pool again after a fork, and aborts if two threads do
            sys.exit(train(rank, world, port, *given))
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in members]


def run(config, folder, cases):
    codes = {}
    for name, options in cases.items():
        last = STEPS * len(WORLDS)
        numbers = [f"run.iters_per_epoch={last}", f"run.val_freq={last}", f"run.save_freq={STEPS}", "run.log_freq=1"]
        border = options.index("several") if "several" in options else len(options)
        common = [*numbers, "run.lr_sched=constant", *options[:border]]
        codes[name] = together(1, config, folder / f"{name}.straight", [*common, f"run.max_steps={last}"])
        for phase, world in enumerate(WORLDS, start=1):
            here = [f"run.max_steps={STEPS * phase}", "run.resume=auto", *(options[border + 1 :] if world > 1 else [])]
            codes[name] += together(world, config, folder / f"{name}.elastic", [*common, *here])
    print(json.dumps(codes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_model(load_config(sys.argv[1]), device="cpu")  # imports what a run needs
    gc.freeze()
    run(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
