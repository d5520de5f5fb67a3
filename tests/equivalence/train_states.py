"""Many runs in one process group: ``train_states.py CASES.json``, a list of ``[what, config, key=value, ...]``.

``train`` trains; ``copy`` resumes and saves again without a step in between; in ``fail`` and ``kill`` the last process
ends in the third step, by an error or a signal.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from vlm.common import dist
from vlm.common.errors import DataError
from vlm.common.logging import setup_logging
from vlm.common.processes.ending import leave
from vlm.config.api import load_config
from vlm.runners.train import run
from vlm.runners.train.trainer import RunResult, Trainer


def save_again(trainer, trackers):
    """In place of training."""
    trainer.save()
    for tracker in trackers:
        tracker.close()
    return RunResult(trainer.run_dir.path, "finished", trainer.progress.step, 0.0)


def ends(what):
    """In place of a step."""
    step = Trainer._step

    def last_step(trainer, trackers, stop):
        if trainer.progress.step == 2 and dist.rank() == dist.world_size() - 1:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("no such picture", fix="find it")
        return step(trainer, trackers, stop)

    return last_step


def main(cases: Path) -> int:
    """Run them one after another; a failure ends all processes."""
    torch.set_num_threads(1)
    setup_logging()
    fit = Trainer.fit
    with dist.joined("cpu") as (world, device):
        for what, config, *options in json.loads(cases.read_text()):
            Trainer.fit = save_again if what == "copy" else fit
            if what in ("fail", "kill"):
                Trainer._step = ends(what)
            run._train(load_config(config, options), world, device)
    return 0


if __name__ == "__main__":
    sys.exit(leave(main(Path(sys.argv[1]))))
