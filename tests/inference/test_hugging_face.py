"""Folders of published models: their forms, ``vlm import``, ``vlm verify``, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.installed import llava
from vlm.checkpoint.fits import misfits
from vlm.cli.main import main
from vlm.common.errors import UserError
from vlm.config.api import load_config
from vlm.inference.architectures.folder import ModelFolder
from vlm.inference.engine import Engine
from vlm.inference.load import read_source

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    llava.build(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, Tensor]:
    return Engine.load(made, "cpu").model.state_dict()


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def older(name: str) -> str:
    """As the files of 2023 spell it."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def newer(name: str) -> str:
    """As transformers 5 names it in memory."""
    name = name.removeprefix("language_model.") if "lm_head" in name else name
    name = name.replace("language_model.model.", "language_model.")
    return name if "lm_head" in name else f"model.{name}"


def with_buffers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def in_shards(folder: Path, save: Callable[[Any, Path], None] = save_file, form: str = "model-{}.safetensors") -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where = {name: form.format(number % 3) for number, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    index = "model.safetensors.index.json" if form.endswith("safetensors") else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def as_bin(folder: Path, legacy: bool = False) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (folder / WEIGHTS).unlink()


FORMS: dict[str, Callable[[Path], None]] = {
    "older names": lambda folder: rename(folder, older),
    "newer names": lambda folder: rename(folder, newer),
    "buffers of earlier versions": with_buffers,
    "shards": in_shards,
    "bin shards": lambda folder: in_shards(folder, torch.save, "pytorch_model-{}.bin"),
    "bin": as_bin,
    "bin of torch before 1.6": lambda folder: as_bin(folder, legacy=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_folder_is_the_same_model(form: str, folder: Path, expected: dict[str, Tensor]) -> None:
    FORMS[form](folder)
    found = Engine.load(folder, "cpu").model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_sixteen_bits_are_float32_on_a_cpu(dtype: torch.dtype, name: str, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, folder / WEIGHTS)
    cfg = read_source(folder)
    assert (cfg.model.llm.config.dtype, cfg.model.vision.config.precision) == (name, name)
    model = Engine.load(folder, "cpu").model
    assert torch.equal(
        model.bridge[0].layers[0].weight, tensors["multi_modal_projector.linear_1.weight"].to(dtype).float()
    )


def test_the_tokenizer_is_the_one_that_transformers_reads(folder: Path) -> None:
    one = Engine.load(folder, "cpu").processor.tokenizer
    shutil.copy(Path(__file__).resolve().parents[1] / "golden/minigpt4/open/llm/tokenizer.model", folder)
    both = Engine.load(folder, "cpu").processor.tokenizer
    assert both.encode("A boat, <image>") == one.encode("A boat, <image>")


def test_import_writes_a_file_that_trains_and_answers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(made), "--to", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "vlm chat mine.yaml" in said and "--against transformers" in said and "vlm train mine.yaml" in said
    cfg = load_config("mine.yaml")
    assert cfg.model.train == {"bridge.*": True} and not misfits(cfg)
    assert cfg.model.llm.config.config["num_hidden_layers"] == 2
    data = Path(__file__).resolve().parents[2] / "docs/extend/examples/data"
    build = f"{{ann_path: {data}/colors.jsonl, image_path: {data}}}"
    text = f"datasets:\n  colors: {{format: table, batch_size: 2, build_info: {build}}}\n"
    file = tmp_path / "train.yaml"
    file.write_text(Path("mine.yaml").read_text() + f"  max_steps: 2\n  num_workers: 0\n  device: cpu\n{text}")
    assert main(["train", str(file)]) == 0
    capsys.readouterr()
    trained, fresh = Engine.load("output/mine", "cpu"), Engine.load(made, "cpu")
    assert not torch.equal(trained.model.bridge[0].layers[0].weight, fresh.model.bridge[0].layers[0].weight)
    assert torch.equal(trained.model.llm.model.lm_head.weight, fresh.model.llm.model.lm_head.weight)
    assert main(["import", str(made), "--to", "mine.yaml"]) == 0  # its own file is replaced
    Path("other.yaml").write_text("mine: 1\n")
    assert main(["import", str(made), "--to", "other.yaml"]) == 2


def test_a_folder_with_an_odd_name_cannot_write_other_keys(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "a\nplugins: [evil]\nb: '"))
    target = tmp_path / "c\nplugins: [evil]\nd.yaml"
    assert main(["import", str(folder), "--to", str(target)]) == 0
    cfg = load_config(target)
    assert not cfg.plugins and cfg.model.weights[0].path == str(folder.resolve())


def test_verify_says_whether_it_is_the_same(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    verify = ["verify", str(made), "--against", "transformers", "-n", "2", "--device", "cpu"]
    assert main(verify) == 0
    assert "greedy ids: 2 of 2 answers are equal" in capsys.readouterr().out
    level = ModelFolder.levels
    monkeypatch.setattr(ModelFolder, "levels", lambda self: level(self) | {"mean": [0.0, 0.0, 0.0]})
    assert main(verify) == 1
    said = capsys.readouterr().out
    assert "prompt 1: pixels differ by" in said and "DIFFERS" in said


def edit(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in (content | values).items() if v is not ...}))

    return change


def remote_code(folder: Path) -> None:
    edit("config.json", model_type="strange", auto_map={"AutoConfig": "evil.Config"})(folder)
    (folder / "evil.py").write_text("raise SystemExit('executed')")


def half_of_it(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"].half()
    save_file(tensors, folder / WEIGHTS)


def without_image_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace("<image>", "<other>")
    (folder / "tokenizer.json").write_text(text)
    edit("tokenizer_config.json", extra_special_tokens=[], additional_special_tokens=[])(folder)


def lost_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-1.safetensors").unlink()


def lost_index(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")


def gguf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


def extra_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"multi_modal_projector.linear_9.weight": torch.ones(2)}, folder / WEIGHTS)


def lost_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["multi_modal_projector.linear_1.bias"]
    save_file(tensors, folder / WEIGHTS)


def failing_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an architecture that is not supported": (edit("config.json", model_type="bert"), r"'bert'.*supported: .*llava"),
    "code of its own": (remote_code, r"'strange'.*auto_map.*never run"),
    "a missing shard": (lost_shard, "model-1.safetensors named by .* but missing"),
    "a missing index": (lost_index, "model.safetensors.index.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no .*weights"),
    "no image token": (without_image_token, "no special token .<image>. with the id 259"),
    "several types": (half_of_it, "weights of several types .*float16"),
    "quantised": (edit("config.json", quantization_config={"quant_method": "awq"}), "quantised weights .awq."),
    "a chat template that fails": (failing_template, "chat template.*no such role"),
    "a tensor that no part takes": (extra_tensor, "1 unexpected: .*linear_9"),
    "a lost tensor": (lost_tensor, "1 missing: bridge.0.layers.0.bias"),
    "GGUF": (gguf, "GGUF"),
    "no image processor": (lambda folder: (folder / "processor_config.json").unlink(), "preprocessor_config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config.json that is cut off": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_imported_is_one_message(
    fault: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = FAULTS[fault]
    damage(folder)
    monkeypatch.chdir(folder.parent)
    assert main(["import", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and str(folder) in said
    assert re.search(message, said, re.DOTALL), said
    assert not list(folder.parent.glob("*.yaml"))


@pytest.mark.parametrize(
    ("damage", "message"), [(extra_tensor, "1 unexpected: .*linear_9"), (lost_tensor, "1 missing")]
)
def test_weights_are_read_strictly(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message):
        Engine.load(folder, "cpu")


@pytest.mark.parametrize("fault", ["code of its own", "an architecture that is not supported", "several types"])
def test_loading_is_refused_as_importing_is(fault: str, folder: Path) -> None:
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError) as caught:
        Engine.load(folder, "cpu")
    assert re.search(message, str(caught.value), re.DOTALL)


def test_code_in_a_folder_of_a_known_type_is_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit("config.json", auto_map={"AutoConfig": "evil.Config"})(folder)
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    assert read_source(folder).model.vision is not None
    assert "auto_map" in caplog.text


def test_rows_for_new_tokens(made: Path, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    head, table = "llm.model.lm_head.weight", "llm.model.model.embed_tokens.weight"
    more = ["model.llm.vocab_size=300", "model.llm.new_rows=mean"]
    found = Engine.load(made, "cpu", options=more).model.state_dict()
    assert all(
        found[k].shape[0] == 300 and torch.equal(found[k][: len(expected[k])], expected[k]) for k in (head, table)
    )
    llava.build_tied(tmp_path)
    found = Engine.load(tmp_path, "cpu", options=more).model.state_dict()  # it has a head of its own then
    assert torch.equal(found[head], found[table]) and len(found[head]) == 300


def test_what_the_image_processor_leaves_out_is_the_default_of_its_class(folder: Path) -> None:
    before = read_source(folder).model.image.options
    stated = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    kept = {key: stated[key] for key in ("image_processor_type", "size", "crop_size")}
    edit("processor_config.json", image_processor=...)(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(kept))
    assert read_source(folder).model.image.options == before
