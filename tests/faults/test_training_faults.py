"""Faults around a training run: each is one clear message, and what was saved stays whole."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from vlm.checkpoint.run_folder import RunDir, read_checkpoint
from vlm.common.errors import ConfigError, DataError, NonFiniteLossError, UserError, WeightsError

from ..equivalence.tiny import DATA, Tiny


@pytest.fixture
def tiny(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tiny(tmp_path)
    torch.set_num_threads(threads)


def test_sigterm_saves_and_ends_with_143_and_the_run_goes_on(tiny):
    process = tiny.start("run", max_steps=100000, save_freq=100000, val_freq=100000)
    tiny.wait_for_step("run", 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "SIGTERM received: saving after this step" in errors and "Traceback" not in errors
    step = len(tiny.records("run"))
    assert RunDir(tiny.folder / "run").steps() == [step]
    result = tiny.train("run", resume="auto", max_steps=step + 2)
    assert [r["step"] for r in tiny.records("run")] == list(range(1, step + 3)) and result.status == "finished"


def test_diverging_loss_names_step_and_samples(tiny):
    with pytest.raises(
        NonFiniteLossError, match=r"step \d+: the (loss|gradient) is not a number.*samples: \w+, \w+"
    ) as e:
        tiny.train("run", init_lr=1e20, warmup_steps=0, max_steps=50, save_freq=1, val_freq=100)
    assert "run.max_grad_norm" in str(e.value)
    tensors, _ = read_checkpoint(RunDir(tiny.folder / "run").last())
    assert all(t.isfinite().all() for t in tensors.values()) and "bridge.1.proj.weight" in tensors


def test_another_run_in_the_folder_is_refused_before_loading(tiny, monkeypatch):
    tiny.train("run", max_steps=2)
    runner = importlib.import_module("vlm.runners.train.run")
    monkeypatch.setattr(runner, "load_spread", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="already holds a run"):
        tiny.train("run", max_steps=2)


def test_overwrite_deletes_only_when_everything_else_is_ready(tiny):
    tiny.train("run", max_steps=3)
    with pytest.raises(ConfigError, match="selects no parameter"):
        tiny.train("run", "model.train=[bridge.9.*]", overwrite=True)
    assert RunDir(tiny.folder / "run").steps() == [3]
    tiny.train("run", overwrite=True, max_steps=2)
    assert RunDir(tiny.folder / "run").steps() == [2] and len(tiny.records("run")) == 2


def test_resume_with_a_checkpoint_of_another_composition(tiny):
    tiny.train("run", max_steps=2)
    with pytest.raises(WeightsError, match=r"does not fit this composition:[\s\S]*of another shape: .*lora_A"):
        tiny.train("other", "model.llm.lora.r=4", resume=tiny.folder / "run")


def test_resume_from_nothing(tiny):
    with pytest.raises(WeightsError, match="no checkpoint there"):
        tiny.train("run", resume=tiny.folder / "elsewhere")


def test_resume_auto_without_a_run_starts_one(tiny):
    assert tiny.train("run", resume="auto", max_steps=2).step == 2


def test_empty_dataset(tiny):
    (tiny.folder / "data" / "image").mkdir(parents=True)
    (tiny.folder / "data" / "filter_cap.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match="cc_sbu_align"):
        tiny.train("run", f"datasets.cc_sbu_align.build_info.storage={tiny.folder / 'data'}")


def test_unknown_names_are_reported_with_the_nearest(tiny):
    with pytest.raises(ConfigError, match="'image_text_pretrain'"):
        tiny.train("run", task="image_text_pretrian")
    with pytest.raises(ConfigError, match="runner_base"):
        tiny.train("run", runner="runner_bas")
    with pytest.raises(ConfigError, match="cosine"):
        tiny.train("run", lr_sched="cosin")


def test_a_device_the_machine_does_not_have(tiny):
    if torch.accelerator.is_available():
        wrong = "xpu" if torch.accelerator.current_accelerator().type != "xpu" else "mps"
    else:
        wrong = "cuda"
    with pytest.raises(UserError, match=r"run\.device=(auto|cpu)"):
        tiny.train("run", device=wrong)


def test_length_of_an_epoch_unknown(tiny):
    """Two datasets have no common pass over the data."""
    more = {"format": "caption_folder", "build_info": {"storage": str(tiny.folder)}, "batch_size": 1}
    text = tiny.config.read_text().replace("datasets:\n", f"datasets:\n  second: {json.dumps(more)}\n", 1)
    tiny.config.write_text(text)
    source = next(p for p in text.split() if p.endswith("cc_sbu_align},"))[:-2]
    shutil.copytree(source, tiny.folder, dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"run\.iters_per_epoch"):
        tiny.train("run", max_steps="null", iters_per_epoch="null")


def test_part_of_torchruns_variables_is_explained():
    code = "from vlm.common import dist; dist.init('cpu')"
    env = {**os.environ, "RANK": "0"}
    env.pop("WORLD_SIZE", None)
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert found.returncode != 0 and "missing: WORLD_SIZE, LOCAL_RANK" in found.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
def test_a_damaged_checkpoint_is_named(tiny, name):
    tiny.train("run", max_steps=2)
    (RunDir(tiny.folder / "run").last() / name).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=name):
        tiny.train("run", resume="auto", max_steps=4)


def test_resume_on_other_frozen_weights_is_refused(tiny):
    """Another LLM of the same shape: the checkpoint would fit, the answers would not."""
    tiny.train("run", max_steps=2)
    llm = tiny.folder / "llm"
    shutil.copytree(DATA / "llm", llm)
    for file in llm.glob("pytorch_model-*.bin"):
        tensors = torch.load(file, weights_only=True)
        torch.save({k: v * 1.5 for k, v in tensors.items()}, file)
    same_llm = ["model.llm.path=" + str(llm), f"model.weights=[{', '.join(_weights(llm))}]"]
    with pytest.raises(WeightsError, match="trained on other frozen weights; llm: sha256"):
        tiny.train("run", *same_llm, resume="auto", max_steps=4)


def _weights(llm):
    files = [
        ("eva", DATA / "eva_vit_g.pth", "vision"),
        ("blip2_qformer", DATA / "blip2_pretrained_flant5xxl.pth", "bridge.0"),
    ]
    files.append(("hf_llm", llm, "llm"))
    return [f"{{format: {kind}, path: {path}, into: {part}}}" for kind, path, part in files]
