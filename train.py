"""Train from a YAML file: ``torchrun --nproc-per-node N train.py --cfg-path FILE [--options a.b=c ...]``."""

import sys

from vlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
