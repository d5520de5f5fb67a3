"""A run with a feature cache is the run without one: when it fills the cache, and when it reads it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as PILImage

from vlm.runners.train.trackers import read_log

from .tiny import DATA, HERE

TINY = yaml.safe_load((HERE / "tiny.yaml").read_text().replace("DATA", str(DATA)))["model"]
EVA, QFORMER = TINY["vision"], TINY["bridge"][0]
FILES = {entry["into"]: entry for entry in TINY["weights"]}
PERCEIVER = {"name": "perceiver", "depth": 1, "heads": 2, "dim_head": 8, "num_latents": 3, "max_num_frames": 8}
FLAT = {"name": "hf_flat_vision", "precision": "fp32", "image_size": 56, "config": {
    "model_type": "qwen2_vl_vision", "depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 4,
    "patch_size": 14}}  # fmt: skip
TIMM = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 42, "keep_prefix": False, "precision": "fp32",
        "options": {"patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 2}}  # fmt: skip


@dataclass
class Case:
    """A composition around the LLM of the published case, in training on the records of ``write_data``."""

    name: str
    vision: dict = field(default_factory=lambda: EVA)
    bridge: list = field(default_factory=lambda: [QFORMER, {"name": "linear"}])
    image: dict = field(default_factory=lambda: {"size": 42})
    model: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)
    train: list = field(default_factory=lambda: ["bridge.1.*", "llm.lora"])
    random: list = field(default_factory=list)  # parts that start at random and stay frozen
    records: str = "images"
    processes: int = 1
    ahead: bool = False  # also `vlm cache`
    bits: float = 0.0  # largest relative difference between losses


CASES = [
    Case("splice", ahead=True),
    Case("packed", run={"packing": {"max_tokens": 160, "open_rows": 2}, "accum_grad_iters": 2, "num_workers": 2}),
    Case("bf16", run={"amp": True, "amp_dtype": "bf16"}, bits=1e-6),
    Case("all_frozen", train=["llm.lora"], random=["bridge.1"]),
    Case("two", processes=2, ahead=True, run={"num_workers": 1}),
    Case("sharded", processes=2, run={"parallel": {"shard": "llm"}, "num_workers": 1}, bits=1e-6),
    Case("tiles", bridge=[{"name": "linear"}, {"name": "tile_rows", "size": 42}], image={"name": "tiles", "size": 42},
         vision=TIMM, train=["bridge.1.*"], random=["vision", "bridge.0"], run={"mixing": "sample", "num_workers": 1}),
    Case("split", ahead=True, image={"name": "split", "size": 42, "longest": 84}, run={"num_workers": 2}),
    Case("any_size", vision=FLAT, bridge=[{"name": "patch_merger"}], image={"name": "native", "most": 12544},
         train=["bridge.0.*", "llm.lora"], random=["vision"]),
    Case("videos", bridge=[PERCEIVER, {"name": "linear"}], model={"video": {"num_frames": 4}}, records="videos",
         bits=1e-6, random=["bridge.0"], run={"num_workers": 1}),
    Case("gated", bridge=[PERCEIVER], model={"fusion": {"name": "cross_attn", "image_token_id": 3},
         "inserts": [{"name": "gated_xattn", "every": 2, "heads": 2, "dim_head": 8}]},
         train=["bridge.*", "inserts.*"]),
]  # fmt: skip


def write_data(folder: Path) -> dict[str, Path]:
    """Records with no, one and two images of several sizes, some in more than one record, and with videos."""
    rng = np.random.default_rng(0)
    images = []
    for number, size in enumerate([(50, 40), (42, 84), (60, 60), (120, 40), (33, 70)]):
        images.append(str(folder / f"{number}.png"))
        PILImage.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(images[-1])
    frames = [str(folder / f"clip{number}") for number in range(2)]
    for number, name in enumerate(frames):
        Path(name).mkdir()
        for frame in range(4 + 3 * number):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            PILImage.fromarray(pixels).save(Path(name) / f"{frame}.png")

    def record(number, **media):
        question = {"from": "human", "value": f"What is number {number}?"}
        return {"id": str(number), **media, "conversations": [question, {"from": "gpt", "value": f"It is {number}."}]}

    shown = [images[:1], images[1:3], [], images[3:4], images[:1], [images[4], images[0]], images[2:3], images[1:2]]
    kinds = {
        "images": [record(k, **({"image": names} if names else {})) for k, names in enumerate(shown)],
        "videos": [record(k, video=frames[k % 2]) for k in range(4)] + [record(9, image=images[:1])],
    }
    files = {name: folder / f"{name}.json" for name in kinds}
    for name, records in kinds.items():
        files[name].write_text(json.dumps(records))
    return files


def write_config(case: Case, folder: Path, files: dict[str, Path]) -> Path:
    lora = {"r": 2, "alpha": 4, "dropout": 0.1 if case.processes == 1 else 0.0, "targets": ["q_proj", "v_proj"]}
    template = {"name": "vicuna0", "prompt_template": "###Human: {} ###Assistant: ", "end_sym": "###"}
    llm = {"name": "hf", "path": str(DATA / "llm")}
    model = {
        "vision": case.vision, "bridge": case.bridge, "fusion": {"name": "splice"}, "template": template,
        "llm": llm | ({"lora": lora} if "llm.lora" in case.train else {}), "image": case.image,
        "text": {"max_txt_len": 40}, "train": case.train,
        "weights": [*({"format": "random", "into": part} for part in case.random), FILES["llm"],
                    *([FILES["vision"]] if case.vision == EVA else []),
                    *([FILES["bridge.0"]] if case.bridge[0] == QFORMER else [])],
    }  # fmt: skip
    data = {"records": {"format": "conversation_json", "build_info": {"ann_path": str(files[case.records])},
                        "batch_size": 2}}  # fmt: skip
    run = {"init_lr": 0.01, "lr_sched": "constant", "max_steps": 4, "iters_per_epoch": 4, "val_freq": 4, "save_freq": 2,
           "log_freq": 1, "num_workers": 0, "device": "cpu", "trackers": ["jsonl"],
           "report": False, "keep_last": 0}  # fmt: skip
    file = folder / f"{case.name}.yaml"
    sections = {"model": model | case.model, "datasets": data, "valid_datasets": data, "run": run | case.run}
    file.write_text(yaml.safe_dump(sections))
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All runs of all cases: without a cache, filling one (resumed half-way), reading it, reading one filled ahead."""
    folder = tmp_path_factory.mktemp("cached")
    files, runs = write_data(folder), []

    def add(case, command, name, *options, pair=False):
        out = f"run.output_dir={folder / case.name / name}"
        config = str(folder / f"{case.name}.yaml")
        runs.append({"pair": pair, "command": command, "config": config, "options": [out, *options]})

    for case in CASES:
        write_config(case, folder, files)
        both, cache = {"pair": case.processes > 1}, f"run.feature_cache.dir={folder / case.name / 'cache'}"
        add(case, "train", "plain", **both)
        add(case, "train", "fills", cache, "run.max_steps=2", **both)
        add(case, "train", "fills", cache, "run.resume=auto", **both)
        add(case, "train", "reads", cache, **both)
        if case.ahead:
            ahead = f"run.feature_cache.dir={folder / case.name / 'ahead'}"
            add(case, "cache", "", ahead, **both)
            add(case, "train", "after", ahead)
    (folder / "runs.json").write_text(json.dumps(runs))
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "train_list.py"), str(folder / "runs.json")]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert found.returncode == 0, found.stderr[-5000:]
    return folder


def records(folder, case, run, kind="train"):
    return [r for r in read_log(folder / case.name / run / "log.jsonl") if r["kind"] == kind]


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_are_those_without_a_cache(done, case):
    plain = records(done, case, "plain")
    for run in ("fills", "reads"):
        own = records(done, case, run)
        assert len(own) == len(plain) == 4
        for key in ("loss", "grad_norm", "targets", "tokens"):
            assert [r[key] for r in own] == pytest.approx([r[key] for r in plain], rel=case.bits, abs=0), (run, key)
        found = [records(done, case, name, "valid")[-1]["loss"] for name in ("plain", run)]
        assert found[1] == pytest.approx(found[0], rel=case.bits, abs=0)
        assert own[-1]["padding"] == plain[-1]["padding"]
        assert own[-1]["data/records/tokens"] == plain[-1]["data/records/tokens"]


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_second_run_computes_nothing(done, case):
    fills, reads = (records(done, case, run)[-1] for run in ("fills", "reads"))
    assert fills["cache_misses"] > 0 and reads["cache_misses"] == 0 and reads["cache_hits"] > 0
    assert fills["cache_hits"] + fills["cache_misses"] == reads["cache_hits"]


@pytest.mark.heavy
@pytest.mark.parametrize("case", [case for case in CASES if case.ahead], ids=lambda case: case.name)
def test_a_cache_that_was_filled_ahead_has_everything(done, case):
    after = records(done, case, "after")[-1]
    assert after["cache_misses"] == 0 and after["cache_hits"] > 0
