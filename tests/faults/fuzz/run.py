"""The fuzzing loop: ``python tests/faults/fuzz/run.py --count 5000``.

A child process goes through the mutants and reports each; the parent watches its time and memory. Every mutant follows
from (seed, target, number), so a finding is made again with ``--target NAME --only NUMBER``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[3]
MOST_SECONDS, MOST_GROWTH = 10.0, 2 * 1024**3
NAMES = ("yaml", "options", "records", "images", "weights")


@dataclass
class Report:
    """What happened: outcomes by target, the slowest mutant, the largest growth in bytes, and the findings."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in NAMES})
    slowest: tuple[float, str] = (0.0, "")
    growth: int = 0
    findings: list[str] = field(default_factory=list)


def child(seed: int, mutants: list[tuple[str, int]], out: IO[str]) -> None:
    """Run mutants and write one JSON line before and after each."""
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.faults.fuzz.targets import TARGETS, pictures, weights

    torch.set_num_threads(1)
    pictures(), weights()
    for target, number in mutants:
        out.write(json.dumps({"start": [target, number]}) + "\n")
        out.flush()
        began, state = time.monotonic(), random.getstate()
        try:
            outcome = TARGETS[target](random.Random(f"{seed}-{target}-{number}"))
        except BaseException as error:  # the finding itself: whatever the library lets through
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "finding: " + "".join(traceback.format_exception(error))
        random.setstate(state)
        out.write(json.dumps({"done": outcome, "seconds": time.monotonic() - began}) + "\n")
        out.flush()


def fuzz(seed: int, mutants: list[tuple[str, int]]) -> Report:
    """All mutants, in as many child processes as survive them."""
    report, left = Report(), list(mutants)
    while left:
        taken, stopped = _watch(seed, left, report)
        left = left[taken + 1 :] if stopped else left[taken:]
    return report


def _watch(seed: int, mutants: list[tuple[str, int]], report: Report) -> tuple[int, bool]:
    """Number of mutants that one child finished, and whether the next one ended it."""
    command = [sys.executable, __file__, "--child", "--seed", str(seed)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(mutants))
        process.stdin.close()
        done, now, base, deadline = 0, "", 0, time.monotonic() + 300
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 0.2)
            size = _memory(process.pid)
            report.growth = max(report.growth, size - base if base and now else 0)
            if now and (time.monotonic() > deadline or size - base > MOST_GROWTH):
                what = "hang" if time.monotonic() > deadline else f"{(size - base) / 1024**3:.1f} GB more memory"
                report.findings.append(f"{now}: {what}")
                process.kill()
                return done, True
            if not ready:
                continue
            line = process.stdout.readline()
            if not line:
                if now:
                    report.findings.append(f"{now}: the process died (exit code {process.wait()})")
                return done, bool(now)
            told = json.loads(line)
            if "start" in told:
                now, deadline, base = " ".join(map(str, told["start"])), time.monotonic() + MOST_SECONDS, base or size
            else:
                _count(report, now, told)
                done, now = done + 1, ""


def _count(report: Report, now: str, told: dict[str, Any]) -> None:
    outcome = told["done"].partition(":")[0]
    report.outcomes[now.split()[0]][outcome] += 1
    report.slowest = max(report.slowest, (told["seconds"], now))
    if outcome == "finding":
        report.findings.append(f"{now}: {told['done']}")


def _memory(pid: int) -> int:
    """Resident bytes of a process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def main() -> int:
    """Fuzz and print the figures; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--only", type=int)
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    if args.child:
        out = os.fdopen(os.dup(1), "w")
        child(args.seed, [tuple(m) for m in json.load(sys.stdin)], out)
        return 0
    names = [args.target] if args.target else NAMES
    numbers = [args.only] if args.only is not None else range(args.count // len(names))
    report = fuzz(args.seed, [(name, n) for n in numbers for name in names])
    for name in names:
        sys.stdout.write(f"{name:8} {dict(report.outcomes[name])}\n")
    sys.stdout.write(
        f"slowest {report.slowest[0]:.1f} s ({report.slowest[1]}), growth {report.growth / 1024**2:.0f} MiB\n"
    )
    for finding in report.findings:
        sys.stdout.write(f"--- {finding}\n")
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())
