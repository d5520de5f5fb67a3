"""A model in shards computes what copies and one process compute: losses, gradients, weights."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlm.runners.train.trackers import read_log

from .sharded_cases import COMPOSITIONS, write_composition, write_dialogues

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
BATCH = "datasets.dialogues.batch_size="
LLM, ALL = ("run.parallel.shard=llm",), ("run.parallel.shard=all", "run.parallel.frozen=shard")
FORMS = {
    "packed": ("run.packing={max_tokens: 90, open_rows: 3}", "run.lr_scale={inserts.*: 0.1}"),
    "bf16": ("run.amp=true", "run.amp_dtype=bf16", "run.activation_checkpointing=torch"),
    "fp16": ("run.amp=true", "run.amp_dtype=fp16", "run.find_unused_parameters=true"),
}
"""What shards must go with; compared with copies of the same form in as many processes."""


class Runs:
    """Runs of each number of processes, all of one number in one process group."""

    def __init__(self, folder):
        self.folder = folder
        write_dialogues(folder)
        self.files = {name: write_composition(folder, name) for name in COMPOSITIONS}

    @cache  # noqa: B019
    def start(self, processes):
        """Run everything that these processes have to; a failure shows their log."""
        cases = self.folder / f"cases{processes}.json"
        cases.write_text(json.dumps([self.case(processes, *given) for given in self.given(processes)]))
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(several if processes > 1 else []), str(HERE / "train_sharded.py"), str(cases)]
        env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def case(self, processes, kind, name, *options):
        """The arguments of a run: 4 samples in a micro-batch of all processes, two of which are a step."""
        output = f"run.output_dir={self.folder / f'{name}_{kind}_{processes}'}"
        return [str(self.files[name]), output, f"{BATCH}{4 // processes}", *options]

    def given(self, processes):
        for name in COMPOSITIONS:
            if processes == 1:
                yield "none", name
            elif processes == 2:
                yield from (("llm", name, *LLM), ("all", name, *ALL))
            else:
                yield "grid", name, *ALL, "run.parallel.replicate=2"
        if processes == 4:
            yield "llm", "open_flamingo", *LLM
        if processes == 2:
            yield "none", "open_flamingo"
            for form, options in FORMS.items():
                for kind, shards in (("none", ()), ("all", ALL)):
                    yield f"{kind}_{form}", "open_flamingo" if form == "packed" else "minigpt_v2", *shards, *options

    def close(self, one, other, loss=1e-5, weights=1e-4):
        """Whether two runs are the same: losses of steps and of validation, gradient norms, last weights."""
        one, other = (self.folder / name for name in (one, other))
        for kind, key, near in (("train", "loss", loss), ("valid", "loss", loss), ("train", "grad_norm", 10 * loss)):
            found, expected = ([r[key] for r in read_log(f / "log.jsonl") if r["kind"] == kind] for f in (one, other))
            assert len(found) == len(expected) > 0
            assert found == pytest.approx(expected, abs=near, rel=near), (kind, key)
        found, expected = (load_file(folder / "weights.safetensors") for folder in (one, other))
        assert found.keys() == expected.keys()
        assert max(float((found[k] - expected[k]).abs().max()) for k in found) < weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_two_processes_with_shards_are_one(runs, name):
    runs.start(1)
    runs.start(2)
    runs.close(f"{name}_llm_2", f"{name}_none_1")
    runs.close(f"{name}_all_2", f"{name}_none_1")


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_two_groups_of_two_are_one(runs, name):
    """With one sample per process and micro-batch: some have an image when others have none."""
    runs.start(1)
    runs.start(4)
    runs.close(f"{name}_grid_4", f"{name}_none_1")


def test_four_shards_are_one_and_copies_too(runs):
    runs.start(1)
    runs.start(2)
    runs.start(4)
    runs.close("open_flamingo_llm_4", "open_flamingo_none_1")
    runs.close("open_flamingo_none_2", "open_flamingo_none_1")


@pytest.mark.parametrize("form", FORMS)
def test_shards_go_with(runs, form):
    runs.start(2)
    name = "open_flamingo" if form == "packed" else "minigpt_v2"
    runs.close(f"{name}_all_{form}_2", f"{name}_none_{form}_2")
