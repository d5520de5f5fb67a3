"""Kill training runs at random moments, resume them, and compare their ends with an undisturbed run, bit for bit.

::

    python tools/chaos.py --trials 20 --mode two --seed 1 --json chaos.json

A trial starts the tiny published composition, ends it by SIGKILL at a random moment, and resumes it until it is done; a
resumed run may be killed again. Of several processes one is killed, drawn anew each time, and the others must end by
themselves. Weights, optimiser state, random states and every loss of the log must then be those of a run that nobody
killed. Processes are forked from this one, which has imported the library, so that a start takes no seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.load import load_model
from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.checkpoint.safe import read_tensors
from vlm.checkpoint.shards.parts import part_files
from vlm.common.errors import UserError
from vlm.common.logging import setup_logging
from vlm.common.processes import ending
from vlm.common.processes.ending import leave
from vlm.common.processes.peers import Peers
from vlm.config.api import load_config
from vlm.runners.train.run import run_training
from vlm.runners.train.trackers import read_log

TESTS = Path(__file__).resolve().parents[1] / "tests"
CONFIG = TESTS / "equivalence" / "tiny.yaml"
DATA = TESTS / "golden" / "minigpt4" / "open"

STEPS = 16
NUMBERS = (f"run.max_steps={STEPS}", "run.save_freq=2", "run.val_freq=8", "run.deterministic=true")
SHARDED = "run.parallel.shard=all"
MODES: dict[str, tuple[int, tuple[str, ...], bool]] = {
    "one": (1, (), False),
    "two": (2, (), False),
    "sharded": (2, (SHARDED,), False),
    "saving": (1, (), True),
    "saving-sharded": (2, (SHARDED,), True),
}
"""Name -> processes, options, and whether kills wait for a checkpoint that is being written."""
IN_START = 0.2
"""Share of kills whose moment is counted from the start of the processes, not of the first step."""
MOST_KILLS = 3
"""Kills of one trial."""
PATIENCE = 120.0
"""Seconds that processes may take to end by themselves."""


@dataclass
class Trial:
    """What happened in one trial."""

    mode: str
    number: int
    kills: int = 0
    early: int = 0  # kills before all processes had joined: the launcher ends the others, here as torchrun would
    in_save: int = 0  # kills that left a checkpoint half written
    resumed_at: list[int] = field(default_factory=list)  # steps of the checkpoints that runs went on from
    others_seconds: list[float] = field(default_factory=list)  # from a kill to the end of the other processes
    told: bool = True  # every other process said in its last words which process was gone
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the run ended as an undisturbed one does."""
        return not self.differences and self.told


class Group:
    """The processes of a run, forked from this one."""

    def __init__(self, config: Path, options: Sequence[str], size: int, errors: Path) -> None:
        self.joined = [errors / f"{rank}.joined" for rank in range(size)]
        for mark in self.joined:
            mark.unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes = []
        for rank in range(size):
            world = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            env = {**{k: str(v) for k, v in world.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = os.fork()
            if not process:
                _train(config, options, env if size > 1 else {}, errors / f"{rank}.txt")
            self.processes.append(process)

    def kill(self, rank: int) -> None:
        """End a process by SIGKILL."""
        os.kill(self.processes[rank], signal.SIGKILL)

    def ended(self) -> bool:
        """Whether a process has ended."""
        return any(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in self.processes)

    def wait(self) -> list[int]:
        """Exit codes of all; those that do not end within :data:`PATIENCE` are killed."""
        end, codes = time.monotonic() + PATIENCE, dict.fromkeys(self.processes, 0)
        left = set(self.processes)
        while left:
            for process in list(left):
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    codes[process] = os.waitstatus_to_exitcode(status)
                    left.discard(process)
            if left and time.monotonic() > end:
                for process in left:
                    os.kill(process, signal.SIGKILL)
                end += PATIENCE
            time.sleep(0.005)
        return list(codes.values())


def _train(config: Path, options: Sequence[str], env: dict[str, str], errors: Path) -> None:
    """The life of a forked process."""
    os.environ.update(env)
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    setup_logging()
    mark = ending.mark_several

    def joined(peers: Peers | None = None) -> None:
        mark(peers)
        errors.with_suffix(".joined").touch()

    ending.mark_several = joined
    try:
        leave(run_training(load_config(config, options)).exit_code)
        os._exit(0)
    except UserError as error:  # as the command line does
        sys.stderr.write(f"error: {error}\n")
        leave(2)
    except RuntimeError as error:
        leave(1, error)
    finally:
        if sys.exc_info()[1] is not None:
            traceback.print_exc()
        os._exit(2)


def state_of(folder: Path) -> tuple[dict[str, Any], Any, list[Any]]:
    """Weights, train state with the optimiser's, and the losses of a run."""
    last = RunDir(folder).last()
    if last is None:
        return {}, None, []
    tensors, state = read_checkpoint(last)
    for part in part_files(last):
        state[part.name] = read_tensors(part)
    state["progress"].pop("seconds")
    state["progress"]["valid"].pop("seconds", None)
    log = [
        [r["kind"], r["step"], r["loss"], r.get("grad_norm"), r.get("lr"), r.get("targets")]
        for r in read_log(folder / "log.jsonl")
    ]
    return tensors, state, log


def same(one: Any, other: Any) -> bool:
    """Deep equality with tensors compared bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Chaos:
    """Trials of one mode."""

    def __init__(self, mode: str, folder: Path, draw: random.Random) -> None:
        self.mode, self.folder, self.draw = mode, folder, draw
        self.size, self.options, self.in_saves = MODES[mode]
        folder.mkdir()
        self.config = folder / "tiny.yaml"
        self.config.write_text(CONFIG.read_text().replace("DATA", str(DATA)))
        load_model(
            load_config(self.config, self.options), device=torch.device("cpu")
        )  # what is imported here, forked processes have
        group, log = self.start("straight"), folder / "straight" / "log.jsonl"
        while not (log.exists() and log.stat().st_size) and not group.ended():
            time.sleep(0.002)
        started = time.monotonic()
        codes = group.wait()
        self.seconds = time.monotonic() - started  # of the steps alone
        if any(codes):
            raise SystemExit(f"the undisturbed run failed:\n{self.words(0)}")
        sys.stderr.write(f"{mode}: undisturbed {self.seconds:.1f} s\n")
        self.straight = state_of(folder / "straight")

    def start(self, name: str) -> Group:
        """Start or resume a run."""
        options = [*NUMBERS, *self.options, f"run.output_dir={self.folder / name}", "run.resume=auto"]
        return Group(self.config, options, self.size, self.folder)

    def words(self, rank: int) -> str:
        """What a process wrote last on its standard error."""
        lines = (self.folder / f"{rank}.txt").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("frame #"))

    def trial(self, number: int) -> Trial:
        """Kill a run up to a few times, let it end, and compare."""
        result, name = Trial(self.mode, number), f"trial{number}"
        wanted = self.draw.randint(1, MOST_KILLS)
        for _ in range(2 * MOST_KILLS):
            group = self.start(name)
            if self.await_moment(group, name):
                self.kill(group, name, result)
            else:
                group.wait()  # it ended before the moment came
                if not result.kills:
                    shutil.rmtree(self.folder / name)
            if result.kills >= wanted or (result.kills and RunDir(self.folder / name).steps()[-1:] == [STEPS]):
                break
        codes = self.start(name).wait()
        if any(codes):
            result.differences.append(f"the resumed run ended with {codes}: {self.words(0)[-500:]}")
        else:
            pairs = zip(("weights", "train state", "log"), state_of(self.folder / name), self.straight)
            result.differences += [what for what, found, wanted in pairs if not same(found, wanted)]
        if result.equal:
            shutil.rmtree(self.folder / name)
        return result

    def await_moment(self, group: Group, name: str) -> bool:
        """Wait for a random moment of the run; False if it ended before."""
        log, early = self.folder / name / "log.jsonl", self.draw.random() < IN_START
        size = log.stat().st_size if log.exists() else 0
        while not early and not (log.exists() and log.stat().st_size != size) and not group.ended():
            time.sleep(0.002)
        end = time.monotonic() + self.draw.uniform(0.0, 0.9 * self.seconds)
        while time.monotonic() < end and not group.ended():
            time.sleep(0.002)
        if not self.in_saves:
            return not group.ended()
        before = self.unfinished(name)  # of an earlier kill
        while not group.ended():
            if self.unfinished(name) - before:
                time.sleep(self.draw.uniform(0.0, 0.02))
                return not group.ended()
            time.sleep(0.0002)
        return False

    def unfinished(self, name: str) -> set[str]:
        """Checkpoints that are being written, or were when a process was killed."""
        folder = self.folder / name / "checkpoints"
        with contextlib.suppress(OSError):
            return {entry for entry in os.listdir(folder) if entry.startswith(".step_")}
        return set()

    def kill(self, group: Group, name: str, result: Trial) -> None:
        """Kill one process, and see how the others end."""
        rank = self.draw.randrange(self.size)
        early = self.size > 1 and not all(mark.exists() for mark in group.joined)
        for each in range(self.size) if early else [rank]:
            group.kill(each)
        killed = time.monotonic()
        codes = group.wait()
        result.kills += 1
        if codes[rank] != -signal.SIGKILL:
            result.kills -= 1  # it had ended by itself
        result.early += early
        result.in_save += bool(self.unfinished(name))
        result.resumed_at.append(max(RunDir(self.folder / name).steps(), default=0))
        for other in set(range(self.size)) - {rank}:
            if early or codes[other] == 0:
                continue  # it had done all its work
            result.others_seconds.append(round(time.monotonic() - killed, 2))
            if f"because process {rank} of {self.size}" not in self.words(other):
                result.told = False
                result.differences.append(f"process {other} said: {self.words(other)[-3000:]}")


def table(trials: Sequence[Trial]) -> str:
    """The counts of each mode as Markdown."""
    lines = [
        "| mode | trials | kills | while starting | in a save | ends equal | others ended after, median and most |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode in dict.fromkeys(t.mode for t in trials):
        found = [t for t in trials if t.mode == mode]
        waits = sorted(s for t in found for s in t.others_seconds)
        ends = f"{waits[len(waits) // 2]:.1f} s, {waits[-1]:.1f} s" if waits else ""
        names = ("kills", "early", "in_save", "equal")
        sums = [sum(int(vars(t).get(name, t.equal)) for t in found) for name in names]
        lines.append(f"| {mode} | {len(found)} | {' | '.join(map(str, sums))} | {ends} |")
    return "\n".join(lines)


def main() -> int:
    """Run the trials; the exit code is 1 if a run did not end as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5, help="trials in all, dealt out to the modes in turn")
    parser.add_argument("--mode", choices=["all", *MODES], default="all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the processes that are killed")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    modes = list(MODES) if args.mode == "all" else [args.mode]
    folder = Path(tempfile.mkdtemp(prefix="chaos_"))  # no exit handler: forked processes would run it
    chaos = {mode: Chaos(mode, folder / mode, random.Random(f"{mode} {args.seed}")) for mode in modes}
    trials: list[Trial] = []
    for number in range(args.trials):
        trials.append(chaos[modes[number % len(modes)]].trial(number))
        sys.stderr.write(f"{asdict(trials[-1])}\n")
        if args.json is not None:
            found = {"seed": args.seed, "torch": torch.__version__, "trials": [asdict(t) for t in trials]}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(trials) + "\n")
    if all(t.equal for t in trials):
        shutil.rmtree(folder)
    return int(not all(t.equal for t in trials))


if __name__ == "__main__":
    sys.exit(main())
