"""The tiny published composition as a configuration (tiny.yaml), run in this process or in others."""

import os
import subprocess
import sys
import time
from pathlib import Path

from vlm.config.api import load_config
from vlm.runners.train.run import run_training
from vlm.runners.train.trackers import read_log

HERE = Path(__file__).parent
DATA = HERE.parent / "golden" / "minigpt4" / "open"


class Tiny:
    """Runs of tiny.yaml below one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text((HERE / "tiny.yaml").read_text().replace("DATA", str(DATA)))

    def options(self, name, **changes):
        return [f"run.output_dir={self.folder / name}", *(f"run.{k}={v}" for k, v in changes.items())]

    def load(self, name, *more, **changes):
        return load_config(self.config, [*self.options(name, **changes), *more])

    def train(self, name, *more, **changes):
        """Train in this process."""
        return run_training(self.load(name, *more, **changes))

    def start(self, name, *more, processes=0, **changes):
        """Start training in another process, or under torchrun in several."""
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
        )
        command = [sys.executable, *launcher, str(HERE / "train_tiny.py"), str(self.config)]
        env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        return subprocess.Popen(
            [*command, *self.options(name, **changes), *more], env=env, stderr=subprocess.PIPE, text=True
        )

    def records(self, name, kind="train"):
        return [r for r in read_log(self.folder / name / "log.jsonl") if r["kind"] == kind]

    def wait_for_step(self, name, step, process, seconds=120):
        """Return as soon as the log has ``step`` lines; a process that ends before is a failure."""
        log, end = self.folder / name / "log.jsonl", time.monotonic() + seconds
        while time.monotonic() < end:
            if log.exists() and log.read_bytes().count(b"\n") >= step:
                return
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        raise AssertionError(f"step {step} was not reached in {seconds} s")
