"""The composition: independence of padding and packing, modes, and the fast paths against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from vlm.common.types import IGNORE_INDEX
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.testing import LLAMA, part

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def step(model, batch):
    model.zero_grad()
    output = model(batch)
    output.loss_sum.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [True, False])
def test_batched_equals_single(build, examples, batched, packing) -> None:
    model = build(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), packing=packing)))
    whole, grads = step(model, batched(examples))
    singles = [step(model, batched([e])) for e in examples if e.num_targets]
    assert whole.num_tokens == sum(o.num_tokens for o, _ in singles) == sum(e.num_targets for e in examples)
    torch.testing.assert_close(whole.loss_sum, sum(o.loss_sum for o, _ in singles), **CLOSE)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, sum(g[name] for _, g in singles if name in g), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_packed_rows_equal_unpacked_rows(build, examples, batched, packed, packing) -> None:
    model = build(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), packing=packing)))
    rows = packed(examples, 40)
    assert rows.segments.max() > 1
    assert len(rows.ids) < len(examples)
    plain, plain_grads = step(model, batched(examples))
    dense, dense_grads = step(model, rows)
    assert plain.num_tokens == dense.num_tokens
    torch.testing.assert_close(plain.loss_sum, dense.loss_sum, **CLOSE)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(grad, dense_grads[name], rtol=1e-4, atol=1e-5)


def test_supervised_loss_equals_full_cross_entropy(build, examples, batched) -> None:
    """Loss and gradients without most logits are those of all logits."""
    model = build()
    batch = batched(examples)
    fast, grads = step(model, batch)
    model.zero_grad()
    full = model(batch, return_logits=True)
    labels = full.labels[:, 1:]
    loss = F.cross_entropy(
        full.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    loss.backward()
    torch.testing.assert_close(fast.loss_sum, loss.detach(), **CLOSE)
    torch.testing.assert_close(full.loss_sum, loss, **CLOSE)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in grads)
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-4, atol=1e-5)


def test_frozen_parts_stay_in_eval_mode(build) -> None:
    model = build(
        llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), lora=LoraOptions(r=2))), train=["bridge.1", "llm.lora"]
    )
    model.train()
    modes = dict(model.named_modules())
    assert not any(m.training for n, m in modes.items() if n.startswith(("vision", "bridge.0")))
    assert modes["bridge.1"].training
    first = modes["llm.model.model.layers.0.self_attn.q_proj"]
    assert first.lora_dropout["default"].training
    assert not first.base_layer.training
    assert not modes["llm.model.model.layers.0.mlp"].training
    model.eval()
    assert not any(m.training for m in model.modules())


def test_frozen_dropout_does_not_act(build, examples, batched) -> None:
    model = build().train()
    batch = batched(examples)
    assert model.bridge[0].qformer.dropout.p > 0
    assert model(batch).loss_sum.item() == model(batch).loss_sum.item()


def test_only_what_trains_gets_gradients(build, examples, batched) -> None:
    model = build(train={"vision.*": True, "vision.ln_vision": False, "bridge.1": True})
    _, grads = step(model, batched(examples))
    assert {"bridge.1.proj.weight", "vision.vit.cls_token"} <= set(grads)
    assert not any(n.startswith(("llm", "bridge.0", "vision.ln_vision")) for n in grads)


def test_checkpointing_changes_nothing(build, examples, batched) -> None:
    plain, grads = step(build(), batched(examples))
    saving = build(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), checkpointing=True)))
    output, again = step(saving, batched(examples))
    assert output.loss_sum.item() == plain.loss_sum.item()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, again[name], rtol=0, atol=0)


def test_other_wrappers_of_the_layers_recompute_the_same(build, examples, batched) -> None:
    """Checkpointing put around the layers from outside, as the runner does."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    plain, grads = step(build(), batched(examples))
    model = build()
    for layer in model.llm.layers():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    output, again = step(model, batched(examples))
    assert output.loss_sum.item() == plain.loss_sum.item()
    assert all(torch.equal(grad, again[name]) for name, grad in grads.items())


def test_a_copy_is_a_model_of_its_own(build, examples, batched) -> None:
    model = build()
    twin = copy.deepcopy(model)
    before = model(batched(examples)).loss_sum.item()
    assert twin(batched(examples)).loss_sum.item() == before
    twin.llm.model.model.layers[-1].mlp.down_proj.weight.data.zero_()
    assert twin(batched(examples)).loss_sum.item() != before
    assert model(batched(examples)).loss_sum.item() == before


def test_bfloat16_on_the_cpu(compose, examples, batched) -> None:
    from vlm.models.build import build_model

    torch.manual_seed(0)
    exact = build_model(compose())
    model = build_model(compose(), dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    assert model.llm.model.lm_head.weight.dtype == model.vision.vit.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert model.bridge[1].proj.weight.dtype == model.vision.vit.pos_embed.dtype == torch.float32
    with torch.no_grad():
        wanted = exact(batched(examples)).loss_sum
    output, grads = step(model, batched(examples))
    assert output.loss_sum.dtype == torch.float32
    torch.testing.assert_close(output.loss_sum, wanted, rtol=0.02, atol=0)
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_encoder_in_half_with_a_full_precision_llm(build, compose, examples, batched) -> None:
    wanted = build()(batched(examples)).loss_sum
    parts = compose(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), dtype="fp32")))
    parts.vision.config.precision = "bf16"
    torch.manual_seed(0)
    from vlm.models.build import build_model

    model = build_model(parts)
    assert model.vision.vit.blocks[0].mlp.fc1.weight.dtype == model.vision_dtype == torch.bfloat16
    assert model.compute_dtype == torch.float32
    got = model(batched(examples)).loss_sum
    got.backward()
    torch.testing.assert_close(got, wanted, rtol=0.01, atol=0)


def test_text_only_composition(compose, example, batched) -> None:
    from vlm.models.build import build_model

    model = build_model(compose(vision=None, bridge=[], train={"llm.model.lm_head": True}))
    output, grads = step(model, batched([example(2, 2, 3, media=0), example(1, 0, 2, media=0, seed=1)]))
    assert output.num_tokens == 5
    assert list(grads) == ["llm.model.lm_head.weight"]


def test_precomputed_features_skip_the_encoder(build, examples, batched) -> None:
    model = build()
    batch = batched(examples)
    visual = model.encode(batch.pixels)
    assert visual.tokens.shape == (len(batch.pixels), 1, model.tokens_per_frame, model.llm.hidden_size)
    model.vision = None
    assert model.prepare(batch, visual).inputs_embeds.shape[0] == len(examples)
