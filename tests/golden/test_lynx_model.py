"""Golden: every boundary of the model, losses and gradients of the published Lynx code.

Runs on every case folder below ``<golden root>/lynx``.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from vlm.common.types import Features
from vlm.processors.collate import collate

from .helpers_lynx import KINDS, LynxCase, parametrize

FEATURES = {"rtol": 0, "atol": 1e-4}
LOSS = {"rtol": 0, "atol": 1e-5}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> LynxCase:
    torch.manual_seed(0)
    return LynxCase(request.param)


def record_outputs(modules: dict[str, nn.Module]) -> tuple[dict[str, Tensor], list]:
    seen: dict[str, Tensor] = {}
    hooks = [m.register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(n, out)) for n, m in modules.items()]
    return seen, hooks


def test_vision_boundaries(case: LynxCase) -> None:
    vit = case.model.vision.vit
    seen, hooks = record_outputs({"image/patch_embeds": vit.patch_embed, "image/vision_block0": vit.blocks[0]})
    with torch.no_grad():
        seen["image/vision_embeds"] = case.model.vision(case.pixels("image")).tokens[:, 0]
        for hook in hooks:
            hook.remove()
        seen["video/frame_embeds_before_frame_pos"] = case.model.vision(case.pixels("video")).tokens
    seen["vision/pos_embed_after_interpolation"] = vit.pos_embed.detach()
    for name, got in seen.items():
        torch.testing.assert_close(got, case.tensors[name], **FEATURES)


def test_vision_file_alone(case: LynxCase) -> None:
    model = case.load(checkpoint=False)
    with torch.no_grad():
        tokens = model.vision(case.pixels("image")).tokens[:, 0]
    torch.testing.assert_close(tokens, case.tensors["image/vision_embeds_vision_file_only"], **FEATURES)
    wanted = case.tensors["vision/pos_embed_interpolated_from_vision_file"]
    torch.testing.assert_close(model.vision.vit.pos_embed.detach(), wanted, **FEATURES)


def test_bridge_boundaries(case: LynxCase) -> None:
    frames, perceiver = case.model.bridge
    inner: dict[str, nn.Module] = {}
    for index, (attention, forward) in enumerate(perceiver.layers):
        inner |= {f"{index}_attn": attention, f"{index}_ff": forward}
    seen, hooks = record_outputs(inner)
    with torch.no_grad():
        placed = frames(Features(case.tensors["video/frame_embeds_before_frame_pos"]))
        torch.testing.assert_close(placed.tokens, case.tensors["video/frame_embeds"], **FEATURES)
        clip = perceiver(placed).tokens[:, 0]
        picture = perceiver(frames(Features(case.tensors["image/vision_embeds"][:, None]))).tokens[:, 0]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(clip, case.tensors["video/bridge_out"], **FEATURES)
    torch.testing.assert_close(picture, case.tensors["image/bridge_out"], **FEATURES)
    latents = perceiver.latents.detach()
    for index in range(len(perceiver.layers)):
        latents = latents + seen[f"{index}_attn"]
        torch.testing.assert_close(latents, case.tensors[f"image/bridge_layer{index}_after_attn"], **FEATURES)
        latents = latents + seen[f"{index}_ff"]
        torch.testing.assert_close(latents, case.tensors[f"image/bridge_layer{index}_after_ff"], **FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_training_forward(case: LynxCase, kind: str) -> None:
    get = lambda key: case.tensors[f"train_{kind}/{key}"]  # noqa: E731
    batch, real = case.train_batch(kind), get("attention_mask").bool()
    layers = case.model.llm.layers()
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, n=f"hidden_in_layer{i}": seen.__setitem__(n, args[0]))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        inputs = case.model.prepare(batch)
        seen["hidden_after_final_norm"] = case.model.llm(inputs)
        for hook in hooks:
            hook.remove()
        full, fast = case.model(batch, return_logits=True), case.model(batch)
    assert torch.equal(inputs.attention_mask.bool(), real)
    assert torch.equal(inputs.labels[real], get("labels")[real])
    torch.testing.assert_close(inputs.inputs_embeds[real], get("inputs_embeds")[real], **FEATURES)
    compared = [name for name in seen if f"train_{kind}/{name}" in case.tensors]
    assert "hidden_after_final_norm" in compared and len(compared) >= len(layers)
    for name in compared:
        torch.testing.assert_close(seen[name][real], get(name)[real], **FEATURES)
    at = get("logits_positions")
    there = real[:, at]
    torch.testing.assert_close(full.logits[:, at][there], get("logits")[there], **FEATURES)
    for output in (full, fast):
        torch.testing.assert_close(output.loss_sum / output.num_tokens, get("loss"), **LOSS)


def test_new_pad_row(case: LynxCase) -> None:
    """The rows of a pad token that is added: means over the old ones."""
    if "pad_branch/new_input_row" not in case.tensors:
        pytest.skip("the case has none")
    rows = case.records["pad_branch"]["pad_token_id"] + 1
    model = case.load(checkpoint=False, llm=case.language_model(vocab_size=rows, new_rows="mean")).llm.model
    tables = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    for side, table in tables.items():
        torch.testing.assert_close(table.weight[-1].detach(), case.tensors[f"pad_branch/new_{side}_row"], **FEATURES)


def test_other_losses(case: LynxCase) -> None:
    """Left padding with positions from the mask, and pictures together with clips in one batch."""
    rows = {kind: case.train_batch(kind) for kind in KINDS}
    with torch.no_grad():
        outputs = [case.model(batch) for batch in rows.values()]
        left = case.model.prepare(rows["image"]).left_padded()
        keep = left.predicts()
        padded = case.model.llm.loss(case.model.llm(left)[keep], left.targets(keep)) / keep.sum()
        mixed = case.model(collate([*case.train_examples("video"), *case.train_examples("image")], 0))
    recorded = case.tensors["train_image/loss"]
    torch.testing.assert_close(padded, case.tensors.get("train_image_left_pad_mask_positions/loss", recorded), **LOSS)
    if "train_mixed/loss" not in case.tensors:
        return
    for some in (outputs, [mixed]):
        mean = sum(o.loss_sum for o in some) / sum(o.num_tokens for o in some)
        torch.testing.assert_close(mean, case.tensors["train_mixed/loss"], **LOSS)


def test_label_smoothing(case: LynxCase) -> None:
    found = [re.fullmatch(r"train_(image|video)_label_smoothing_([\d.]+)/loss", name) for name in case.tensors]
    for record in filter(None, found):
        model = case.load(llm=case.language_model(label_smoothing=float(record[2])))
        for return_logits in (True, False):
            output = model(case.train_batch(record[1]), return_logits=return_logits)
            mean = (output.loss_sum / output.num_tokens).detach()
            torch.testing.assert_close(mean, case.tensors[record[0]], **LOSS)


@pytest.mark.parametrize("name", ["train_image", "train_video", "train_video_frame_pos_trainable", "train_mixed"])
def test_gradients(case: LynxCase, name: str) -> None:
    """Frame positions have no gradient in the published code, except in the variant that repairs it."""
    if "grad_norms" not in case.records["train"].get(name, {}):
        pytest.skip("the case has none")
    model = case.model
    norms = case.records["train"][name]["grad_norms"]
    kinds = KINDS if name == "train_mixed" else (name.split("_")[1],)
    positions = model.bridge[0].positions
    positions.requires_grad_(norms["absolute_frame_pos_embed"] is not None)
    model.zero_grad()
    output = model(collate([e for kind in sorted(kinds, reverse=True) for e in case.train_examples(kind)], 0))
    (output.loss_sum / output.num_tokens).backward()
    parameters = dict(model.named_parameters())
    assert set(map(case.published, norms)) == {n for n in parameters if n.startswith(("bridge.", "inserts."))}
    for key, norm in norms.items():
        grad = parameters[case.published(key)].grad
        assert (grad is None) == (norm is None)
        if grad is not None:
            torch.testing.assert_close(grad.norm().item(), norm, rtol=1e-4, atol=1e-7)
        if f"{name}/grad/{key}" in case.tensors:
            want = case.tensors[f"{name}/grad/{key}"]
            assert (grad - want).norm() <= 1e-4 * want.norm()
    model.zero_grad()
    positions.requires_grad_(True)
    assert all(p.grad is None for n, p in parameters.items() if n.startswith(("vision.", "llm.")))
