"""``train_list.py RUNS``: does one thing after the other in one process, or in a pair of them, importing all but once.

RUNS is a JSON file: ``[{"pair": false, "command": "train" or "cache", "config": FILE, "options": [...]}, ...]``.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from vlm.common.logging import setup_logging
from vlm.config.api import load_config
from vlm.runners.features.fill import fill_cache
from vlm.runners.train.run import run_training


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def work(runs):
    for given in runs:
        cfg = load_config(given["config"], given["options"], train=True, trust=True)
        run_training(cfg) if given["command"] == "train" else fill_cache(cfg)


def pair(runs):
    ports, ranks = [free_port() for _ in runs], []
    for rank in range(2):
        ranks.append(os.fork())
        if ranks[-1]:
            continue
        for given, port in zip(runs, ports, strict=True):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
            work([given])
        os._exit(0)
    assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup_logging()
    found = json.loads(Path(sys.argv[1]).read_text())
    pair([given for given in found if given["pair"]])
    work([given for given in found if not given["pair"]])
