"""Two processes end as they should: with code 0 however loaded the machine is, and with one message if one is lost."""

import json
import os
import re
import subprocess
import sys

import pytest

from .tiny import HERE


def pairs(tiny, mode, count):
    command = [sys.executable, str(HERE / "train_pairs.py"), mode, str(count), str(tiny.config), str(tiny.folder)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1800)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.heavy
def test_thirty_trainings_of_two_processes_end_without_a_crash(tiny):
    """Takes 105 s of processor time: without leaving past the interpreter's shutdown, gloo's threads abort some."""
    assert pairs(tiny, "end", 30) == [[0, 0]] * 30
    assert all((tiny.folder / f"run{n}" / "last").exists() for n in range(30))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "codes", "why"),
    [
        ("kill", [2, -9], "1 of 2 (pid %s) is gone without a word: it was killed"),
        pytest.param(
            "fail", [2, 1], "1 of 2 (pid %s) ended: ValueError: a fault of one process", marks=pytest.mark.heavy
        ),
        pytest.param(
            "fail0", [1, 2], "0 of 2 (pid %s) ended: ValueError: a fault of one process", marks=pytest.mark.heavy
        ),
    ],
)
def test_when_a_process_is_lost_the_other_says_why_at_once(tiny, mode, codes, why):
    assert pairs(tiny, mode, 1) == [codes]
    other = codes.index(2)
    said = (tiny.folder / f"run0.log{other}").read_text()
    expected = re.escape(f"error: process {other} stops because process {why}").replace("%s", r"\d+")
    assert re.search(expected, said) and "Traceback" not in said
