"""Weight files: both containers, both directions, and one clear error for everything that does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlm.checkpoint.formats.eva import resize_positions
from vlm.checkpoint.formats.hf_llm import warn_of_types
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.load import load_model
from vlm.checkpoint.provenance import differences, fingerprint
from vlm.checkpoint.run_folder import RunDir
from vlm.checkpoint.safe import read_tensors, shards
from vlm.checkpoint.train_state import load_trainable_tensors, trainable_tensors
from vlm.common.errors import WeightsError
from vlm.config.types import Config, ModelConfig, WeightFile
from vlm.models.bridges.concat import Concat
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.build import build_model
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions, is_lora
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM
from vlm.systems.minigpt4.checkpoint import MiniGPT4Export
from vlm.testing import composition, part, weight

LLAMA = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}


class World:
    """Files of a tiny foundation under published names, and compositions that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.eva, self.blip, self.llm = folder / "eva.pth", folder / "blip2.pth", folder / "llm"
        torch.manual_seed(0)
        self.source = build_model(self.parts(llm_config=LLAMA))
        state = self.source.state_dict()
        vision = {k.removeprefix("vision.vit."): v.half() for k, v in state.items() if k.startswith("vision.vit.")}
        extra = {"blocks.2.norm1.weight": torch.ones(8), "head.weight": torch.ones(2, 8), "norm.bias": torch.ones(8)}
        torch.save(vision | extra, self.eva)
        torch.save({"model": self.blip_state(state)}, self.blip)
        self.llm.mkdir()
        (self.llm / "config.json").write_text(json.dumps(LLAMA))
        self.words = {k.removeprefix("llm.model."): v for k, v in state.items() if k.startswith("llm.")}
        save_file(
            self.words | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, self.llm / "model.safetensors"
        )

    @staticmethod
    def blip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published names of our Q-Former, with what must be ignored."""
        out = {"query_tokens": state["bridge.0.query_tokens"], "t5_proj.weight": torch.ones(2, 2)}
        for end in ("weight", "bias"):
            out[f"ln_vision.{end}"] = state[f"vision.ln_vision.{end}"]
            out[f"Qformer.bert.embeddings.LayerNorm.{end}"] = state[f"bridge.0.qformer.layernorm.{end}"]
        for key, value in state.items():
            if key.startswith("bridge.0.qformer.encoder."):
                name = key.removeprefix("bridge.0.qformer.").replace("attention.attention.", "attention.self.")
                out[f"Qformer.bert.{name}"] = value
        out["Qformer.bert.embeddings.position_ids"] = torch.arange(4)[None]
        out["Qformer.bert.encoder.layer.0.intermediate.dense.weight"] = torch.ones(2, 2)
        out["Qformer.bert.encoder.layer.0.output.dense.weight"] = torch.ones(2, 2)
        return out

    def parts(self, *, image_size: int = 28, lora: bool = False, qformer: bool = True, **options: Any) -> ModelConfig:
        llm_config = options.pop("llm_config", None)
        path = options.pop("llm_path", None if llm_config else str(self.llm))
        first = part("qformer", QFormer.Config(3, 16, 2, 2, 24)) if qformer else part("concat", Concat.Config())
        lora_options = LoraOptions(r=2, alpha=4) if lora else None
        defaults = {
            "vision": part("eva_vit", EvaViT.Config(image_size=image_size, embed_dim=8, depth=2, num_heads=2)),
            "bridge": [first, part("linear", Linear.Config())],
            "llm": part("hf", HFCausalLM.Config(path=path, config=llm_config, lora=lora_options)),
            "train": ["bridge.1", *(["llm.lora"] if lora else [])],
            "weights": self.files(qformer=qformer),
        }
        return composition(**(defaults | options))

    def files(self, *more: WeightFile, qformer: bool = True) -> list[WeightFile]:
        middle = [weight("blip2_qformer", self.blip)] if qformer else []
        return [weight("eva", self.eva), *middle, weight("hf_llm", self.llm), *more]

    def load(self, **options: Any) -> VLM:
        return load_model(Config(model=self.parts(**options)), device="cpu")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def frozen(model: VLM) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}


def test_foundations_arrive(world: World) -> None:
    loaded, source = frozen(world.load()), frozen(world.source)
    assert loaded.keys() == source.keys()
    for name, tensor in source.items():
        wanted = tensor.half().float() if name.startswith("vision.vit") else tensor
        assert torch.equal(loaded[name], wanted), name


def test_containers_are_interchangeable(world: World, tmp_path: Path) -> None:
    """The same names as .safetensors, as .pth with and without a section, and as a sharded folder of .bin."""
    before = frozen(world.load())
    flat = tmp_path / "eva.safetensors"
    save_file({k: v.contiguous() for k, v in torch.load(world.eva, weights_only=True).items()}, flat)
    blip = tmp_path / "blip.safetensors"
    save_file({k: v.contiguous() for k, v in torch.load(world.blip, weights_only=True)["model"].items()}, blip)
    (world.llm / "model.safetensors").unlink()
    names = list(world.words)
    index = {}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number}.bin"
        torch.save({k: world.words[k] for k in keys}, world.llm / file)
        index |= dict.fromkeys(keys, file)
    (world.llm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    after = frozen(
        world.load(weights=[weight("eva", flat), weight("blip2_qformer", blip), weight("hf_llm", world.llm)])
    )
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_matrices_of_several_types_are_named(caplog: pytest.LogCaptureFixture) -> None:
    named = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2).half(), "norm": torch.zeros(2).bfloat16()}
    warn_of_types(named, "the folder")
    assert "the folder: matrices of several types (a is float32, b is float16); all become" in caplog.text
    caplog.clear()
    warn_of_types({"a": torch.zeros(2, 2), "norm": torch.zeros(2).half()}, "the folder")
    assert not caplog.text


def test_older_torch_container(world: World) -> None:
    before = frozen(world.load())
    torch.save(torch.load(world.eva, weights_only=True), world.eva, _use_new_zipfile_serialization=False)
    after = frozen(world.load())
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(("lora", "kind"), [(False, "trained"), (True, "minigpt4")])
def test_export_and_import_are_inverse(world: World, tmp_path: Path, lora: bool, kind: str) -> None:
    model = world.load(lora=lora)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    path = tmp_path / "published.pth"
    written = MiniGPT4Export().save(model, path)
    assert {"llama_proj.weight", "llama_proj.bias"} <= set(written)
    assert all(".default" not in key for key in written)
    assert any("lora_A.weight" in key for key in written) == lora
    again = world.load(lora=lora, weights=world.files(weight(kind, path)))
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_unfrozen_foundations_keep_their_published_names(world: World, tmp_path: Path) -> None:
    model = world.load(train=["bridge.*", "vision.*"])
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    path = tmp_path / "all.pth"
    written = set(MiniGPT4Export().save(model, path))
    wanted = {"query_tokens", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight", "visual_encoder.cls_token"}
    assert wanted | {"ln_vision.weight", "llama_proj.bias"} <= written
    again = world.load(train=["bridge.*", "vision.*"], weights=world.files(weight("trained", path)))
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_projection_of_stage_one_starts_a_stage_that_trains_more(world: World, tmp_path: Path) -> None:
    MiniGPT4Export().save(world.load(), tmp_path / "one.pth")
    model = world.load(train=["bridge.*"], weights=world.files(weight("trained", tmp_path / "one.pth")))
    assert torch.equal(model.bridge[0].query_tokens, world.source.bridge[0].query_tokens)


def test_newer_lora_names_and_buffers(world: World, tmp_path: Path) -> None:
    model = world.load(lora=True)
    MiniGPT4Export().save(model, tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    newer = {k.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"): v
             for k, v in state.items()}  # fmt: skip
    newer["llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    torch.save({"model": newer, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "b.pth")
    again = world.load(lora=True, weights=world.files(weight("trained", tmp_path / "b.pth")))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["trained", "run_folder"])
def test_own_run_folder(world: World, tmp_path: Path, kind: str) -> None:
    model = world.load()
    tensors = {n: p.detach() + 1 for n, p in model.named_parameters() if p.requires_grad}
    run = RunDir(tmp_path / "run")
    run.prepare()
    saved = run.save(7, tensors, {}, {}, "")
    for path in (run.path, run.path / "last", saved, saved / "model.safetensors"):
        again = world.load(weights=world.files(weight(kind, path)))
        assert torch.equal(again.bridge[1].proj.weight, model.bridge[1].proj.weight + 1)


def test_tied_head_may_be_absent(world: World, tmp_path: Path) -> None:
    (world.llm / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": True}))
    save_file({k: v for k, v in world.words.items() if k != "lm_head.weight"}, world.llm / "model.safetensors")
    model = world.load()
    assert torch.equal(model.llm.model.lm_head.weight, world.words["model.embed_tokens.weight"])


def test_base_model_without_its_prefix(world: World) -> None:
    save_file({k.removeprefix("model."): v for k, v in world.words.items()}, world.llm / "model.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(world.load().llm.parameters(), world.source.llm.parameters(), strict=True)
    )


def test_positions_follow_the_image_size(world: World) -> None:
    model = world.load(image_size=56)
    table = torch.load(world.eva, weights_only=True)["pos_embed"].float()
    assert torch.equal(model.vision.vit.pos_embed, resize_positions(table, 17))
    assert torch.equal(model.vision.vit.pos_embed[:, 0], table[:, 0])
    flat = torch.ones(1, 5, 3)
    torch.testing.assert_close(resize_positions(flat, 10), torch.ones(1, 10, 3))
    assert resize_positions(flat, 5) is flat


def test_fingerprints(world: World) -> None:
    first, second = fingerprint(world.load()), fingerprint(world.load())
    assert first == second
    assert first["llm"]["vocab"] == LLAMA["vocab_size"]
    model = world.load()
    model.llm.model.model.embed_tokens.weight.data[0] += 1
    assert [line.split(":")[0] for line in differences(first, fingerprint(model))] == ["llm"]


def test_key_maps_go_both_ways() -> None:
    keys = KeyMap((("a.{i}.b.{rest}", "x.{i}.{rest}"), ("c", "d")), ignored=("*.buffer",))
    assert keys.rename(["a.0.b.w", "c", "z", "a.0.b.buffer"]) == ({"x.0.w": "a.0.b.w", "d": "c"}, ["z"])
    assert keys.theirs("x.3.w") == "a.3.b.w"
    assert keys.theirs("y") is None


class Code:
    def __reduce__(self) -> tuple:
        return (eval, ("1 + 1",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickle_with_code_is_refused(world: World) -> None:
    torch.save({"cls_token": Code()}, world.eva)
    with pytest.raises(WeightsError, match=r"eva.pth: this pickle would run code.*eval[\s\S]*fix: convert it"):
        world.load()
    world.eva.write_bytes(pickle.dumps(Code()))
    with pytest.raises(WeightsError, match="eva.pth"):
        world.load()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("file", ["eva", "blip", "llm"])
def test_truncated_files(world: World, file: str, share: float) -> None:
    path = {"eva": world.eva, "blip": world.blip, "llm": world.llm / "model.safetensors"}[file]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    found = "damaged or truncated" if share else r"not a weight file but an empty file \(0 bytes\)"
    with pytest.raises(WeightsError, match=rf"{path.name}: {found}[\s\S]*fix: download"):
        world.load()


def test_missing_files(world: World, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere.pth does not exist"):
        world.load(weights=[weight("eva", tmp_path / "nowhere.pth")])
    (world.llm / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no weights \(model.safetensors"):
        world.load()
    (world.llm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.bin"}}))
    with pytest.raises(WeightsError, match=r"part-1.bin named by pytorch_model.bin.index.json but missing"):
        shards(world.llm)
    (world.llm / "pytorch_model.bin.index.json").write_text("{")
    with pytest.raises(WeightsError, match="index.json: not JSON"):
        shards(world.llm)


def test_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "config": {}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"holds no named tensors \(found keys epoch, config\)"):
        read_tensors(tmp_path / "x.pth")


def test_unexpected_and_missing_keys_are_part(world: World) -> None:
    state = torch.load(world.eva, weights_only=True)
    state["blocks.0.gamma_1"] = state.pop("cls_token")
    torch.save(state, world.eva)
    with pytest.raises(WeightsError) as caught:
        world.load()
    text = str(caught.value)
    assert "eva.pth does not fit this composition" in text
    assert "1 unexpected: blocks.0.gamma_1" in text
    assert "1 missing: vision.vit.cls_token" in text


def test_projection_for_another_llm(world: World, tmp_path: Path) -> None:
    torch.save(
        {"model": {"llama_proj.weight": torch.ones(5120, 16), "llama_proj.bias": torch.ones(5120)}}, tmp_path / "c.pth"
    )
    with pytest.raises(
        WeightsError, match=r"c.pth does not fit[\s\S]*a 13B projection \(width 5120\); your LLM has width 16"
    ):
        world.load(weights=world.files(weight("trained", tmp_path / "c.pth")))


def test_checkpoint_of_another_family(world: World, tmp_path: Path) -> None:
    MiniGPT4Export().save(world.load(qformer=False), tmp_path / "concat.pth")
    with pytest.raises(WeightsError, match="takes 32 features per token; your bridge gives 16"):
        world.load(weights=world.files(weight("trained", tmp_path / "concat.pth")))
    MiniGPT4Export().save(world.load(lora=True), tmp_path / "lora.pth")
    with pytest.raises(
        WeightsError, match=r"8 unexpected: llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    ):
        world.load(weights=world.files(weight("trained", tmp_path / "lora.pth")))
    MiniGPT4Export().save(world.load(), tmp_path / "plain.pth")


def test_fresh_lora_over_an_earlier_stage(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Adapters that a file does not hold start without effect and are listed; nothing else is covered by that."""
    stage1 = world.load()
    MiniGPT4Export().save(stage1, tmp_path / "published.pth")
    own = {n: p.detach().clone() for n, p in stage1.named_parameters() if p.requires_grad}
    save_file(own, tmp_path / "model.safetensors")
    for file in ("published.pth", "model.safetensors"):
        earlier = weight("trained", tmp_path / file)
        with caplog.at_level("INFO", logger="vlm.checkpoint"):
            model = world.load(lora=True, weights=world.files(earlier))
        assert (
            "starts without effect (its update is zero): 2 x llm.model.model.layers.*.self_attn.q_proj" in caplog.text
        )
        adapters = {n for n, _ in model.named_parameters() if is_lora(n)}
        assert model.random == adapters
        assert not any(p.any() for n, p in model.named_parameters() if ".lora_B." in n)
        assert torch.equal(model.bridge[1].proj.weight, stage1.bridge[1].proj.weight)
        with pytest.raises(WeightsError, match="llm: frozen, but no file of model.weights fills it"):
            world.load(lora=True, weights=[*world.files()[:2], earlier])  # the LLM's file is forgotten
    half = {n: p for n, p in world.load(lora=True).named_parameters() if p.requires_grad and "lora_B" not in n}
    save_file({n: p.detach() for n, p in half.items()}, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match=r"4 missing: llm.model.*lora_B"):
        world.load(lora=True, weights=world.files(weight("trained", tmp_path / "half.safetensors")))
    layer0 = {
        n: p.detach() for n, p in world.load(lora=True).named_parameters() if p.requires_grad and ".1." not in n[4:]
    }
    layer0 |= {n: p.detach() for n, p in world.load(lora=True).named_parameters() if n.startswith("bridge.1")}
    save_file(layer0, tmp_path / "some.safetensors")
    model = world.load(lora=True, weights=world.files(weight("trained", tmp_path / "some.safetensors")))
    assert {n.split(".")[4] for n in model.random} == {"1"}


def test_what_answers_is_filled(world: World, tmp_path: Path) -> None:
    """Random parameters, declared or to be trained, are refused for answers; the run that may hold them is named."""
    for options in ({}, {"lora": True}, {"weights": [*world.files()[:2], weight("random", into="llm")]}):
        cfg = Config(model=world.parts(**options))
        cfg.run.output_dir = str(tmp_path / "nothing")
        with pytest.raises(
            WeightsError, match=r"bridge.1.*: random, no file[\s\S]*format: trained[\s\S]*--allow-random"
        ):
            load_model(cfg, device="cpu", allow_random=False)
        assert load_model(cfg, device="cpu").random
    run = RunDir(tmp_path / "run")
    model = world.load()
    run.prepare()
    run.save(1, trainable_tensors(model), {}, {}, "")
    cfg.run.output_dir = str(run.path)
    with pytest.raises(WeightsError, match=rf"fix: {run.path} holds a run: .*`vlm eval {run.path}`"):
        load_model(cfg, device="cpu", allow_random=False)
    done = Config(model=world.parts(weights=world.files(weight("trained", run.path))))
    assert not load_model(done, device="cpu", allow_random=False).random
    tied = Config(model=world.parts(llm_config=None, weights=done.model.weights))
    assert not load_model(tied, device="cpu", allow_random=False).random


def test_frozen_random_parts_are_stored(world: World, tmp_path: Path) -> None:
    """What a run declared random is in its checkpoint, so that the run folder alone answers as the run did."""
    bare = [*world.files()[1:], weight("random", into="vision")]
    model = world.load(weights=bare)
    stored = trainable_tensors(model)
    matrices = {n for n, p in model.named_parameters() if n.startswith("vision.vit.") and p.dim() > 1}
    assert matrices <= set(stored)
    run = RunDir(tmp_path / "run")
    run.prepare()
    run.save(1, stored, {}, {}, "")
    cfg = Config(model=world.parts(weights=[*bare, weight("run_folder", run.path)]))
    again = load_model(cfg, device="cpu", allow_random=False)
    assert all(torch.equal(p, dict(again.named_parameters())[n]) for n, p in model.named_parameters())
    other = world.load(weights=bare)
    load_trainable_tensors(other, stored, "run")
    assert all(torch.equal(p, dict(other.named_parameters())[n]) for n, p in model.named_parameters())


def test_random_names_a_part(world: World) -> None:
    for into, found in ((None, "into is missing"), ("llms", "into: llms is not a part")):
        with pytest.raises(WeightsError, match=rf"{found} \(parts: bridge.0, bridge.1, llm, vision\)"):
            world.load(weights=world.files(weight("random", into=into)))


def test_file_of_something_else(world: World, tmp_path: Path) -> None:
    for kind, listed in (("trained", "minigpt4 or run_folder"), ("minigpt4", "minigpt4"), ("run_folder", "run_folder")):
        with pytest.raises(WeightsError, match=rf"eva.pth: not a checkpoint of what a run trained \({listed}\)"):
            world.load(weights=world.files(weight(kind, world.eva)))
    with pytest.raises(WeightsError, match="fills a qformer, but the bridge chain has none"):
        world.load(qformer=False, weights=world.files())
    with pytest.raises(WeightsError, match="no checkpoint there"):
        world.load(weights=world.files(weight("trained", tmp_path)))


def test_llm_of_another_width_or_vocabulary(world: World) -> None:
    (world.llm / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 32}))
    with pytest.raises(WeightsError, match="the weights have vocabulary 31, config.json says 32"):
        world.load()
    (world.llm / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 32}))
    with pytest.raises(WeightsError, match="width differs"):
        world.load()


def test_frozen_part_without_a_file(world: World) -> None:
    with pytest.raises(WeightsError, match=r"llm: frozen, but no file of model.weights fills it"):
        world.load(weights=world.files()[:2])
    model = world.load(weights=[*world.files()[:2], weight("random", into="llm")])
    assert torch.isfinite(model.llm.model.lm_head.weight).all()


def test_published_layout_has_no_name_for_everything(world: World, tmp_path: Path) -> None:
    model = world.load(train=["llm.model.lm_head", "bridge.1"])
    with pytest.raises(WeightsError, match="llm.model.lm_head.weight trains, but published"):
        MiniGPT4Export().save(model, tmp_path / "x.pth")
