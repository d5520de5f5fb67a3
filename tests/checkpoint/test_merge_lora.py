"""``vlm weights merge-lora`` writes what peft's ``merge_and_unload`` computes, tokens that an adapter adds included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.checkpoint.convert.folder import UNFINISHED
from vlm.checkpoint.safe import read_folder, read_json
from vlm.cli.main import main

TOKENIZER = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
ROWS = 512

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and two adapters as peft saves them, trained one after the other; the second adds two tokens more."""
    root = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **sizes)).half()
    base.save_pretrained(root / "base")
    shutil.copyfile(TOKENIZER / "tokenizer.model", root / "base" / "tokenizer.model")
    current = base
    for name, rows, options in (("first", ROWS + 1, {"r": 4, "lora_alpha": 8}), ("second", ROWS + 3, {"r": 2})):
        current.resize_token_embeddings(rows, mean_resizing=False)
        targets = ["q_proj", "v_proj", "down_proj"]
        config = LoraConfig(target_modules=targets, modules_to_save=["embed_tokens", "lm_head"], **options)
        model = get_peft_model(current, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
        model.save_pretrained(root / name)
        shutil.copyfile(TOKENIZER / "tokenizer.model", root / name / "tokenizer.model")
        added = {f"[NEW{i}]": i for i in range(ROWS, rows)}
        (root / name / "added_tokens.json").write_text(json.dumps(added))
        current = model.merge_and_unload()
    return {name: root / name for name in ("base", "first", "second")}


def by_peft(folders: dict[str, Path], names: list[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = LlamaForCausalLM.from_pretrained(folders["base"], dtype=dtype)
    for name in names:
        rows = read_json(folders[name] / "added_tokens.json")
        model.resize_token_embeddings(max(rows.values()) + 1, mean_resizing=False)
        model = PeftModel.from_pretrained(model, folders[name]).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("names", [["first"], ["first", "second"]])
def test_equals_peft(folders: dict[str, Path], tmp_path: Path, names: list[str]) -> None:
    target = tmp_path / "merged"
    command = ["weights", "merge-lora", str(folders["base"]), *(str(folders[n]) for n in names), "--to", str(target)]
    assert main([*command, "--shard-gb", "0.00002"]) == 0
    assert len(list(target.glob("model-*.safetensors"))) > 1
    theirs, ours = by_peft(folders, names, torch.float16), read_folder(target)
    assert ours.keys() == theirs.keys() and {t.dtype for t in ours.values()} == {torch.float16}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = ROWS + (3 if len(names) == 2 else 1)
    assert read_json(target / "config.json")["vocab_size"] == len(ours["lm_head.weight"]) == rows
    assert read_json(target / "added_tokens.json") == read_json(folders[names[-1]] / "added_tokens.json")
    loaded = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert loaded.config.vocab_size == rows


def test_another_dtype(folders: dict[str, Path], tmp_path: Path) -> None:
    command = ["weights", "merge-lora", str(folders["base"]), str(folders["first"]), "--to", str(tmp_path / "m")]
    assert main([*command, "--dtype", "fp32"]) == 0
    theirs, ours = by_peft(folders, ["first"], torch.float32), read_folder(tmp_path / "m")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_json(tmp_path / "m" / "config.json")["torch_dtype"] == "float32"


def test_bad_input_is_one_message(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(base: Path, *loras: Path) -> str:
        assert main(["weights", "merge-lora", str(base), *map(str, loras), "--to", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()
        return capsys.readouterr().err

    base, first, second = (folders[name] for name in ("base", "first", "second"))
    assert "has [515, 16]" in refused(base, second, first)
    assert "config.json: no such file" in refused(tmp_path, first)
    assert "adapter_config.json: no such file" in refused(base, tmp_path)
    other = tmp_path / "other"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **sizes)).save_pretrained(other)
    assert "model.layers.1." in refused(other, first)
    half = Path(shutil.copytree(first, tmp_path / "half"))
    from safetensors.torch import load_file, save_file

    held = load_file(half / "adapter_model.safetensors")
    save_file({k: t for k, t in held.items() if "lm_head" not in k}, half / "adapter_model.safetensors")
    assert "the token tables differ in rows: lm_head.weight 512, model.embed_tokens.weight 513" in refused(base, half)
    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    (bare / "tokenizer.model").unlink()
    plain = Path(shutil.copytree(first, tmp_path / "plain"))
    (plain / "tokenizer.model").unlink()
    assert "no tokenizer in it" in refused(bare, plain)
    (first / "added_tokens.json").rename(first / "kept.json")
    (first / "added_tokens.json").write_text(json.dumps({"[A]": ROWS, "[B]": ROWS + 1}))
    assert "the tokenizer has 514 tokens, the model 513 rows" in refused(base, first)
    (first / "kept.json").replace(first / "added_tokens.json")


def test_an_interrupted_merge_is_replaced_and_files_of_others_are_not(folders: dict[str, Path], tmp_path: Path) -> None:
    command = ["weights", "merge-lora", str(folders["base"]), str(folders["first"]), "--to", str(tmp_path / "m")]
    (tmp_path / ".m.part").mkdir()
    (tmp_path / ".m.part" / "mine.txt").touch()
    assert main(command) == 2
    (tmp_path / ".m.part" / UNFINISHED).touch()
    assert main(command) == 0 and not (tmp_path / ".m.part").exists()


def test_into_the_weights_that_it_was_trained_around(tmp_path: Path, capsys) -> None:
    """``--quantize int8``: the base goes through 8 bits and back before the update is added."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, **sizes))
    base.save_pretrained(tmp_path / "base")
    full = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    shutil.copyfile(TOKENIZER / "tokenizer.model", tmp_path / "base" / "tokenizer.model")
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, lora_alpha=4))
    lora = model.base_model.model.model.layers[0].self_attn.q_proj
    lora.lora_B["default"].weight.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "lora")
    command = ["weights", "merge-lora", str(tmp_path / "base"), str(tmp_path / "lora"), "--to", str(tmp_path / "m")]
    assert main([*command, "--quantize", "int8"]) == 0
    assert "merged into the weights after int8 and back: 7 matrices, which differ" in capsys.readouterr().out
    update = 2 * lora.lora_B["default"].weight.detach() @ lora.lora_A["default"].weight.detach()
    for name, tensor in read_folder(tmp_path / "m").items():
        expected = full[name] + (update if name.endswith("q_proj.weight") else 0)
        moved = (tensor - expected).norm() / full[name].norm()
        rounded = name.endswith("_proj.weight")
        assert (1e-3 < moved < 1e-2) if rounded else moved == 0, name
