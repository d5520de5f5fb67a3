"""Published files of VisualCLA in their variants, and one clear error for everything that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.checkpoint.load import load_model
from vlm.common.errors import ConfigError, WeightsError
from vlm.config.api import load_config
from vlm.models.vlm import VLM
from vlm.systems.visualcla.merge import merge_visualcla

OPEN = Path(__file__).parents[1] / "golden" / "visualcla" / "open"
DELTA = ("text_model", "vision_model", "lora_model")
Tensors = dict[str, Tensor]


class Folders:
    """Copies of the published folders that a test may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (*DELTA, "merged_model"):
            shutil.copytree(OPEN / name, root / name)

    def __getattr__(self, name: str) -> Path:
        return self.root / name

    def edit(self, file: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.root / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def change(self, file: str, change: Callable[[Tensors], Tensors | None]) -> None:
        path = self.root / file
        safe = path.suffix == ".safetensors"
        tensors = load_file(path) if safe else torch.load(path, weights_only=True)
        tensors = change(tensors) or tensors
        path.unlink()
        save_file(tensors, path) if safe else torch.save(tensors, path)

    def load(self, *options: str, merged: bool = False, **params: Any) -> VLM:
        names = {"visualcla_model": "merged_model"} if merged else {name: name for name in DELTA}
        model: dict[str, Any] = {"arch": "visualcla", "model_type": "7b_v0_1", "image_size": 28, "num_query_token": 5}
        model |= {key: str(self.root / name) for key, name in names.items()} | params
        return load_model(load_config({"model": model}, list(options), check="none"), device="cpu")

    def merge(self) -> list[Path]:
        return merge_visualcla(self.text_model, self.vision_model, [self.lora_model], self.root / "out")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return Folders(tmp_path_factory.mktemp("usual")).load().state_dict()


@pytest.fixture(scope="module")
def usual_merged(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return Folders(tmp_path_factory.mktemp("usual")).load(merged=True).state_dict()


def same(model: VLM, state: Tensors) -> None:
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(t, state[k]) for k, t in found.items())


def shard(folder: Path, source: str) -> None:
    """One weight file as three torch shards with an index."""
    file = folder / source
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    file.unlink()
    where = {}
    for number in range(3):
        name = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        part = {k: t.clone() for k, t in list(tensors.items())[number::3]}
        torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


def test_bare_vision_tower(folders: Folders, usual: Tensors) -> None:
    keep = lambda t: {k: v for k, v in t.items() if k.startswith("vision_model.")}  # noqa: E731
    folders.change("vision_model/model.safetensors", keep)
    config = json.loads((folders.vision_model / "config.json").read_text())["vision_config"]
    (folders.vision_model / "config.json").write_text(json.dumps(config))
    same(folders.load(), usual)
    # names without the outer level, as newer versions may write them
    bare = lambda t: {k.removeprefix("vision_model."): v for k, v in t.items()}  # noqa: E731
    folders.change("vision_model/model.safetensors", bare)
    same(folders.load(), usual)
    assert len(folders.merge()) == 3


def test_list_of_targets_and_other_container(folders: Folders, usual: Tensors) -> None:
    def as_list(config: dict[str, Any]) -> None:
        config["target_modules"] = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "o_proj"]
        config["target_modules"] += ["gate_proj", "up_proj", "down_proj"]
        config["task_type"] = None

    folders.edit("lora_model/adapter_config.json", as_list)
    tensors = torch.load(folders.lora_model / "adapter_model.bin", weights_only=True)
    (folders.lora_model / "adapter_model.bin").unlink()
    save_file({k: t.contiguous() for k, t in tensors.items()}, folders.lora_model / "adapter_model.safetensors")
    same(folders.load(), usual)


def test_lora_of_one_side_only(folders: Folders) -> None:
    folders.change("lora_model/adapter_model.bin", lambda t: {k: v for k, v in t.items() if ".vision_model." not in k})
    model = folders.load()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any(name.startswith("vision.") for name in names)
    assert any("lora" in name for name in names)


def test_config_json_of_the_delta_decides_what_shapes_cannot_say(folders: Folders) -> None:
    def other(config: dict[str, Any]) -> None:
        config["visual_resampler_config"] |= {"num_attention_heads": 4, "layer_norm_eps": 1e-6}

    folders.edit("lora_model/config.json", other)
    layer = folders.load().bridge[0].layers[0]
    assert layer.heads == 4
    assert layer.norm.eps == 1e-6
    folders.edit("lora_model/config.json", lambda c: c["visual_resampler_config"].pop("layer_norm_eps"))
    assert folders.load().bridge[0].layers[0].attention_norm.eps == 1e-12
    folders.edit("lora_model/adapter_config.json", lambda c: c.update(lora_alpha=12))
    model = folders.load()
    assert model.vision.config.lora.alpha == model.llm.config.lora.alpha == 12


def test_merged_folder_in_its_spellings_and_shards(folders: Folders, usual_merged: Tensors) -> None:
    (folders.merged_model / "vision_encoder").rename(folders.merged_model / "image_encoder")
    shard(folders.merged_model / "text_encoder", "pytorch_model.bin")
    same(folders.load(merged=True), usual_merged)
    (folders.merged_model / "image_encoder").rename(folders.merged_model / "image_encoer")
    top = torch.load(folders.merged_model / "pytorch_model.bin", weights_only=True)
    (folders.merged_model / "pytorch_model.bin").unlink()
    for number in (1, 2):
        torch.save(dict(list(top.items())[number - 1 :: 2]), folders.merged_model / f"pytorch_model-{number}.bin")
    same(folders.load(merged=True), usual_merged)
    no_buffers = lambda t: {k: v for k, v in t.items() if "position_ids" not in k}  # noqa: E731
    folders.change("merged_model/image_encoer/pytorch_model.bin", no_buffers)
    same(folders.load(merged=True), usual_merged)


def test_half_precision_files(folders: Folders, usual_merged: Tensors) -> None:
    half = lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}  # noqa: E731
    for part in ("", "text_encoder/", "vision_encoder/"):
        folders.change(f"merged_model/{part}pytorch_model.bin", half)
    found = folders.load(merged=True).state_dict()
    assert all(torch.equal(t, usual_merged[k].half().float()) for k, t in found.items())


def test_sharded_base(folders: Folders, usual: Tensors) -> None:
    shard(folders.text_model, "model.safetensors")
    same(folders.load(), usual)


@pytest.mark.parametrize("tied", [True, None])
def test_head_is_never_tied(folders: Folders, usual: Tensors, tied: bool | None) -> None:
    """A tied configuration, or none at all, changes nothing: embeddings and head are the delta's own."""
    for file in ("lora_model/config.json", "text_model/config.json"):
        folders.edit(file, lambda c: c.update(tie_word_embeddings=tied) if tied else c.pop("tie_word_embeddings", None))
    same(folders.load(), usual)


def test_base_that_has_the_final_vocabulary_already(folders: Folders, usual: Tensors) -> None:
    def grow(tensors: Tensors) -> Tensors:
        names = ("lm_head.weight", "model.embed_tokens.weight")
        return tensors | {n: torch.cat([tensors[n], torch.ones(4, 48)]) for n in names}

    folders.change("text_model/model.safetensors", grow)
    same(folders.load(), usual)
    folders.edit("text_model/config.json", lambda c: c.update(vocab_size=485))
    same(folders.load(), usual)


def test_from_scratch_grows_the_vocabulary(folders: Folders) -> None:
    sizes = ["model.llm.vocab_size=485"]
    bridge = {"name": "bert_resampler", "num_query_tokens": 5, "num_hidden_layers": 2}
    chain = [bridge | {"num_attention_heads": 2, "intermediate_size": 48}, {"name": "linear"}]
    model = folders.load(*sizes, lora_model="", bridge=chain)
    table = model.llm.model.get_input_embeddings().weight
    base = load_file(folders.text_model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(table[:481], base)
    assert table[481:].std().item() == pytest.approx(0.02, rel=0.5)
    assert not model.bridge[0].query_tokens.any()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for begin in ("vision.model.encoder.layers.0.self_attn.q_proj.lora_A", "llm.model.lm_head", "bridge.0.layers"):
        assert any(name.startswith(begin) for name in names), begin
    assert not any("base_layer" in name for name in names)


# ---- what does not fit


def test_base_of_another_vocabulary(folders: Folders) -> None:
    cut = lambda t: t | {n: t[n][:400].clone() for n in ("lm_head.weight", "model.embed_tokens.weight")}  # noqa: E731
    folders.change("text_model/model.safetensors", cut)
    message = r"text_model: the base LLM has a vocabulary of 400; .*lora_model was trained on one of 480 to 485"
    with pytest.raises(WeightsError, match=message):
        folders.load()
    with pytest.raises(WeightsError, match=message):
        folders.merge()


def test_base_of_another_width(folders: Folders) -> None:
    folders.edit("text_model/config.json", lambda c: c.update(hidden_size=32))
    with pytest.raises(
        WeightsError, match=r"text_model does not fit[\s\S]*config.json and the weights are of different"
    ):
        folders.load()
    folders.change("text_model/model.safetensors", lambda t: {k: v[..., :32].clone() for k, v in t.items()})
    with pytest.raises(
        WeightsError, match=r"lora_model: text_model\.\S+ is for a matrix \[\d+, 48\], the foundation's"
    ):
        folders.merge()


def test_delta_without_its_foundations(folders: Folders) -> None:
    weights = [{"format": "visualcla_delta", "path": str(folders.lora_model)}]
    with pytest.raises(WeightsError, match=r"llm, vision: frozen, but no file of model\.weights fills it"):
        folders.load(weights=weights)
    with pytest.raises(ConfigError, match=r"model\.text_model .*must be set: folder of Chinese-Alpaca"):
        model = {"arch": "visualcla", "model_type": "7b_v0_1", "lora_model": str(folders.lora_model)}
        load_config({"model": model}, check="none")


@pytest.mark.parametrize(
    "layer", ["text_model.model.layers.7.self_attn.q_proj", "vision_model.vision_model.encoder.fc1"]
)
def test_adapter_for_other_layers(folders: Folders, layer: str) -> None:
    extra = {f"base_model.model.{layer}.lora_A.weight": torch.ones(4, 48)}
    extra |= {f"base_model.model.{layer}.lora_B.weight": torch.ones(48, 4)}
    folders.change("lora_model/adapter_model.bin", lambda t: t | extra)
    with pytest.raises(
        WeightsError, match=r"lora_model: LoRA for layers that this composition does not have.*no linear"
    ):
        folders.load()
    with pytest.raises(WeightsError, match=rf"lora_model: {layer} is in neither foundation"):
        folders.merge()


def test_unknown_and_missing_tensors(folders: Folders) -> None:
    folders.change("lora_model/adapter_model.bin", lambda t: t | {"base_model.model.speech.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"1 unexpected: speech\.weight"):
        folders.load()
    with pytest.raises(WeightsError, match=r"speech\.weight is in neither foundation"):
        folders.merge()
    drop = lambda t: {k: v for k, v in t.items() if "speech" not in k and "query_emb" not in k}  # noqa: E731
    folders.change("lora_model/adapter_model.bin", drop)
    with pytest.raises(WeightsError, match=r"1 missing: bridge\.0\.query_tokens"):
        folders.load()


def test_adapter_of_another_rank(folders: Folders) -> None:
    folders.edit("lora_model/adapter_config.json", lambda c: c.update(r=8))
    with pytest.raises(WeightsError, match=r"has rank 4 \(lora_A \[4, 32\].*says r 8[\s\S]*fix: use adapter_config"):
        folders.load()
    folders.edit("lora_model/adapter_config.json", lambda c: c.update(r=4))
    lora = {"r": 2, "alpha": 8, "targets": ["q_proj"]}
    options = [f"model.llm.lora={json.dumps(lora)}"]
    with pytest.raises(WeightsError, match=r"lora_model does not fit[\s\S]*fix: the rank of LoRA"):
        folders.load(*options)
    name = "base_model.model.text_model.model.layers.0.mlp.up_proj.lora_B.weight"
    folders.change("lora_model/adapter_model.bin", lambda t: t | {name: t[name][:, :2].clone()})
    with pytest.raises(WeightsError, match=r"up_proj: lora_A \[4, 48\], lora_B \[80, 2\] do not fit together"):
        folders.load()
    folders.change("lora_model/adapter_model.bin", lambda t: {k: v for k, v in t.items() if k != name})
    with pytest.raises(WeightsError, match=r"up_proj has only one of lora_A and lora_B"):
        folders.load()


def test_adapter_with_two_ranks(folders: Folders) -> None:
    layer = "base_model.model.text_model.model.layers.0.mlp.up_proj.lora_"

    def narrow(tensors: Tensors) -> Tensors:
        a, b = f"{layer}A.weight", f"{layer}B.weight"
        return tensors | {a: tensors[a][:2].clone(), b: tensors[b][:, :2].clone()}

    folders.change("lora_model/adapter_model.bin", narrow)
    folders.edit("lora_model/adapter_config.json", lambda c: c.pop("r"))
    with pytest.raises(WeightsError, match=r"layers below text_model\. have ranks \[2, 4\]"):
        folders.load()


def test_head_of_another_vocabulary_than_the_embeddings(folders: Folders) -> None:
    name = "base_model.model.text_model.lm_head.weight"
    folders.change("lora_model/adapter_model.bin", lambda t: t | {name: t[name][:481].clone()})
    with pytest.raises(
        WeightsError, match=r"lm_head\.weight is for a matrix \[481, 48\], the foundation's is \[485, 48\]"
    ):
        folders.merge()
    with pytest.raises(WeightsError, match=r"lm_head\.weight \(file \[481, 48\], model \[485, 48\]\)"):
        folders.load()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING'; only plain LoRA"),
        ({"bias": "all"}, "bias 'all'; only plain LoRA"),
        ({"use_dora": True}, "use_dora True; only plain LoRA"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
    ],
)
def test_adapter_of_another_kind(folders: Folders, change: dict[str, Any], said: str) -> None:
    folders.edit("lora_model/adapter_config.json", lambda c: c.update(change))
    with pytest.raises(WeightsError, match=said):
        folders.load()


def test_missing_and_damaged_files(folders: Folders) -> None:
    (folders.lora_model / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"lora_model/config\.json: no such file"):
        folders.load()
    (folders.lora_model / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        folders.load()
    (folders.lora_model / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json: holds list, expected a mapping"):
        folders.load()
    (folders.lora_model / "adapter_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"lora_model: no adapter_model\.safetensors or adapter_model\.bin"):
        folders.load()
    (folders.lora_model / "adapter_config.json").unlink()
    with pytest.raises(WeightsError, match=r"adapter_config\.json: no such file"):
        folders.load()


def test_missing_and_damaged_shards(folders: Folders) -> None:
    part = folders.merged_model / "text_encoder"
    shard(part, "pytorch_model.bin")
    victim = part / "pytorch_model-00002-of-00003.bin"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"00002-of-00003\.bin: damaged or truncated"):
        folders.load(merged=True)
    victim.unlink()
    with pytest.raises(WeightsError, match=r"00002-of-00003\.bin named by .* but missing"):
        folders.load(merged=True)
    shutil.rmtree(part)
    with pytest.raises(WeightsError, match=r"no folder text_encoder|config\.json is missing"):
        folders.load(merged=True)


def test_code_in_an_adapter_is_refused(folders: Folders) -> None:
    torch.save({"base_model.model.x": Path("/")}, folders.lora_model / "adapter_model.bin")
    with pytest.raises(WeightsError, match="would run code"):
        folders.load()


def test_stated_sizes_and_the_file_must_agree(folders: Folders) -> None:
    with pytest.raises(
        WeightsError, match=r"num_query_tokens is 5, the composition states model\.bridge\.0\.num_query_t"
    ):
        folders.load(num_query_token=6)
    folders.edit("lora_model/config.json", lambda c: c.update(use_visual_resampler=False))
    with pytest.raises(WeightsError, match="use_visual_resampler is false"):
        folders.load()


def test_merge_refuses_what_it_would_spoil(folders: Folders) -> None:
    (folders.root / "out").mkdir()
    (folders.root / "out" / "x").touch()
    with pytest.raises(WeightsError, match=r"out: already holds files"):
        folders.merge()
    (folders.root / "out" / "x").unlink()
    only_lora = lambda t: {k: v for k, v in t.items() if "lora_" in k}  # noqa: E731
    folders.change("lora_model/adapter_model.bin", only_lora)
    with pytest.raises(WeightsError, match=r"holds neither visual_resampler\.\* nor image_projection_layer\.\*"):
        folders.merge()
    (folders.lora_model / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match=r"lora_model: no tokenizer\.model"):
        folders.merge()
    assert not any((folders.root / "out").iterdir())
    assert not list(folders.root.glob(".*"))  # nothing half written is left
