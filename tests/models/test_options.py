"""What trains, LoRA, quantisation, precision, and the frozen head's loss."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlm.common.errors import ConfigError
from vlm.config.types import Part
from vlm.models import loss
from vlm.models.build import _SkipRandom, build_model
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.loss import HeadLoss
from vlm.models.precision import autocast, parse_dtype, storage_dtype
from vlm.models.quantized.llm import quantize_llm
from vlm.models.quantized.short import replace_linears
from vlm.models.trainable import select_trainable, trainable_table
from vlm.testing import LLAMA, part


def with_lora(**options) -> Part:
    return part("hf", HFCausalLM.Config(config=dict(LLAMA), lora=LoraOptions(**options)))


def test_globs_and_table(build) -> None:
    model = build()
    assert select_trainable(model, ["bridge.1"]) == ["bridge.1.proj.weight", "bridge.1.proj.bias"]
    everything = select_trainable(model, {"*": True, "vision.*": False, "bridge.0.query_tokens": False})
    assert not any(n.startswith("vision") or n.endswith("query_tokens") for n in everything)
    assert any(n.startswith("llm") for n in everything)
    select_trainable(model, ["bridge.1.*"])
    lines = {line.split()[0]: line.split()[1:] for line in trainable_table(model).splitlines()}
    count = sum(p.numel() for p in model.bridge[1].parameters())
    assert lines["bridge.1"] == [str(count), str(count)]
    assert lines["vision"][1] == lines["llm"][1] == "0"
    assert int(lines["total"][0].replace(",", "")) == sum(p.numel() for p in model.parameters())


def test_glob_that_selects_nothing(build) -> None:
    with pytest.raises(ConfigError, match=r"'brige.1.\*' selects no parameter; nearest: .*bridge.1"):
        build(train=["brige.1.*"])
    with pytest.raises(ConfigError, match="'llm.lora' selects no parameter"):
        build(train=["llm.lora"])


def test_lora_keeps_class_and_starts_without_effect(build, examples, batched) -> None:
    plain = build()
    model = build(llm=with_lora(r=2, alpha=8), train=["llm.lora"])
    assert type(model.llm.model) is type(plain.llm.model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * LLAMA["num_hidden_layers"]
    assert all(n.endswith(("lora_A.default.weight", "lora_B.default.weight")) for n in names)
    state = {n.replace(".base_layer.", "."): p for n, p in model.state_dict().items() if ".lora_" not in n}
    plain.load_state_dict(state)
    batch = batched(examples)
    torch.testing.assert_close(model(batch).loss_sum, plain(batch).loss_sum)
    model(batch).loss_sum.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_lora_scale() -> None:
    block = nn.Sequential()
    block.add_module("q_proj", nn.Linear(4, 4, bias=False))
    inject_lora(block, LoraOptions(r=2, alpha=6, dropout=0.0, targets=["q_proj"]))
    layer = block.q_proj
    nn.init.ones_(layer.lora_B["default"].weight)
    x = torch.randn(3, 4)
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(block(x), layer.base_layer(x) + 3 * update)


def test_lora_on_layers_that_do_not_exist(build) -> None:
    with pytest.raises(ConfigError, match=r"no linear layer is called query \(there are: .*q_proj"):
        build(llm=with_lora(targets=["q_proj", "query"]))


def test_replacing_linear_layers_spares_lora_and_keeps_the_function(build, examples, batched) -> None:
    """The walk that quantisation uses, with a stand-in layer."""
    model = build(llm=with_lora(r=2))
    batch = batched(examples)
    before = model(batch).loss_sum

    class Stored(nn.Linear):
        pass

    def make(layer: nn.Linear) -> nn.Module:
        new = Stored(layer.in_features, layer.out_features, bias=False)
        new.weight = layer.weight
        return new

    count = replace_linears(model.llm.model.base_model, make)
    assert count == 7 * LLAMA["num_hidden_layers"]
    assert type(model.llm.model.model.layers[0].self_attn.q_proj.lora_A["default"]) is nn.Linear
    assert type(model.llm.model.lm_head) is nn.Linear
    assert model(batch).loss_sum.item() == before.item()


def test_8_bit_layers_of_bitsandbytes_replace_the_decoders(build, monkeypatch) -> None:
    """The wiring for answers on a GPU, with stand-ins for bitsandbytes' classes."""
    fake = ModuleType("bitsandbytes")
    fake.__spec__ = ModuleSpec("bitsandbytes", None)

    def keep(data: torch.Tensor, **options) -> nn.Parameter:
        return nn.Parameter(data, requires_grad=options["requires_grad"])

    def layer(columns: int, rows: int, bias: bool, **options) -> nn.Linear:
        made = nn.Linear(columns, rows, bias=bias)
        made.options = options
        return made

    fake.nn = SimpleNamespace(Linear8bitLt=layer, Int8Params=keep)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    model = build()
    assert quantize_llm(model.llm, "int8", torch.device("meta")) is None
    made = [m for m in model.llm.modules() if hasattr(m, "options")]
    assert len(made) == 7 * LLAMA["num_hidden_layers"]
    assert not any(m.weight.requires_grad for m in made)
    assert model.llm.model.lm_head.weight.device.type == "meta"


def test_precision_rules() -> None:
    assert storage_dtype("fp16", "cpu") is torch.float32
    assert storage_dtype("bf16", "cpu") is torch.bfloat16
    assert storage_dtype("fp16", "meta") is torch.float16
    assert storage_dtype("fp16", "meta", torch.bfloat16) is torch.bfloat16
    with pytest.raises(ConfigError, match="unknown precision 'half'"):
        parse_dtype("half")
    with autocast(torch.device("cpu"), torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=True), autocast(torch.device("cpu"), torch.float16):
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16


def test_storage_on_an_accelerator(compose) -> None:
    """fp16 by default: matrices of frozen parts; positions, norms and what trains stay float32."""
    model = build_model(compose(), device="meta")
    assert model.compute_dtype is torch.float16
    assert model.vision.vit.blocks[0].attn.qkv.weight.dtype is torch.float16
    assert model.vision.vit.patch_embed.proj.weight.dtype is torch.float16
    for kept in (model.vision.vit.pos_embed, model.vision.vit.blocks[0].attn.q_bias, model.vision.ln_vision.weight):
        assert kept.dtype is torch.float32
    assert model.bridge[0].qformer.encoder.layer[0].attention.attention.query.weight.dtype is torch.float16
    assert model.bridge[0].query_tokens.dtype is torch.float32
    assert model.llm.model.model.norm.weight.dtype is torch.float16
    assert model.bridge[1].proj.weight.dtype is torch.float32


def test_parts_that_a_file_fills_are_not_initialised(compose) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_model(compose(), uninitialised=["vision", "bridge.0", "bridge.1", "llm"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_head_loss_is_the_cross_entropy_of_all_logits(
    rows: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CPU_ELEMENTS", 2**16)
    torch.manual_seed(0)
    values = torch.randn(rows, 6), torch.randn(1000, 6), torch.randn(1000)
    targets = torch.randint(0, 1000, (rows,))
    own = [v.clone().requires_grad_() for v in values]
    other = [v.double().requires_grad_() for v in values]
    ours = HeadLoss.apply(*own, targets, smoothing)
    (2.5 * ours).backward()
    plain = F.cross_entropy(F.linear(*other), targets, reduction="sum", label_smoothing=smoothing)
    (2.5 * plain).backward()
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=0)
    for a, b in zip(own, other, strict=True):
        assert (a.grad - b.grad).norm() <= 2e-6 * b.grad.norm()
    with torch.no_grad():
        found = HeadLoss.apply(*own, targets, smoothing).double()
    torch.testing.assert_close(found, plain.detach(), rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="have been used"):
        ours.backward()


@pytest.mark.parametrize("trained", [True, False])
def test_head_loss_in_bfloat16_and_with_far_apart_logits(trained: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 8).mul_(60).requires_grad_(), torch.randn(300, 8).requires_grad_(trained)
    targets = torch.randint(0, 300, (40,))  # many of probability 0 in float32
    with torch.autocast("cpu", torch.bfloat16):
        ours = HeadLoss.apply(hidden, weight, None, targets)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(plain, [hidden, weight] if trained else [hidden])
    found = torch.autograd.grad(ours, [hidden, weight] if trained else [hidden])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is b.dtype and (a - b).norm() <= 2e-3 * b.norm()


def test_head_that_trains_gets_its_gradient(build, examples, batched) -> None:
    model = build(train=["llm.model.lm_head", "bridge.1"])
    model(batched(examples)).loss_sum.backward()
    assert model.llm.model.lm_head.weight.grad.abs().sum() > 0


def test_random_numbers_that_are_skipped_are_not_drawn_until_they_fit() -> None:
    table = torch.full((8, 8), 1e9)  # memory as it was allocated
    with _SkipRandom():
        torch.nn.init.trunc_normal_(table, std=0.02)
