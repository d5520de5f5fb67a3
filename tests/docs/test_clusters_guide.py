"""The Slurm script and the Kubernetes file of the guide give every process its place."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from vlm.common.dist import World, world_from_env

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
SBATCH = DEPLOY / "train.sbatch"


def options_of(file):
    lines = [line.split(maxsplit=1)[1] for line in file.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


@pytest.mark.parametrize("code", [0, 143])
def test_slurm_places_every_process_and_a_preempted_run_is_queued_again(tmp_path, code):
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    options = options_of(SBATCH)
    assert options["signal"].startswith("TERM@") and "requeue" in options  # without B: the processes get it
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    srun = f"""#!/bin/bash
for p in {{0..{nodes * tasks - 1}}}; do
  SLURM_PROCID=$p SLURM_NTASKS={nodes * tasks} SLURM_LOCALID=$((p % {tasks})) env -0 > {tmp_path}/env.$p
done
printf '%q ' "$@" > {tmp_path}/command
exit {code}
"""
    scontrol = f"""#!/bin/bash
echo "$@" >> {tmp_path}/scontrol.txt
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; fi
"""
    for name, text in (("srun", srun), ("scontrol", scontrol)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "1234567"}
    done = subprocess.run(
        ["bash", str(SBATCH), "mine.yaml", "run.max_steps=3"], env=env, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    words = shlex.split((tmp_path / "command").read_text())
    assert words[1:5] == ["vlm", "train", "mine.yaml", "--resume"] and words[-1] == "run.max_steps=3"
    for place in range(nodes * tasks):
        found = dict(pair.split("=", 1) for pair in (tmp_path / f"env.{place}").read_text().split("\0") if pair)
        assert world_from_env(found) == World(place, nodes * tasks, place % tasks)
        assert found["MASTER_ADDR"] == "node7" and 20000 <= int(found["MASTER_PORT"]) < 40000
    assert ("requeue 1234567" in (tmp_path / "scontrol.txt").read_text()) == (code == 143)


def test_kubernetes_starts_as_many_processes_as_the_pods_have_gpus():
    (made,) = yaml.safe_load_all((DEPLOY / "jobset.yaml").read_text())
    (job,) = made["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    words = shlex.split(container["args"][0])
    assert words[:2] == ["exec", "torchrun"] and made["kind"] == "JobSet"
    given = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
    assert int(given["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(given["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    name = made["metadata"]["name"]
    assert given["--master-addr"] == f"{name}-{job['name']}-0-0.{name}"
    assert given["--node-rank"] == "$NODE" and [v["name"] for v in container["env"]][0] == "NODE"
    assert "--resume" in words and spec["backoffLimit"] == 0
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["template"]["spec"]["volumes"]}
