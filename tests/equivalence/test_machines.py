"""Two network namespaces as two machines: a sharded run trains, loses a machine, and goes on under another split."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm.checkpoint.run_folder import RunDir
from vlm.common.processes.network import towards

from .tiny import HERE

NAMES, ADDRESSES = ("vlm1", "vlm2"), ("10.77.0.1", "10.77.0.2")
NO_DROPOUT = "model.llm.lora.dropout=0.0"
ENDS_WITHIN = 60.0
"""Seconds on a busy machine; alone, a process says it after the four without a sign."""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


def descendants(process):
    """A process and all that it has started, from the top down."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def kill_all(process):
    for each in descendants(process.pid):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.fixture(scope="module")
def machines():
    """Two namespaces joined by a cable."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip (iproute2)")
    for name in NAMES:
        ip("netns", "del", name)
        if made := ip("netns", "add", name).stderr:
            pytest.skip(f"no network namespaces here: {made}")
    cable = ip("link", "add", "cable1", "netns", NAMES[0], "type", "veth", "peer", "name", "cable2", "netns", NAMES[1])
    if cable.stderr:
        pytest.skip(f"no virtual cable here: {cable.stderr}")
    for number, (name, address) in enumerate(zip(NAMES, ADDRESSES), start=1):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"cable{number}")
        for device in (f"cable{number}", "lo"):
            ip("-n", name, "link", "set", device, "up")
    yield
    for name in NAMES:
        ip("netns", "del", name)


def start(tiny, name, *options, **changes):
    """The run on both machines; what each of them says goes to a file."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    env.pop("GLOO_SOCKET_IFNAME", None)  # found by itself
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--master-addr", ADDRESSES[0], "--master-port", "29511"]
    result = []
    for number, machine in enumerate(NAMES):
        command = [*("ip", "netns", "exec", machine), sys.executable, *launcher, "--node-rank", str(number)]
        command += ["-m", "vlm.cli", "train", str(tiny.config), "--options", *tiny.options(name, **changes), *options]
        with (tiny.folder / f"{name}.{number}.txt").open("w") as out:
            result.append(subprocess.Popen(command, env=env, stderr=out, stdout=out))
    return result


@pytest.mark.heavy
@pytest.mark.usefixtures("machines")
def test_a_machine_is_lost_and_the_run_goes_on(tiny):
    numbers = {"save_freq": 2, "val_freq": 1000, "deterministic": True, "lr_sched": "constant"}
    data = (NO_DROPOUT, "datasets.cc_sbu_align.batch_size=1")
    first, second = start(tiny, "run", "run.parallel.shard=all", *data, max_steps=1000, **numbers)
    words = tiny.folder / "run.0.txt"
    first.stderr = words.open()
    tiny.wait_for_step("run", 5, first)
    killed = time.monotonic()
    kill_all(second)
    while "error: process 0" not in words.read_text() and time.monotonic() < killed + ENDS_WITHIN:
        time.sleep(0.05)
    try:
        assert first.wait(timeout=60) != 0
    finally:
        kill_all(first)
        first.stderr.close()
    said = words.read_text()
    assert "error: process 0 stops because process 1 of 2 on machine" in said and "gave no sign" in said
    assert "Traceback" not in said.partition("error: process 0")[0]
    step = RunDir(tiny.folder / "run").steps()[-1]
    again = start(tiny, "run", *data, resume="auto", max_steps=step + 4, **numbers)
    try:
        assert [process.wait(timeout=120) for process in again] == [0, 0], words.read_text()
    finally:
        for process in again:
            kill_all(process)
    tiny.train("one", NO_DROPOUT, "datasets.cc_sbu_align.batch_size=2", max_steps=step + 4, **numbers)
    one, two = tiny.records("one"), tiny.records("run")
    assert len(one) == len(two) == step + 4
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)


def test_the_interface_of_this_machine_alone_is_not_chosen():
    assert towards("127.0.0.1") == "" and towards("no such machine") == ""
