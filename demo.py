"""Chat page of a model: ``python demo.py --cfg-path FILE_OR_RUN_FOLDER [--options a.b=c ...]``."""

import sys

from vlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
