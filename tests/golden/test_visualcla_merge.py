"""Golden: merging equals what the published script wrote, tensor by tensor; what is written loads and answers alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import read_adapter
from vlm.checkpoint.safe import read_tensors, shards
from vlm.checkpoint.stream import TensorReader
from vlm.cli.main import main
from vlm.systems.visualcla.merge import merge_visualcla

from .helpers_visualcla import VisualCLACase

PARTS = ("", "text_encoder", "vision_encoder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        folders = sorted(f.parent for f in Path(root, "visualcla").rglob("merged_model") if f.is_dir())
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> VisualCLACase:
    return VisualCLACase(request.param)


def folders(case: VisualCLACase) -> tuple[Path, Path, list[Path]]:
    return case.folder / "text_model", case.folder / "vision_model", [case.folder / "lora_model"]


def read_part(folder: Path) -> dict[str, Tensor]:
    if not folder.is_dir():  # the other spelling
        folder = folder.with_name("image_encoder")
    return {k: t for file in shards(folder) for k, t in read_tensors(file).items()}


def test_equals_the_published_script(case: VisualCLACase, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    text, vision, (delta,) = folders(case)
    asked = ["--text_model", text, "--vision_model", vision, "--lora_model", delta, "--output_dir", target]
    assert main(["weights", "merge", *map(str, asked), "--dtype", "fp32"]) == 0
    for part in PARTS:
        ours, theirs = read_part(target / part), read_part(case.folder / "merged_model" / part)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor), name
    assert texts(case.folder / "merged_model") <= texts(target)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        ours, theirs = (json.loads((f / name).read_text()) for f in (target, case.folder / "merged_model"))
        assert contents(ours) == contents(theirs), name
    ours, theirs = (recipe(f / "preprocessor_config.json") for f in (target, case.folder / "merged_model"))
    assert {k: theirs.get(k) for k in ours} == ours


def texts(folder: Path) -> set[str]:
    """Files of a merged folder other than weights, however these are sharded; the vision folder has two spellings."""
    names = {str(f.relative_to(folder)).replace("image_encoder/", "vision_encoder/") for f in folder.rglob("*.json")}
    return {name for name in names if not name.endswith(".index.json")}


def recipe(file: Path) -> dict[str, Any]:
    """A picture recipe with its sizes in the newer form; names of classes do not count."""
    said = {k: v for k, v in json.loads(file.read_text()).items() if not k.endswith("_type")}
    said["size"] = said["size"] if isinstance(said["size"], dict) else {"shortest_edge": said["size"]}
    side = said["crop_size"]
    return said | {"crop_size": side if isinstance(side, dict) else {"height": side, "width": side}}


def contents(value: Any) -> Any:
    """A JSON value with every token as its string: both spellings of a special token occur."""
    if isinstance(value, dict):
        return value["content"] if "content" in value else {k: contents(v) for k, v in value.items()}
    return [contents(v) for v in value] if isinstance(value, list) else value


def test_configurations_say_what_the_tensors_are(case: VisualCLACase, tmp_path: Path) -> None:
    merge_visualcla(*folders(case), tmp_path / "merged")
    config = {part: json.loads((tmp_path / "merged" / part / "config.json").read_text()) for part in PARTS}
    rows = len(read_part(tmp_path / "merged" / "text_encoder")["model.embed_tokens.weight"])
    assert config["text_encoder"]["vocab_size"] == config[""]["vocab_size"] == rows
    assert config["text_encoder"]["torch_dtype"] == "float16"
    assert config["vision_encoder"]["model_type"] == "clip_vision_model"
    theirs = json.loads((case.folder / "merged_model" / "config.json").read_text())
    assert {"model_type", "text_config", "vision_config", "use_visual_resampler"} <= config[""].keys() & theirs.keys()
    assert config[""]["visual_resampler_config"] == theirs["visual_resampler_config"]


def test_base_without_generation_options(case: VisualCLACase, tmp_path: Path) -> None:
    """Its ids are written, as transformers does."""
    text, vision, deltas = folders(case)
    base = tmp_path / "text"
    shutil.copytree(text, base, ignore=shutil.ignore_patterns("generation_config.json"))
    merge_visualcla(base, vision, deltas, tmp_path / "merged")
    said = json.loads((tmp_path / "merged" / "text_encoder" / "generation_config.json").read_text())
    config = json.loads((base / "config.json").read_text())
    assert (said["bos_token_id"], said["eos_token_id"]) == (config["bos_token_id"], config["eos_token_id"])


def test_half_precision_rounds_once(case: VisualCLACase, tmp_path: Path) -> None:
    """The base is rounded, the update formed in float32, the sum rounded; buffers stay as they are."""
    text, vision, (delta,) = folders(case)
    merge_visualcla(text, vision, [delta], tmp_path / "merged")
    adapter = read_adapter(delta)
    words, base = read_part(tmp_path / "merged" / "text_encoder"), read_part(text)
    for layer, (a, b) in adapter.lora.items():
        if not layer.startswith("text_model."):
            continue
        name = layer.removeprefix("text_model.") + ".weight"
        update = adapter.tensors[b] @ adapter.tensors[a] * (adapter.alpha / adapter.rank(layer))
        assert torch.equal(words[name], (base[name].half().float() + update).half()), name
    kept = {name for name, t in words.items() if t.dtype is torch.float32}
    assert kept == {name for name in base if name.endswith("inv_freq")}
    eyes = read_part(tmp_path / "merged" / "vision_encoder")
    assert {t.dtype for t in eyes.values()} <= {torch.float16, torch.int64}


def test_shards_and_several_deltas(case: VisualCLACase, tmp_path: Path) -> None:
    text, vision, (delta,) = folders(case)
    whole = merge_visualcla(text, vision, [delta], tmp_path / "whole", dtype=torch.float32)
    files = merge_visualcla(text, vision, [delta], tmp_path / "parts", dtype=torch.float32, shard_bytes=60_000)
    assert len(files) > len(whole)
    assert (tmp_path / "parts" / "text_encoder" / "pytorch_model.bin.index.json").is_file()
    for part in PARTS:
        one, many = read_part(tmp_path / "whole" / part), read_part(tmp_path / "parts" / part)
        assert one.keys() == many.keys()
        assert all(torch.equal(one[k], many[k]) for k in one)
    merge_visualcla(text, vision, [delta, delta], tmp_path / "twice", dtype=torch.float32)
    name = "model.layers.0.self_attn.q_proj.weight"
    base, once, twice = (
        read_part(f)[name] for f in (text, tmp_path / "whole/text_encoder", tmp_path / "twice/text_encoder")
    )
    changed = f"text_model.{name.removesuffix('.weight')}" in read_adapter(delta).lora
    torch.testing.assert_close(twice - once, once - base)
    assert changed != torch.equal(once, base)


def test_what_is_written_loads_and_computes_the_same(case: VisualCLACase, tmp_path: Path) -> None:
    merge_visualcla(*folders(case), tmp_path / "open" / "merged_model", dtype=torch.float32, shard_bytes=100_000)
    for name in ("config.json", "case.json", "tensors.safetensors"):
        (tmp_path / "open" / name).symlink_to(case.folder / name)
    ours = VisualCLACase(tmp_path / "open").merged
    ids = case.tensor("textonly.input_ids")
    with torch.no_grad():
        out = ours(case.batch(ids, torch.ones_like(ids)), return_logits=True)
    torch.testing.assert_close(out.logits, case.tensor("textonly.logits"), rtol=0, atol=1e-4)


def test_reader_lets_files_go(case: VisualCLACase) -> None:
    reader = TensorReader(shards(case.folder / "text_model"))
    name = next(iter(reader.facts))
    first = reader.read(name)
    first.zero_()
    assert reader.read(name).any()  # a copy was given
    reader.release()
    assert reader.read(name, torch.float16).dtype is torch.float16
