"""Files of OpenFlamingo and Multimodal-GPT: every form of them, and what is wrong with some."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.checkpoint.load import load_file, load_model
from vlm.common.errors import WeightsError
from vlm.common.types import IGNORE_INDEX, Example
from vlm.config.types import Config, ModelConfig
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT
from vlm.models.bridges.perceiver import Perceiver
from vlm.models.build import build_model
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.models.llm.hf import HFCausalLM
from vlm.models.trainable import select_trainable
from vlm.models.vision.clip import Clip
from vlm.models.vlm import VLM
from vlm.systems.mmgpt.checkpoint import MmgptExport, MmgptLora, read_content, settings
from vlm.systems.open_flamingo.checkpoint import OpenFlamingo
from vlm.testing import composition, part, weight

from ..golden.helpers_mmgpt import MmgptCase

CASE = Path(__file__).parents[1] / "golden" / "mmgpt" / "open"
LORA = "lora/mmgpt-lora-release-like.pt"
GATES = "lang_encoder.model.layers.1.gated_cross_attn_layer.ff_gate"


@pytest.fixture(scope="module")
def case() -> MmgptCase:
    return MmgptCase(CASE)


@pytest.fixture
def model(case: MmgptCase) -> VLM:
    """A model of one's own."""
    return copy.deepcopy(case.model)


@pytest.fixture
def bridge() -> dict[str, Tensor]:
    """The tensors of checkpoint.pt."""
    return torch.load(CASE / "OpenFlamingo-9B/checkpoint.pt", weights_only=True)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "file.pt")
        return tmp_path / "file.pt"

    return write


def lora_of(model: VLM) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}


def test_checkpoint_of_a_trainer(model, bridge, save) -> None:
    """Below ``model_state_dict`` with ``module.`` before every name; second names alone also do."""
    want = {n: p.detach().clone() for n, p in model.named_parameters()}
    second = {k: v for k, v in bridge.items() if ".gated_cross_attn_layer." not in k}
    for content in ({"model_state_dict": {f"module.{k}": v for k, v in bridge.items()}, "epoch": 1}, second):
        with torch.no_grad():
            for part in (model.bridge, model.inserts):
                for parameter in part.parameters():
                    parameter.add_(1)
        done = load_file(model, OpenFlamingo(), save(content))
        assert "llm.model.model.embed_tokens.weight" in done
        assert all(torch.equal(model.get_parameter(name), want[name]) for name in done)
        assert all(n in done for n in want if n.startswith(("bridge.", "inserts.")) and ".lora_" not in n)


def test_two_names_that_disagree(model, bridge, save) -> None:
    bridge[GATES] = bridge[GATES] + 1
    with pytest.raises(WeightsError, match=r"layers\.1\.ff_gate are two names of one tensor, but their values differ"):
        load_file(model, OpenFlamingo(), save(bridge))


def test_no_perceiver(model, bridge, save) -> None:
    rest = {k: v for k, v in bridge.items() if not k.startswith("perceiver.")}
    with pytest.raises(WeightsError, match=r"no perceiver\.\* among its \d+ tensors") as caught:
        load_file(model, OpenFlamingo(), save(rest))
    assert "checkpoint.pt" in str(caught.value)
    with pytest.raises(WeightsError, match="no named tensors, neither at the top nor below model_state_dict"):
        load_file(model, OpenFlamingo(), save({"epoch": 1}))


def test_incomplete_and_foreign(model, bridge, save) -> None:
    cut = {k: v for k, v in bridge.items() if "layers.3" not in k}
    with pytest.raises(WeightsError, match=r"11 missing: inserts\.0\.layers\.3\."):
        load_file(model, OpenFlamingo(), save(cut))
    with pytest.raises(WeightsError, match=r"1 unexpected: lang_encoder\.projector\.weight"):
        load_file(model, OpenFlamingo(), save(bridge | {"lang_encoder.projector.weight": torch.zeros(1)}))
    table = "lang_encoder.model.embed_tokens.weight"
    with pytest.raises(WeightsError, match=r"\(file \[450, 36\], model \[453, 36\]\)") as caught:
        load_file(model, OpenFlamingo(), save(bridge | {table: bridge[table][:450]}))
    assert "vocab_size" in str(caught.value)


def test_frame_embeddings_of_a_perceiver(case, model, bridge, save) -> None:
    """They have a place where the composition says so; positions among a text's media have none."""
    bridge["perceiver.frame_embs"] = torch.randn(3, 32)
    with pytest.raises(WeightsError, match=r"1 unexpected: perceiver\.frame_embs"):
        load_file(model, OpenFlamingo(), save(bridge))
    sizes = {k: case.config["perceiver"][k] for k in ("depth", "dim_head", "heads", "num_latents", "ff_mult")}
    model.bridge[0] = Perceiver(Perceiver.Config(**sizes, max_num_frames=3), 32, 36)
    load_file(model, OpenFlamingo(), save(bridge))
    assert torch.equal(model.bridge[0].frame_embs, bridge["perceiver.frame_embs"])
    with pytest.raises(WeightsError, match=r"1 unexpected: perceiver\.media_time_embs"):
        load_file(model, OpenFlamingo(), save(bridge | {"perceiver.media_time_embs": torch.zeros(2, 1, 32)}))


def test_composition_without_the_parts(model, bridge, save) -> None:
    model.inserts = torch.nn.ModuleList()
    with pytest.raises(WeightsError, match=r"has no gated_xattn in model\.inserts"):
        load_file(model, OpenFlamingo(), save(bridge))


def test_settings_objects_are_read_without_running_them() -> None:
    told = json.loads((CASE / "config.json").read_text())["tuning_config"]
    names = ("ConfigDict", "Config")
    for name in names:
        content = read_content(CASE / f"lora/two_tensors_mmengine_{name}.pt")
        assert settings(content) == told
        assert len(content["model_state_dict"]) == 2


def test_settings_fill_what_the_composition_leaves_open(case) -> None:
    cfg = case.composition().model
    want = cfg.llm.config.lora, cfg.inserts[0].config.lora
    cfg.llm.config.lora = cfg.inserts[0].config.lora = None
    done = MmgptLora().infer_config(cfg, CASE / LORA)
    assert (done.llm.config.lora, done.inserts[0].config.lora) == want
    assert cfg.llm.config.lora is None
    content = torch.load(CASE / LORA, weights_only=True)
    assert settings({"tuning_config": {"tuning_config": content["tuning_config"]}}) == content["tuning_config"]
    assert settings(content["model_state_dict"]) == {}


def test_lora_of_another_rank(case) -> None:
    cfg = case.composition()
    cfg.model.llm.config.lora.r = 8
    with pytest.raises(
        WeightsError, match=r"LoRA of rank 4 and alpha 4, the composition states model\.llm\.lora with "
    ):
        load_model(cfg, device="cpu")


def test_lora_that_fits_only_in_part(model, save) -> None:
    content = torch.load(CASE / LORA, weights_only=True)["model_state_dict"]
    some = {k: v for k, v in content.items() if "to_kv" not in k}
    with pytest.raises(WeightsError, match=r"4 missing: inserts\.0\.layers\.1\.attn\.to_kv\.lora_A"):
        load_file(model, MmgptLora(), save(some))
    wide = {k: torch.cat([v, v]) if ".lora_A." in k else torch.cat([v, v], 1) for k, v in content.items()}
    with pytest.raises(WeightsError, match="52 of another shape") as caught:
        load_file(model, MmgptLora(), save(wide))
    assert "rank of LoRA" in str(caught.value)


def test_export_reads_back(model, tmp_path) -> None:
    """Also what trains besides LoRA, under the names of the published trainer."""
    select_trainable(model, ["llm.lora", "inserts.lora", "*.ff_gate", "bridge.0.norm", "*.to_q.base_layer.weight"])
    names = MmgptExport().save(model, tmp_path / "out.pt")
    prefix = "lang_encoder.base_model.model.model.layers.1.gated_cross_attn_layer"
    assert {f"{prefix}.ff_gate", f"{prefix}.attn.to_q.weight", "perceiver.norm.bias"} <= set(names)
    want = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name in want:
            model.get_parameter(name).zero_()
    load_file(model, MmgptLora(), tmp_path / "out.pt")
    assert all(torch.equal(model.get_parameter(n), t) for n, t in want.items())
    said = settings(read_content(tmp_path / "out.pt"))
    assert (said["lora_r"], said["lora_alpha"], said["lora"]) == (4, 4, True)
    select_trainable(model, ["llm.lora", "vision.model.pre_layrnorm"])
    with pytest.raises(WeightsError, match=r"vision\.model\.pre_layrnorm\.weight trains, but files of Multimodal-GPT"):
        MmgptExport().save(model, tmp_path / "out.pt")


def test_head_rows_that_no_file_holds_are_zero(case) -> None:
    fresh = load_model(case.composition(), device="cpu")
    assert not fresh.llm.model.lm_head.weight[450:].any()
    assert fresh.llm.model.lm_head.weight[:450].abs().sum(1).all()
    assert fresh.llm.banned_ids == (450, 451, 452)
    assert fresh.llm.model.get_input_embeddings().weight[450:].abs().sum(1).all()


def test_without_a_lora_file_the_base_answers(case) -> None:
    """LoRA from scratch starts as no change, although the random start of what files fill is skipped."""
    fresh = case.load(lora="")
    started = dict(fresh.named_parameters())
    assert all(not p.any() for n, p in started.items() if ".lora_B." in n)
    assert all(p.std() > 0.01 for n, p in started.items() if ".lora_A." in n)
    mask = case.tensor("inter.attention_mask")
    batch = case.batch(case.tensor("inter.input_ids"), mask, None, case.tensor("inter.vision_x"))
    with torch.no_grad():
        got = fresh(batch, return_logits=True).logits[:, ::4, ::3]
    kept = mask[:, ::4] > 0
    want = case.tensor("inter.no_lora.logits")
    torch.testing.assert_close(got[kept], want[kept], rtol=0, atol=2e-5 * want.abs().max().item())


def test_engine_bans_what_has_no_row_of_the_head(case) -> None:
    engine = Engine(copy.deepcopy(case.model), case.processor)
    asked = Example([1, 11, 12, 13], [IGNORE_INDEX] * 4)
    options = CHAT.replace(do_sample=False, max_new_tokens=6, repetition_penalty=1.0)
    with torch.no_grad():
        engine.model.llm.model.lm_head.weight[450:].copy_(engine.model.llm.model.lm_head.weight[:450].sum(0) * 50)
        engine.model.llm.model.lm_head.weight[452].neg_()
    for beams in (1, 2):
        (ids,) = engine.generate_ids([asked], options.replace(num_beams=beams), stops=())
        assert ids
        assert max(ids) < 450
    engine.model.llm.banned_ids = ()
    (ids,) = engine.generate_ids([asked], options, stops=())
    assert max(ids) >= 450


def second_release(folder: Path) -> ModelConfig:
    """A GPT-NeoX with a gated block before every layer, and text that looks at the image before it."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": 40, **sizes}))
    clip = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 24}
    clip |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    return composition(
        vision=part("clip", Clip.Config(config=clip, keep_cls=False)),
        bridge=[part("perceiver", Perceiver.Config(depth=1, dim_head=8, heads=2, num_latents=3))],
        fusion=part("cross_attn", CrossAttention.Config(image_token_id=41, attend_previous=True)),
        inserts=[part("gated_xattn", GatedCrossAttention.Config(every=1, dim_head=8, heads=2))],
        llm=part("hf", HFCausalLM.Config(path=str(folder), vocab_size=43, banned_ids=[40, 41, 42])),
        train={},
        weights=[
            weight("random", into="vision"),
            weight("hf_llm", str(folder)),
            weight("openflamingo", folder / "checkpoint.pt"),
        ],
    )


@pytest.mark.parametrize("rows", [40, 48])
@pytest.mark.parametrize("head_saved", [False, True])
def test_names_of_the_second_release(tmp_path: Path, head_saved: bool, rows: int) -> None:
    """Another LLM family over its own folder: no second names, older names of the head, buffers left out.

    The folder's tables have fewer rows than the model, or more (padded ones).
    """
    parts = second_release(tmp_path)
    model = build_model(parts)
    state, folder = {}, {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    state["lang_encoder.gpt_neox.layers.0.decoder_layer.attention.rotary_emb.inv_freq"] = torch.zeros(2)
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        theirs = rest.removeprefix("model.").replace("lm_head", "embed_out")
        if part == "bridge":
            state[f"perceiver.{rest.removeprefix('0.')}"] = tensor
        elif part == "inserts":
            number, _, inner = rest.removeprefix("0.layers.").partition(".")
            state[f"lang_encoder.gpt_neox.layers.{number}.gated_cross_attn_layer.{inner}"] = tensor
        elif part == "llm":
            table = "embed_" in theirs
            folder[theirs] = torch.cat([tensor, tensor])[:rows].clone() if table else tensor
            if table and (head_saved or "embed_in" in theirs):
                state[f"lang_encoder.{theirs}"] = tensor
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "checkpoint.pt")
    torch.save(folder, tmp_path / "pytorch_model.bin")
    loaded = load_model(Config(model=parts), device="cpu").state_dict()
    differ = {n for n, t in model.state_dict().items() if not n.startswith("vision.") and not torch.equal(t, loaded[n])}
    assert differ == (set() if head_saved or rows > 43 else {"llm.model.lm_head.weight"})
    if differ:
        assert not loaded["llm.model.lm_head.weight"][40:].any()
