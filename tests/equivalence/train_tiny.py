"""Entry for runs in other processes: ``train_tiny.py CONFIG [key=value ...]``; exits as the train command does."""

import sys

import torch

from vlm.common.logging import setup_logging
from vlm.common.processes.ending import leave
from vlm.config.api import load_config
from vlm.runners.train.run import run_training

if __name__ == "__main__":
    torch.set_num_threads(1)
    setup_logging()
    sys.exit(leave(run_training(load_config(sys.argv[1], sys.argv[2:])).exit_code))
