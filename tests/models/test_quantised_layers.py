"""Layers with 4-bit and 8-bit weights: products and gradients are those of the matrix that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm.common.errors import ConfigError, WeightsError
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.quantized import bnb
from vlm.models.quantized.layers import KINDS, Nf4Linear, QuantisedLinear, RowInt8Linear, source_parameters
from vlm.models.quantized.llm import quantize_llm
from vlm.models.quantized.options import QuantizeOptions
from vlm.models.quantized.probe import probe

CPU = torch.device("cpu")
CASES = [
    ("nf4", {}),
    ("nf4", {"double": False}),
    ("nf4", {"block_size": 1024}),
    ("nf4", {"compute_dtype": "bf16"}),
    ("int8", {}),
]


def pair(mode: str, sizes: tuple[int, int] = (192, 96), **options) -> tuple[QuantisedLinear, nn.Linear]:
    """A filled layer, and a plain one with the matrix that it stands for."""
    torch.manual_seed(sum(sizes))
    floats = nn.Linear(*sizes)
    made = KINDS[mode](floats, QuantizeOptions(**options), CPU)
    made.fill()
    floats.requires_grad_(False)
    floats.weight.data = made.dense(torch.float32)
    return made, floats


@pytest.mark.parametrize("sizes", [(192, 96), (96, 33)])
@pytest.mark.parametrize(("mode", "options"), CASES)
def test_products_and_gradients_are_those_of_the_matrix(mode: str, options: dict, sizes: tuple[int, int]) -> None:
    made, floats = pair(mode, sizes, **options)
    inputs = torch.randn(3, 5, sizes[0], requires_grad=True)
    draw = torch.randn(3, 5, sizes[1])
    results = []
    for layer in (made, floats):
        out = layer(inputs)
        results.append((out, *torch.autograd.grad((out * draw).sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        assert found.dtype is torch.float32
        if options.get("compute_dtype") == "bf16":
            assert 0 < (found - expected).norm() / expected.norm() < 0.01
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("mode", "bound"), [("nf4", 0.1), ("int8", 0.01)])
def test_how_far_the_matrix_is_from_the_one_that_was_quantised(mode: str, bound: float) -> None:
    torch.manual_seed(0)
    floats = nn.Linear(256, 128)
    made = KINDS[mode](floats, QuantizeOptions(), CPU)
    made.fill(floats.weight.detach().clone())
    error = (made.dense(torch.float32) - floats.weight).norm() / floats.weight.norm()
    assert bound / 4 < error < bound
    bits = 8 * sum(t.nbytes for t in made.tensors().values()) / floats.weight.numel()
    assert bits == pytest.approx({"nf4": 4.13, "int8": 8.13}[mode], abs=0.01)


def test_blocks_fill_rows() -> None:
    """bitsandbytes reads blocks that pass the ends of rows wrongly on a CPU."""
    options = QuantizeOptions(block_size=256)
    assert [options.block_of(width) for width in (512, 11008, 192, 96, 48, 33)] == [256, 256, 64, 32, None, None]
    assert not Nf4Linear.takes(nn.Linear(48, 64), options) and RowInt8Linear.takes(nn.Linear(48, 64), options)
    made, floats = pair("nf4", (192, 64), block_size=256, double=False)
    packed = made.weight.reshape(-1, 1)
    order = torch.cat([packed >> 4, packed & 15], dim=1).reshape(64, 3, 64)
    code = bnb.library().functional.get_4bit_type("nf4", device="cpu")
    scales = made.scales.view(torch.float32).reshape(64, 3, 1)
    assert torch.equal((code[order.long()] * scales).reshape(64, 192), floats.weight)


def test_zeros_stay_zeros() -> None:
    for cls in KINDS.values():
        floats = nn.Linear(64, 32, bias=False)
        floats.weight.data.zero_()
        made = cls(floats, QuantizeOptions(double=False), CPU)
        made.fill()
        assert not made.dense(torch.float32).any()


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_autocast_and_recomputation(mode: str) -> None:
    made, floats = pair(mode)
    inputs = torch.randn(2, 4, 192, requires_grad=True)
    grads = []
    for run in (lambda x: made(x), lambda x: checkpoint(made, x, use_reentrant=False), lambda x: floats(x)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(inputs)
        assert out.dtype is torch.bfloat16
        grads.append(torch.autograd.grad(out.float().square().sum(), inputs)[0])
    assert torch.equal(grads[0], grads[1])
    assert (grads[0] - grads[2]).norm() / grads[2].norm() < 0.01


def test_nothing_is_kept_for_the_backward_pass_but_the_bytes() -> None:
    made, _ = pair("nf4")
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        made(torch.randn(2, 192, requires_grad=True))
    assert not kept


def test_lora_around_a_quantised_layer_has_the_gradients_of_one_around_the_matrix() -> None:
    made, floats = pair("nf4")
    grads = []
    for layer in (made, floats):
        model = nn.Sequential(nn.Linear(192, 96))
        inject_lora(model, LoraOptions(r=4, targets=["0"], dropout=0.0))
        lora = model[0]
        lora.base_layer = layer
        for number, matrix in enumerate((lora.lora_A["default"], lora.lora_B["default"])):
            matrix.weight.data = torch.randn(matrix.weight.shape, generator=torch.Generator().manual_seed(number))
        model(torch.ones(3, 192)).square().sum().backward()
        grads.append([lora.lora_A["default"].weight.grad, lora.lora_B["default"].weight.grad])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)
    assert made.weight.grad is None


def test_types_devices_and_copies_leave_the_bytes_alone() -> None:
    for made in (pair("nf4")[0], pair("nf4", double=False)[0], pair("int8")[0]):
        before = made.dense(torch.float32)
        other = copy.deepcopy(made)
        for change in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu")):
            change(other)
        if not isinstance(made, Nf4Linear) or not made.options.double:
            assert torch.equal(other.dense(torch.float32), before)
        assert made.scales.dtype is torch.uint8
        again = type(made)(nn.Linear(192, 96), made.options, CPU)
        again.take(made.tensors())
        assert torch.equal(again.dense(torch.float32), before)


def test_tensors_of_another_layer_are_refused() -> None:
    made = RowInt8Linear(nn.Linear(64, 32), QuantizeOptions(), CPU)
    with pytest.raises(WeightsError, match="quantised weights of another layer"):
        made.take(pair("int8")[0].tensors())
    with pytest.raises(ConfigError, match="works in the dtype of its weights"):
        pair("int8")[0](torch.zeros(2, 192, dtype=torch.int8))


def test_what_a_state_dict_and_a_count_see() -> None:
    floats = nn.Linear(192, 96)
    model = nn.Sequential(copy.deepcopy(floats))
    model[0] = Nf4Linear(floats, QuantizeOptions(), CPU)
    model[0].fill()
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias"] and state["0.weight"].is_meta
    assert state["0.weight"].shape == (96, 192)
    sizes = {name: parameter.numel() for name, parameter in source_parameters(model)}
    assert sizes == {"0.weight": 96 * 192, "0.bias": 96}
    assert torch.equal(model[0].probe, probe(floats.weight, (96, 192)))


def test_options(build) -> None:
    with pytest.raises(ConfigError, match="block_size is 48, allowed: 32, 64"):
        QuantizeOptions(block_size=48)
    model = build()
    model.llm.config.quantize_options = QuantizeOptions(skip=["layers.0.*", "*.down_proj"])
    quantize_llm(model.llm, "nf4", CPU)
    named = [name for name, module in model.llm.model.named_modules() if isinstance(module, QuantisedLinear)]
    assert named and not any(".layers.0." in name or "down_proj" in name or "lm_head" in name for name in named)
    model = build()
    model.llm.config.quantize_options = QuantizeOptions(skip=["layers.9.*"])
    with pytest.raises(ConfigError, match=r"skip: 'layers.9.\*' selects no linear layer of the decoder"):
        quantize_llm(model.llm, "nf4", CPU)
    model = build()
    model.llm.config.quantize_options = QuantizeOptions(skip=["*"])
    with pytest.raises(ConfigError, match="no linear layer to quantise .all of them are skipped"):
        quantize_llm(model.llm, "int8", CPU, training=True)
    model = build()
    model.llm.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"model.train trains the weights of layers.0.self_attn.q_proj and \d+ more"):
        quantize_llm(model.llm, "nf4", CPU)
