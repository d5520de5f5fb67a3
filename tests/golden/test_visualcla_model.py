"""Golden: every boundary of the model, losses, gradients and greedy answers of the published VisualCLA code.

Runs on every case folder (one with ``lora_model/`` and ``tensors.safetensors``) below ``<golden root>/visualcla``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.checkpoint.peft_adapter import read_adapter
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Features
from vlm.inference.decoding import Prompt, StopCriteria, decode, steps
from vlm.inference.generation import Generation
from vlm.models.trainable import select_trainable
from vlm.models.vlm import VLM
from vlm.systems.visualcla.checkpoint import EMBEDDINGS, HEAD, key_map

from .helpers_visualcla import VisualCLACase, asked

FEATURES: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
LOSS: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
GREEDY = Generation(do_sample=False, repetition_penalty=1.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        files = sorted(Path(root, "visualcla").rglob("tensors.safetensors"))
        folders = [f.parent for f in files if (f.parent / "lora_model").is_dir()]
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> VisualCLACase:
    torch.manual_seed(0)
    return VisualCLACase(request.param)


@pytest.fixture(params=["unmerged", "merged"])
def model(request: pytest.FixtureRequest, case: VisualCLACase) -> VLM:
    return getattr(case, request.param)


def train_batch(case: VisualCLACase) -> Batch:
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    return case.batch(*(case.tensor(f"train.{name}") for name in names))


def test_vision_and_bridge_boundaries(case: VisualCLACase, model: VLM) -> None:
    seen: dict[str, Tensor] = {}
    keep = lambda name: lambda _m, _i, out: seen.__setitem__(name, out)  # noqa: E731
    handles = [model.vision.model.encoder.register_forward_hook(keep("encoder"))]
    handles += [
        layer.register_forward_hook(keep(f"resampler_layer{i}")) for i, layer in enumerate(model.bridge[0].layers)
    ]
    pixels = case.tensor("train.pixel_values")
    with torch.no_grad():
        seen["vision_post_layernorm"] = model.vision(pixels[:, None]).tokens[:, 0]
        seen["image_embeds"] = model.encode(pixels[:, None]).tokens[:, 0]
    for handle in handles:
        handle.remove()
    seen["vision_last_hidden_state"] = seen.pop("encoder").last_hidden_state
    assert {f"resampler_layer{i}" for i in range(len(model.bridge[0].layers))} <= seen.keys()
    for name, got in seen.items():
        torch.testing.assert_close(got, case.tensor(f"train.unmerged.{name}"), **FEATURES)
    torch.testing.assert_close(model.bridge[0].query_tokens.detach(), case.tensor("resampler.queries"), rtol=0, atol=0)
    assert model.tokens_per_frame == case.queries


def test_post_layernorm_alone_and_bridge_from_recorded_features(case: VisualCLACase) -> None:
    model = case.unmerged
    with torch.no_grad():
        normed = model.vision.model.post_layernorm(case.tensor("train.unmerged.vision_last_hidden_state"))
        torch.testing.assert_close(normed, case.tensor("train.unmerged.vision_post_layernorm"), **FEATURES)
        value = Features(case.tensor("train.unmerged.vision_post_layernorm")[:, None])
        for part in model.bridge:
            value = part(value)
    torch.testing.assert_close(value.tokens[:, 0], case.tensor("train.unmerged.image_embeds"), **FEATURES)


def test_training_forward(case: VisualCLACase, model: VLM) -> None:
    batch, mask = train_batch(case), case.tensor("train.attention_mask")
    with torch.no_grad():
        inputs = model.prepare(batch)
        hidden = model.llm(inputs)
        out, fast = model(batch, return_logits=True), model(batch)
    size = inputs.segments.shape[1]
    assert torch.equal(inputs.attention_mask, mask[:, :size])
    real = mask[:, :size] > 0
    assert torch.equal(inputs.labels[real], case.tensor("train.labels")[:, :size][real])
    for got, name in ((inputs.inputs_embeds, "inputs_embeds"), (hidden, "text_last_hidden")):
        torch.testing.assert_close(got[real], case.tensor(f"train.unmerged.{name}")[:, :size][real], **FEATURES)
    positions = case.tensor("train.logit_positions")
    for kind in ("unmerged", "merged"):
        wanted = case.tensor(f"train.{kind}.logits_at_positions")
        for row in range(len(mask)):
            there = [i for i, p in enumerate(positions.tolist()) if mask[row, p]]
            assert there
            torch.testing.assert_close(out.logits[row, positions[there]], wanted[row, there], **FEATURES)
        for output in (out, fast):
            mean = output.loss_sum / output.num_tokens
            torch.testing.assert_close(mean, case.tensor(f"train.{kind}.loss"), **LOSS)


def test_merged_equals_unmerged(case: VisualCLACase) -> None:
    with torch.no_grad():
        ours, theirs = (m(train_batch(case), return_logits=True).logits for m in (case.unmerged, case.merged))
    torch.testing.assert_close(ours, theirs, **FEATURES)


def test_picture_after_the_head_of_the_text(case: VisualCLACase, model: VLM) -> None:
    """The older layout: begin id, both marks of the picture around its tokens, text."""
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    batch = case.batch(*(case.tensor(f"head.{name}") for name in names))
    with torch.no_grad():
        inputs = model.prepare(batch)
        hidden = model.llm(inputs)
        out = model(batch, return_logits=True)
    mask, size = case.tensor("head.text_attention_mask"), inputs.segments.shape[1]
    assert torch.equal(inputs.attention_mask, mask[:, :size])
    real = mask[:, :size] > 0
    assert torch.equal(inputs.labels[real], case.tensor("head.text_labels")[:, :size][real])
    for got, name in ((inputs.inputs_embeds, "inputs_embeds"), (hidden, "text_last_hidden")):
        torch.testing.assert_close(got[real], case.tensor(f"head.{name}")[:, :size][real], **FEATURES)
    for row in range(len(mask)):
        if size == mask.shape[1] and mask[row, -1]:
            torch.testing.assert_close(out.logits[row, -1], case.tensor("head.last_logits")[row], **FEATURES)
    torch.testing.assert_close(out.loss_sum / out.num_tokens, case.tensor("head.loss"), **LOSS)


def test_text_only(case: VisualCLACase, model: VLM) -> None:
    ids = case.tensor("textonly.input_ids")
    with torch.no_grad():
        out = model(case.batch(ids, torch.ones_like(ids)), return_logits=True)
    torch.testing.assert_close(out.logits, case.tensor("textonly.logits"), **FEATURES)


def test_gradients(case: VisualCLACase) -> None:
    model = case.unmerged
    norms = json.loads((case.folder / "grad_norms.json").read_text())
    names = key_map(model)
    model.zero_grad()
    output = model(train_batch(case))
    (output.loss_sum / output.num_tokens).backward()
    parameters = dict(model.named_parameters())
    grads = {}
    for key, norm in norms.items():
        ours = names.ours(key.removeprefix("base_model.model."))
        assert ours is not None, key
        if norm is None:
            assert "pooler" in ours
            continue
        grads[ours] = parameters[ours].grad
        # the gradient of a key's bias is zero in theory
        torch.testing.assert_close(
            grads[ours].norm().item(), norm, rtol=1e-4, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}"
        )
    model.zero_grad()
    training = {name for name, p in parameters.items() if p.requires_grad}
    assert set(grads) == training


def test_embeddings_and_head_are_the_adapters_and_never_tied(case: VisualCLACase, model: VLM) -> None:
    held = read_adapter(case.folder / "lora_model").tensors
    table, head = model.llm.model.get_input_embeddings().weight, model.llm.model.get_output_embeddings().weight
    assert torch.equal(table, held[EMBEDDINGS])
    assert torch.equal(head, held[HEAD])
    assert table is not head
    assert model.llm.model.config.vocab_size == model.llm.vocab_size == len(held[HEAD])
    assert model.llm.model.config.tie_word_embeddings is False


def test_without_the_trained_head_logits_are_far_away(case: VisualCLACase) -> None:
    """What a silently tied or untouched head would give."""
    model = copy.deepcopy(case.unmerged)
    with torch.no_grad():
        model.llm.model.lm_head.weight.copy_(model.llm.model.get_input_embeddings().weight)
        ids = case.tensor("textonly.input_ids")
        out = model(case.batch(ids, torch.ones_like(ids)), return_logits=True)
    assert (out.logits - case.tensor("textonly.logits")).abs().max() > 0.01


def prompt(case: VisualCLACase, model: VLM, ids: list[int]) -> Prompt:
    """Embeddings of a recorded prompt; the picture is the first of the training batch."""
    row = torch.tensor([ids])
    picture = case.tensor("preprocess.pixel_values")
    with torch.inference_mode():
        inputs = model.prepare(case.batch(row, torch.ones_like(row), None, picture)).left_padded()
    return Prompt(inputs.inputs_embeds, (inputs.segments > 0).long())


def ends(case: VisualCLACase, eos: int = 2) -> StopCriteria:
    return StopCriteria(eos=(eos,), bos=1, pad=case.config["special_ids"]["<pad>"])


def test_greedy_answers(case: VisualCLACase, model: VLM) -> None:
    """Ids of every recorded answer; the penalty and the n-grams count the dummy begin id and new tokens only."""
    assert case.case["generations"]
    for record in case.case["generations"]:
        generation = GREEDY.replace(**asked(record))
        ids = decode(model.llm.model, prompt(case, model, record["input_ids"]), generation, ends(case))
        assert [1, *ids[0]] == record["output_ids"], record["name"]


def test_first_scores_and_another_end(case: VisualCLACase, model: VLM) -> None:
    ids = case.tensor("generate.input_ids")[0].tolist()
    start = prompt(case, model, ids)
    with torch.inference_mode():
        logits = model.llm.model(inputs_embeds=start.embeds, attention_mask=start.mask).logits[:, -1]
    torch.testing.assert_close(logits, case.tensor("generate.first_step_scores"), **FEATURES)
    wanted = case.tensor("generate.output_ids")[0].tolist()
    again = [t for (t,) in steps(model.llm.model, start, GREEDY.replace(max_new_tokens=20), ends(case))]
    assert [1, *again][: len(wanted)] == wanted
    if "eos_fallback" in case.case:  # a recorded run that another end id stops
        fallback = case.case["eos_fallback"]
        limits, stop = GREEDY.replace(max_new_tokens=20), ends(case, fallback["eos_set_on_text_model"])
        assert [1, *decode(model.llm.model, start, limits, stop)[0]] == fallback["output_ids"]


def test_training_changes_what_is_declared_and_nothing_else(case: VisualCLACase) -> None:
    model = copy.deepcopy(case.unmerged)
    select_trainable(model, case.composition().model.train)
    model.train()
    assert not model.vision.model.pre_layrnorm.training
    assert model.bridge[0].layers[0].dropout.training
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(train_batch(case)).loss_sum.backward()
    optimiser.step()
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed <= training
    assert all(name.endswith("key.bias") for name in training - changed)  # a key's bias has no effect
    for part in ("vision.", "llm.", "bridge.0.", "bridge.1.", "llm.model.lm_head"):
        assert any(name.startswith(part) for name in changed), part
    assert not any(name.endswith("base_layer.weight") for name in changed)


def test_batch_helper_marks_pictures(case: VisualCLACase) -> None:
    batch = train_batch(case)
    assert (batch.ids == MEDIA_TOKEN).sum() == len(batch.media_row)
    assert (batch.labels[batch.ids == MEDIA_TOKEN] == IGNORE_INDEX).all()
