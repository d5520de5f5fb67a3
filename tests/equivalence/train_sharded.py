"""Many runs in one process group: ``train_sharded.py CASES.json``, a list of ``[config, key=value, ...]``.

A run keeps its last weights in ``weights.safetensors`` of its folder, in place of checkpoints.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlm.common import dist
from vlm.common.logging import setup_logging
from vlm.config.api import load_config
from vlm.runners.train import run
from vlm.runners.train.optim import names_of
from vlm.runners.train.saving import Saving


def keep_weights(saving: Saving, best: bool = False) -> None:
    """In place of a checkpoint: what trains, whole."""
    trainer = saving.trainer
    names = names_of(trainer.model, trainer.run)
    tensors = dict(trainer.spread.tensors(names))
    if dist.is_main():
        save_file(tensors, trainer.run_dir.path / "weights.safetensors")


def main(cases: Path) -> None:
    """Run them one after another; a failure ends all processes."""
    torch.set_num_threads(1)
    setup_logging()
    Saving.save = keep_weights
    with dist.joined("cpu") as (world, device):
        for config, *options in json.loads(cases.read_text()):
            run._train(load_config(config, options), world, device)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
