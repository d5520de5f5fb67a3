"""Lynx checkpoints in every form a published or third-party file may have, and one clear error for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.helpers_lynx import LynxCase
from vlm.checkpoint.load import load_model
from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import ConfigError, DataError, WeightsError
from vlm.common.types import Features
from vlm.config.types import Config
from vlm.models.bridges.frame_positions import FramePositions
from vlm.models.bridges.linear import Linear
from vlm.models.inserts.adapter import Adapter
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.models.vlm import VLM
from vlm.systems.lynx.checkpoint import LynxExport
from vlm.testing import part, weight


@pytest.fixture(scope="module")
def case() -> LynxCase:
    return LynxCase(Path(__file__).parents[1] / "golden" / "lynx" / "open")


@pytest.fixture(scope="module")
def published(case: LynxCase) -> dict[str, torch.Tensor]:
    tensors = torch.load(case.file("checkpoint"), weights_only=True)
    return {key.removeprefix("model."): tensor for key, tensor in tensors.items()}


@pytest.fixture
def load(case: LynxCase, tmp_path: Path):
    """Save a checkpoint and load the composition with it on top of vision file and LLM folder."""

    def run(content: Any, **changes: Any) -> VLM:
        torch.save(content, tmp_path / "file.pt")
        parts = case.parts(checkpoint=False, **changes)
        parts.weights.append(weight("lynx", tmp_path / "file.pt"))
        return load_model(Config(model=parts), device="cpu")

    return run


def without(tensors: dict[str, torch.Tensor], *families: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(families)}


def same(a: VLM, b: VLM, *skip: str) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return all(torch.equal(one[key], other[key]) for key in one if not key.startswith(skip))


def test_every_container_and_prefix(case, published, load) -> None:
    forms = [
        published,
        {"model": published},
        {f"module.{k}": t for k, t in published.items()},
        {"model": {f"module.model.{k}": t for k, t in published.items()}, "epoch": 3},
    ]
    assert all(same(load(form), case.model) for form in forms)


def test_trainable_part_alone(case, published, load) -> None:
    model = load({"model": without(published, "vision_encoder", "LLM.lm_head")})
    plain = case.load(checkpoint=False)
    assert same(model, case.model, "vision.")
    assert torch.equal(model.vision.vit.pos_embed, plain.vision.vit.pos_embed)
    assert not torch.equal(model.vision.vit.pos_embed, case.model.vision.vit.pos_embed)


def test_half_precision_file(case, published, load) -> None:
    model = load({key: tensor.half() for key, tensor in published.items()})
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, case.model.state_dict()[key], rtol=1e-3, atol=1e-3)


def test_tower_at_another_resolution_is_resized(case, published, load) -> None:
    from vlm.checkpoint.formats.eva import resize_positions

    table = published["vision_encoder.pos_embed"]
    model = load(published | {"vision_encoder.pos_embed": resize_positions(table, 1 + 7 * 7)})
    assert model.vision.vit.pos_embed.shape == table.shape
    torch.testing.assert_close(model.vision.vit.pos_embed[:, :1], table[:, :1])


def test_whole_llm_and_its_padding_row(case, published, load) -> None:
    words = {
        f"LLM.{k.removeprefix('llm.model.')}": t + 1 for k, t in case.model.state_dict().items() if k[:4] == "llm."
    }
    for name in ("LLM.model.embed_tokens.weight", "LLM.lm_head.weight"):
        words[name] = torch.cat([words[name], words[name].mean(0, keepdim=True)])
    words |= {f"LLM.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(3)}
    model = load(published | words)
    assert same(model, case.model, "llm.")
    assert torch.equal(model.llm.model.lm_head.weight, case.model.llm.model.lm_head.weight + 1)


def test_llm_with_lora_takes_its_tensors(case, published, load) -> None:
    llm = HFCausalLM.Config(path=str(case.file("llm")), lora=LoraOptions(r=2))
    words = {f"LLM.{k.removeprefix('llm.model.')}": t for k, t in case.model.state_dict().items() if k[:4] == "llm."}
    model = load(published | words, llm=part("hf", llm), train={"bridge.*": True, "inserts.*": True, "llm.lora": True})
    wanted = case.model.llm.model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(model.llm.model.model.layers[0].self_attn.q_proj.base_layer.weight, wanted)


def test_adapters_at_other_layers(case, published, load) -> None:
    apart = {k.replace("layers.2.output_adapter", "layers.1.output_adapter"): t for k, t in published.items()}
    with pytest.raises(
        WeightsError, match=r"(?s)unexpected.*missing.*adapters at layers 0, 1, the composition at 0, 2"
    ):
        load(apart)
    third = {k: t for k, t in published.items() if "layers.2.output_adapter" not in k}
    moved = load(third, inserts=[part("adapter", Adapter.Config(every=3, bottleneck=24))])
    assert list(moved.inserts[0].layers) == ["0"]


def test_composition_without_adapters(published, load) -> None:
    with pytest.raises(WeightsError, match="files of Lynx fill a bridge of perceiver and inserts of adapter"):
        load(published, inserts=[], train={"bridge.*": True})


def test_missing_family(published, load) -> None:
    with pytest.raises(WeightsError, match=r"missing: bridge\.1\."):
        load(without(published, "bridge."))
    with pytest.raises(WeightsError, match=r"2 unexpected: vision_encoder\.blocks\.0\.attn\.k_proj"):
        load(without(published, "vision_encoder.blocks.0.attn.q_proj.weight"))


def test_unknown_key(published, load) -> None:
    with pytest.raises(WeightsError, match="1 unexpected: itm_head.weight"):
        load(published | {"itm_head.weight": torch.ones(2, 2)})
    with pytest.raises(WeightsError, match="1 unexpected: bridge.extra"):
        load(published | {"bridge.extra": torch.ones(2)})


def test_foreign_file(load) -> None:
    with pytest.raises(WeightsError, match=r"not a Lynx checkpoint; its keys begin with llama_proj\.weight"):
        load({"llama_proj.weight": torch.ones(2, 2)})


def test_other_sizes(case, published, load) -> None:
    with pytest.raises(
        WeightsError, match=r"(?s)absolute_frame_pos_embed \(file \[3, 32\], model \[5, 32\]\).*num_frames"
    ):
        bridge = case.parts().bridge
        load(published, bridge=[part("frame_positions", FramePositions.Config(num_frames=5)), bridge[1]])
    with pytest.raises(WeightsError, match=r"(?s)bridge.latents \(file \[7, 48\], model \[6, 48\]\).*num_latents"):
        load(published | {"bridge.latents": torch.ones(7, 48)})


def test_images_only(case, published, load, caplog: pytest.LogCaptureFixture) -> None:
    model = load(published, bridge=case.parts().bridge[1:])
    assert "frame positions are left out" in caplog.text
    with torch.no_grad():
        got = model.encode(case.pixels("image")).tokens[:, 0]
    torch.testing.assert_close(got, case.tensors["image/bridge_out"], rtol=0, atol=1e-4)


def test_export_has_the_published_names_and_loads_back(case, published, load, tmp_path: Path) -> None:
    everything = {"bridge.*": True, "inserts.*": True, "vision.*": True}
    model = load(published, train=everything)
    names = LynxExport().save(model, tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(names) == set(written) == set(published)
    assert all(torch.equal(written[key], published[key]) for key in published)
    part_of_it = LynxExport().save(case.model, tmp_path / "part.pt")
    assert set(part_of_it) == set(without(published, "vision_encoder"))
    lora = HFCausalLM.Config(path=str(case.file("llm")), lora=LoraOptions(r=2))
    tuned = load(published, llm=part("hf", lora), train={"bridge.*": True, "llm.lora": True})
    with pytest.raises(WeightsError, match="lora_A.default.weight trains, but published Lynx checkpoints have no such"):
        LynxExport().save(tuned, tmp_path / "no.pt")


def test_run_folder_on_top(case, published, load, tmp_path: Path) -> None:
    """A run stores what trained by our names; it goes on top of the published file."""
    model = load(published)
    with torch.no_grad():
        for parameter in model.inserts.parameters():
            parameter.add_(1)
    tensors = {n: p.detach().contiguous() for n, p in model.named_parameters() if n.startswith("inserts.")}
    run = RunDir(tmp_path / "run")
    run.prepare()
    run.save(1, tensors, {}, {}, "")
    parts = case.parts(train={"inserts.*": True})
    parts.weights.append(weight("trained", tmp_path / "run"))
    again = load_model(Config(model=parts), device="cpu")
    assert same(again, model)


def test_inserts_from_a_file_of_their_own(case, tmp_path: Path) -> None:
    """Frozen inserts need a file, or the word that they may be random."""
    torch.save(case.model.inserts[0].state_dict(), tmp_path / "adapters.pt")
    parts = case.parts(checkpoint=False, train={"bridge.*": True})
    with pytest.raises(WeightsError, match=r"inserts\.0: frozen, but no file of model.weights fills it"):
        load_model(Config(model=parts), device="cpu")
    own = weight("state_dict", tmp_path / "adapters.pt", "inserts.0")
    parts.weights.append(own)
    model = load_model(Config(model=parts), device="cpu")
    assert same(model, case.model, "bridge.", "vision.")
    parts.weights[-1] = weight("random", into="inserts.0")
    assert not same(load_model(Config(model=parts), device="cpu"), case.model, "bridge.", "vision.")


def test_missing_checkpoint(case, tmp_path: Path) -> None:
    parts = case.parts(checkpoint=False)
    parts.weights.append(weight("lynx", tmp_path / "finetune_lynx.pt"))
    with pytest.raises(WeightsError, match=r"finetune_lynx\.pt does not exist"):
        load_model(Config(model=parts), device="cpu")


def test_resolution_and_frame_count(case) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)model\.vision.*image_size is 430, expected a multiple of patch_size 14.*420"
    ):
        case.shipped(image_res=430)
    with pytest.raises(ConfigError, match=r"pixels \[n, f, 3, 56, 56\], got \[1, 1, 3, 42, 42\]"):
        case.model.encode(torch.zeros(1, 1, 3, 42, 42))
    with pytest.raises(DataError, match="a video of 2 frames, but the model has positions for 3"):
        case.model.encode(torch.zeros(1, 2, 3, 56, 56))


def test_bridge_that_is_no_perceiver(case, published, load) -> None:
    with pytest.raises(WeightsError, match="fill a bridge of perceiver"):
        load(published, bridge=[part("linear", Linear.Config())])


@pytest.mark.parametrize(("how", "frames"), [("first", 2), ("interpolate", 5), ("interpolate", 2)])
def test_clips_of_other_lengths(how: str, frames: int) -> None:
    torch.manual_seed(0)
    bridge = FramePositions(FramePositions.Config(num_frames=3, other_counts=how), 4, 8)
    out = bridge(Features(torch.zeros(1, frames, 2, 4))).tokens
    assert torch.equal(out[0, :, 0], out[0, :, 1])
    torch.testing.assert_close(out[0, 0, 0], bridge.positions[0])
    if how == "interpolate":
        torch.testing.assert_close(out[0, -1, 0], bridge.positions[-1])
    if how == "first":
        with pytest.raises(DataError, match="a video of 4 frames"):
            bridge(Features(torch.zeros(1, 4, 2, 4)))
