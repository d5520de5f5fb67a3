"""Runs on a quantised LLM: trained, resumed, split over processes, merged, asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.equivalence.tiny import HERE, Tiny
from vlm.checkpoint.safe import read_folder, read_tensors
from vlm.cli.main import main
from vlm.common.errors import ConfigError
from vlm.inference.engine import Engine
from vlm.models.quantized.layers import quantised_layers
from vlm.runners.train.run import run_training

pytestmark = pytest.mark.heavy

NF4 = "model.llm.quantize=nf4"
QUESTION = [{"role": "user", "content": "What is in the image?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished run of 8 steps on an nf4 LLM, ``whole``, with kept weights."""
    folder = tmp_path_factory.mktemp("qlora")
    tiny = Tiny(folder)
    tiny.train("whole", NF4, f"model.llm.quantize_options.keep={folder / 'kept'}")
    return tiny


def losses(tiny: Tiny, name: str) -> list[float]:
    return [record["loss"] for record in tiny.records(name)]


def weights(tiny: Tiny, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(tiny.folder / name / "last" / "model.safetensors")


def test_a_run_is_resumed_and_holds_what_it_trained_alone(tiny: Tiny) -> None:
    tiny.train("half", NF4, max_steps=3)
    tiny.train("half", NF4, resume="auto")
    assert losses(tiny, "half") == losses(tiny, "whole")
    first, second = weights(tiny, "half"), weights(tiny, "whole")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert all(".lora_" in name or name.startswith("bridge.1.") for name in first)
    assert all(tensor.dtype is torch.float32 for tensor in first.values())


def test_other_ways_to_compute_the_same(tiny: Tiny) -> None:
    """Recomputation and packing change the order of sums, bf16 their precision."""
    dropless = (NF4, "model.llm.lora.dropout=0")
    tiny.train("plain", *dropless)
    tiny.train("recomputed", *dropless, activation_checkpointing="torch")
    assert losses(tiny, "recomputed") == losses(tiny, "plain")
    tiny.train("short", *dropless, "run.amp=true", "run.amp_dtype=bf16", accum_grad_iters=2, max_steps=2)
    assert losses(tiny, "short")[0] == pytest.approx(sum(losses(tiny, "plain")[:2]) / 2, rel=0.1)
    with pytest.raises(ConfigError, match="bf16 on a CPU is for answers"):
        run_training(tiny.load("refused", "model.llm.quantize=bf16"))


def test_processes_and_shards_give_the_same_bits(tiny: Tiny) -> None:
    cases = [
        [
            str(tiny.config),
            *tiny.options(f"{mode}_{shard}", max_steps=4, save_freq=4, val_freq=0),
            f"model.llm.quantize={mode}",
            "model.llm.lora.dropout=0",
            f"run.parallel.shard={shard}",
        ]
        for mode, shards in (("nf4", ("none", "llm", "all")), ("int8", ("none", "llm")))
        for shard in shards
    ]
    file = tiny.folder / "cases.json"
    file.write_text(json.dumps(cases))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(HERE / "train_sharded.py"), str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for mode, shards in (("nf4", ("llm", "all")), ("int8", ("llm",))):
        expected = losses(tiny, f"{mode}_none")
        for shard in shards:
            torch.testing.assert_close(losses(tiny, f"{mode}_{shard}"), expected, rtol=1e-6, atol=0)


def test_the_run_answers_quantised_or_not_and_merged(tiny: Tiny, tmp_path: Path, capsys) -> None:
    run = tiny.folder / "whole"
    trained = Engine.load(run, "cpu")
    assert len(quantised_layers(trained.model)) == 12
    question = "What is in the image?"
    answer = trained.chat(question, max_new_tokens=4, do_sample=False)
    assert answer == Engine.load(run, "cpu").chat(question, max_new_tokens=4, do_sample=False)
    full = Engine.load(run, "cpu", options=["model.llm.quantize=null"])
    assert not quantised_layers(full.model)
    folders = {}
    for base in ("quantised", "full"):
        folders[base] = tmp_path / base
        command = ["weights", "export", str(run), "--to", "hf", str(folders[base]), "--base", base]
        assert main([*command, "--dtype", "fp32", "--form", "composed"]) == 0
    told = capsys.readouterr().out
    assert "merged into the weights after nf4 and back: 12 matrices, which differ from the full ones by" in told
    assert "LoRA was trained around nf4 and is merged into the full weights" in told
    found = {base: read_folder(folder) for base, folder in folders.items()}
    name = next(n for n in found["full"] if n.endswith("layers.0.self_attn.q_proj.weight"))
    layer = next(v for n, v in quantised_layers(trained.model).items() if n.endswith("0.self_attn.q_proj.base_layer"))
    lora = trained.model.get_submodule(
        next(n for n in quantised_layers(trained.model) if n.endswith("0.self_attn.q_proj.base_layer")).rpartition(".")[
            0
        ]
    )
    update = lora.lora_B["default"].weight @ lora.lora_A["default"].weight * lora.scaling["default"]
    torch.testing.assert_close(found["quantised"][name], layer.dense(torch.float32) + update.detach())
    assert 0.02 < (found["full"][name] - found["quantised"][name]).norm() / found["full"][name].norm() < 0.2
    assert (
        main(
            [
                "weights",
                "export",
                str(run),
                "--to",
                "hf",
                str(tmp_path / "x"),
                "--base",
                "quantised",
                "--lora",
                "adapter",
            ]
        )
        == 0
    )


def test_doctor_compares_the_answers(tiny: Tiny, capsys) -> None:
    assert main(["doctor", "--quant", str(tiny.folder / "whole"), "--questions", "2", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["mode"]: row for row in found["rows"]}
    assert list(rows) == ["full", "nf4", "int8"] and found["questions"] == 2 and found["tokens"] > 0
    assert rows["full"]["kl"] == 0 and rows["nf4"]["kl"] > rows["int8"]["kl"] >= 0
    assert rows["nf4"]["llm_mib"] < rows["full"]["llm_mib"] and rows["nf4"]["load_seconds"] > 0
    assert main(["doctor", "--quant", str(tiny.folder / "whole"), "--questions", "1"]) == 0
    assert "KL per token" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 2


def test_the_benchmark_runs_in_small() -> None:
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.qlora", "--size", "small"]
    done = subprocess.run(command, cwd=HERE.parents[1], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["memory_of_bf16"]["layers"] < 0.3 and found["correlation"] > 0.9
