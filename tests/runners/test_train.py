"""run_training on a real composition: what it leaves behind and what can be done with it."""

import json

import pytest
import torch

from vlm.checkpoint.load import load_model
from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import ConfigError
from vlm.common.types import Image, Message, Sample, Text
from vlm.config.api import load_config
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.runners.train import run as train_module
from vlm.runners.train.run import question_of

from ..equivalence.tiny import DATA, Tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tiny(tmp_path)
    torch.set_num_threads(threads)


def test_a_run_leaves_config_log_checkpoints_report_and_chats(tiny):
    result = tiny.train("run", report=True, report_samples=2, job_name="my run", trackers="[jsonl, tensorboard]")
    run = RunDir(result.path)
    assert result.status == "finished" and result.step == 8 and result.best_loss is not None
    assert run.steps() == [4, 6, 8] and run.best() is not None  # step 3 went by keep_last=3
    provenance = json.loads((run.last() / "provenance.json").read_text())
    assert provenance["step"] == 8 and {"llm", "vision", "bridge.0"} <= set(provenance["fingerprints"])
    assert provenance["config"]["run"]["job_name"] == "my run"
    text = run.report.read_text()
    assert text.count("data:image/jpeg;base64,") == 2 and "<h1>my run</h1>" in text and "bridge.1" in text
    assert list(run.tensorboard.iterdir())
    assert load_config(run.path).run.init_lr == 0.01
    engine = Engine.load(run.path, "cpu")
    image = Image(str(DATA / "data" / "cc_sbu_align" / "image" / "2.jpg"))
    question = [Message("user", (image, Text("What is this?")))]
    (answer,) = engine.generate([question], Generation(do_sample=False, max_new_tokens=4))
    assert isinstance(answer, str)
    trained = {n: p for n, p in engine.model.named_parameters() if n.startswith("bridge.1")}
    from safetensors.torch import load_file

    stored = load_file(run.last() / "model.safetensors")
    assert trained and all(torch.equal(stored[n], p) for n, p in trained.items())


def test_training_learns_the_five_images(tiny):
    tiny.train("run", max_steps=80, save_freq=1000, val_freq=20, iters_per_epoch=100)
    losses = [r["loss"] for r in tiny.records("run", "valid")]
    assert losses[-1] < 0.8 * losses[0]


def test_lora_starts_from_small_random_numbers_though_a_file_fills_the_llm(tiny):
    poison = [torch.full((1000,), float("nan")) for _ in range(50)]
    del poison
    model = load_model(tiny.load("run"), device="cpu")
    first = {n: p for n, p in model.named_parameters() if ".lora_A." in n}
    assert len(first) == 4
    assert all(0 < p.abs().max() <= 1 / p.shape[1] ** 0.5 and p.dtype == torch.float32 for p in first.values())


def test_workers_give_the_same_run(tiny):
    tiny.train("none", max_steps=4, val_freq=100)
    tiny.train("two", max_steps=4, val_freq=100, num_workers=2)
    assert [r["loss"] for r in tiny.records("none")] == [r["loss"] for r in tiny.records("two")]


@pytest.mark.parametrize("choice", ["torch", "fairscale_offload"])
def test_activation_checkpointing_gives_the_same_run(tiny, choice):
    tiny.train("plain", max_steps=3, val_freq=100)
    tiny.train("recomputed", max_steps=3, val_freq=100, activation_checkpointing=choice)
    plain, recomputed = ([r["loss"] for r in tiny.records(name)] for name in ("plain", "recomputed"))
    # on some CPUs matrix kernels sum in another order where a returned activation lies at another alignment: one ulp
    assert recomputed == pytest.approx(plain, rel=1e-6)


def test_mixed_precision_trains(tiny):
    tiny.train("bf16", max_steps=4, amp=True, val_freq=2)
    tiny.train("fp32", max_steps=4, val_freq=2)
    bf16, fp32 = ([r["loss"] for r in tiny.records(name)] for name in ("bf16", "fp32"))
    assert bf16 != fp32 and bf16 == pytest.approx(fp32, rel=0.02)


def test_epoch_is_one_pass_over_a_single_dataset(tiny):
    result = tiny.train("run", iters_per_epoch="null", max_steps="null", max_epoch=2)
    assert result.step == 4 and {r["epoch"] for r in tiny.records("run")} == {0, 1}


def test_choice_of_validation_sets(tiny):
    with pytest.raises(ConfigError, match="laion"):
        tiny.train("run", valid_datasets="[laion]")
    tiny.train("run", valid_datasets="[cc_sbu_align]", val_batches=1, max_steps=4)
    (record,) = tiny.records("run", "valid")
    assert record["loss"] == record["loss_cc_sbu_align"]


def test_wandb_log_adds_the_tracker(tiny, monkeypatch):
    opened = []
    monkeypatch.setattr(train_module, "open_trackers", lambda names, info: opened.append((names, info)) or [])
    tiny.train("run", max_steps=2, wandb_log=True, wandb_project="mine")
    ((names, info),) = opened
    assert names == ["jsonl", "wandb"] and info.project == "mine" and info.config["run"]["max_steps"] == 2


def test_the_published_key_for_resuming(tiny):
    cfg = tiny.load("run", resume_ckpt_path="some/where")
    assert train_module.resume_choice(cfg) == "some/where"
    assert train_module.resume_choice(tiny.load("run", resume="auto")) == "auto"


def test_a_report_without_readable_samples_is_still_written(tiny, monkeypatch, caplog):
    def broken(*_):
        raise ConfigError("no such image")

    monkeypatch.setattr(train_module, "sample_answers", broken)
    tiny.train("run", max_steps=2, report=True)
    assert 'id="curves"' in RunDir(tiny.folder / "run").report.read_text()


def test_first_question_of_a_dialogue():
    turns = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")]
    messages, answer = question_of(Sample(tuple(Message(role, (Text(t),)) for role, t in turns)))
    assert [m.text for m in messages] == ["one?"] and answer == "1"
    bare = Sample((Message("user", (Image("x"),)), Message("assistant", (Text("a dog"),))))
    assert question_of(bare)[0][-1].text == "Describe this image in detail."
