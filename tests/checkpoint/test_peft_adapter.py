"""peft's adapters: every option is applied as peft applies it, or refused by name; equal logits decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import AutoConfig, AutoModelForCausalLM

from vlm.checkpoint.peft_adapter import CONFIG, read_adapter
from vlm.common.errors import ConfigError, UserError, WeightsError
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions, inject_lora

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks for it

LLAMA = {
    "model_type": "llama", "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROWS = torch.tensor([[1, 5, 7, 30, 12, 9]])
USUAL: dict[str, Any] = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def base(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()


def saved(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    """An adapter as peft saves it, its matrices random; returns peft's logits."""
    model: Any = get_peft_model(base(config), LoraConfig(**USUAL | options, task_type="CAUSAL_LM")).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(ROWS).logits


def ours(folder: Path, config: dict[str, Any]) -> torch.Tensor:
    """Our logits with that adapter; merged by its own numbers, they must be the same."""
    adapter = read_adapter(folder)
    options = adapter.options("")
    assert options is not None
    model, merged = base(config), base(config)
    inject_lora(model, options)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for layer, names in adapter.lora.items():
            a, b = (adapter.tensors[name] for name in names)
            for side, matrix in (("A", a), ("B", b)):
                parameters[f"{layer}.lora_{side}.default.weight"].copy_(matrix)
            update = b @ a * (adapter.alpha / adapter.rank(layer))
            weight = merged.get_submodule(layer).weight
            weight.add_(update.T if config["model_type"] == "gpt2" else update)
        result = model.eval()(ROWS).logits
        torch.testing.assert_close(merged(ROWS).logits, result)
    return result


APPLIED: dict[str, dict[str, Any]] = {
    "plain": {},
    "expression": {"target_modules": r".*self_attn\.(q|k)_proj"},
    "endings": {"target_modules": ["self_attn.q_proj", "up_proj"]},
    "all_linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 3},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0.*"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "false": {"init_lora_weights": False},
}


@pytest.mark.parametrize("name", APPLIED)
def test_applied_as_peft_does(tmp_path: Path, name: str) -> None:
    torch.testing.assert_close(ours(saved_at(tmp_path, LLAMA, APPLIED[name]), LLAMA), LOGITS[tmp_path])


LOGITS: dict[Path, torch.Tensor] = {}


def saved_at(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> Path:
    LOGITS[folder] = saved(folder, config, options)
    return folder


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj"], "all-linear"])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # peft goes by the class of the layer
def test_transposed_layers(tmp_path: Path, targets: Any, declared: bool) -> None:
    """GPT-2's Conv1D, which peft recognises whatever ``fan_in_fan_out`` says."""
    options = {"target_modules": targets, "fan_in_fan_out": declared}
    torch.testing.assert_close(ours(saved_at(tmp_path, GPT2, options), GPT2), LOGITS[tmp_path])


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", r".*layers\.1\..*_proj", ["0.mlp.down_proj"]])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_training_adapts_what_peft_adapts(targets: Any, config: dict[str, Any]) -> None:
    if config is GPT2 and targets != "all-linear":
        targets = ["c_fc"]
    model = HFCausalLM(HFCausalLM.Config(config=dict(config), dtype="fp32", lora=LoraOptions(2, 8, 0.0, targets)))
    expected = base(config)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=8, target_modules=targets), expected)
    assert set(model.model.state_dict()) == set(expected.state_dict())
    for name, parameter in model.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter.data)
    expected.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.eval().model(ROWS).logits, expected.eval()(ROWS).logits)


REFUSED: dict[str, Any] = {
    "alpha_pattern": {"q_proj": 64},
    "rank_pattern": {"q_proj": 4},
    "use_dora": True,
    "lora_bias": True,
    "bias": "all",
    "init_lora_weights": "pissa",
    "trainable_token_indices": [3],
    "target_parameters": ["mlp.weight"],
    "layer_replication": [[0, 1], [0, 1]],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "use_qalora": True,
    "alora_invocation_tokens": [3],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 2},
    "monteclora_config": {"num_samples": 2},
    "velora_config": {"num_groups": 2},
    "kasa_config": {"beta": 1},
    "ensure_weight_tying": True,
    "peft_type": "ADALORA",
    "an_option_of_tomorrow": 0.5,
}


def with_options(folder: Path, options: dict[str, Any]) -> Path:
    saved(folder, LLAMA, {})
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | options))
    return folder


@pytest.mark.parametrize("key", REFUSED)
def test_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(WeightsError, match=rf"adapter_config.json: {key} .*only plain LoRA"):
        read_adapter(with_options(tmp_path, {key: REFUSED[key]}))


@pytest.mark.parametrize("kind", ["olora", "pissa_niter_16", "loftq", "corda", "lora_ga", "tomorrow", ["pissa"]])
def test_initialisations_that_change_the_base(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(WeightsError, match=r"init_lora_weights .*only plain LoRA[\s\S]*path_initial_model"):
        read_adapter(with_options(tmp_path, {"init_lora_weights": kind}))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"exclude_modules": ["v_proj"]},
        {"layers_to_transform": [0]},
        {"target_modules": r".*layers\.0.*"},
    ],
)
def test_layers_that_the_configuration_leaves_out(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"_proj has LoRA \(2 such layers\), but adapter_config.json leaves it out"):
        read_adapter(with_options(tmp_path, options))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "(q_proj"},
        {"target_modules": r".*q_proj", "layers_to_transform": [0]},
        {"lora_alpha": "16"},
        {"lora_alpha": float("nan")},
        {"lora_dropout": "high"},
        {"r": True},
    ],
)
def test_values_without_meaning(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((WeightsError, ConfigError), match=rf"adapter_config.json: .*{next(iter(options))}"):
        read_adapter(with_options(tmp_path, options))


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    for options in ({"use_dora": True}, {"target_modules": ["embed_tokens"]}):
        saved(tmp_path, LLAMA, options)
        config = json.loads((tmp_path / CONFIG).read_text()) | {"use_dora": False}
        (tmp_path / CONFIG).write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"lora_(embedding|magnitude).* such tensors\); only plain LoRA"):
            read_adapter(tmp_path)


def test_a_pointer_in_place_of_a_file(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
    saved(tmp_path, LLAMA, {})
    (tmp_path / "adapter_model.safetensors").write_bytes(pointer)
    with pytest.raises(WeightsError, match="adapter_model.safetensors: not a weight file but a Git LFS pointer"):
        read_adapter(tmp_path)
    (tmp_path / CONFIG).write_bytes(pointer)
    with pytest.raises(WeightsError, match="adapter_config.json is a Git LFS pointer"):
        read_adapter(tmp_path)
