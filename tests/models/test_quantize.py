"""int8 and bf16 weights on a CPU: close to the float layers, never saved as if they were floats."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from vlm.checkpoint.load import load_model
from vlm.common.errors import ConfigError
from vlm.config.types import Part
from vlm.models.fusion.base import LLMInputs
from vlm.models.llm.hf import HFCausalLM
from vlm.models.llm.linear import bf16, int8
from vlm.models.llm.linear.bf16 import Bf16Linear
from vlm.models.llm.linear.frozen import wide
from vlm.models.llm.linear.int8 import Int8Linear
from vlm.models.llm.linear.joined import Joined, JoinedPart, find_siblings, one_layer
from vlm.models.lora import LoraOptions
from vlm.models.quantized import bnb
from vlm.models.quantized.llm import check_quantize, check_trains, plain_llm, quantize_llm
from vlm.models.quantized.short import quantize_images, replace_linears
from vlm.testing import LLAMA, composition, part, tiny_config, weight

CPU = torch.device("cpu")
RANDOM = [weight("random", into=into) for into in ("vision", "bridge", "llm")]
needs_bf16 = pytest.mark.skipif(bf16.unsupported() is not None, reason=f"bf16 on a CPU: {bf16.unsupported()}")
needs_vnni = pytest.mark.skipif(int8.unsupported() is not None, reason=f"int8 on a CPU: {int8.unsupported()}")


def quantised(mode: str = "int8", **options) -> Part:
    return part("hf", HFCausalLM.Config(config=dict(LLAMA), dtype="fp32", quantize=mode, **options))


def layer(rows: int, columns: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(rows)
    made = nn.Linear(columns, rows, bias=bias)
    made.weight.data.mul_(torch.rand(rows, 1) * 4)  # rows of different size, each with a scale of its own
    return made


@needs_vnni
@pytest.mark.parametrize("rows, columns, bias", [(64, 32, True), (129, 67, False), (576, 1536, True)])
def test_both_kernels_give_the_same_bits_close_to_the_float_layer(rows: int, columns: int, bias: bool) -> None:
    floats = layer(rows, columns, bias)
    inputs = torch.randn(2, 9, columns) * torch.rand(2, 9, 1) * 10
    plain, packed = (Int8Linear.of(floats, packed) for packed in (False, True))
    with torch.no_grad():
        expected, found = floats(inputs), plain(inputs)
        assert torch.equal(found, packed(inputs))
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)  # of each token
    assert error.max() < 0.03
    assert plain.weight.numel() == packed.weight.numel() == floats.weight.numel()


@needs_vnni
@pytest.mark.parametrize("packed", [False, True])
def test_a_token_does_not_depend_on_the_others(packed: bool) -> None:
    made = Int8Linear.of(layer(96, 80), packed)
    inputs = torch.randn(40, 80)
    inputs[7] *= 1e4  # which with one scale for all would leave nothing of the others
    inputs[9] = 0
    inputs[11, 3] = torch.nan
    with torch.no_grad():
        whole = made(inputs)
        for count in (1, 2, 5, 16, 33):
            assert torch.equal(made(inputs[:count]).nan_to_num(-1), whole[:count].nan_to_num(-1))
    assert torch.equal(whole[9], torch.zeros(96))
    assert whole[11].isnan().all() and whole[torch.arange(40) != 11].isfinite().all()
    assert made(inputs[:0]).shape == (0, 96)


@needs_vnni
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtypes(stored: torch.dtype) -> None:
    floats = layer(48, 32, bias=True).to(stored)
    made, inputs = Int8Linear.of(floats), torch.randn(3, 4, 32)
    assert made(inputs.to(stored)).dtype is stored
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(inputs).dtype is floats(inputs).dtype is torch.bfloat16
    torch.testing.assert_close(made(inputs.to(stored)).float(), floats(inputs.to(stored)).float(), rtol=0.1, atol=0.1)
    with pytest.raises(ConfigError, match=r"works in the dtype of its weights \(torch.int8\)"):
        made(inputs.to(torch.int8))


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_is_loaded_in_int8(caplog, examples, batched, dtype: torch.dtype) -> None:
    def loaded(llm: Part):
        torch.manual_seed(0)
        return load_model(tiny_config(llm=llm, train={"llm.lora": True}, weights=RANDOM), device="cpu", dtype=dtype)

    with caplog.at_level(logging.INFO):
        model = loaded(quantised(lora=LoraOptions(r=2)))
    plain = loaded(part("hf", HFCausalLM.Config(config=dict(LLAMA), lora=LoraOptions(r=2))))
    made = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert len(made) == 4 * LLAMA["num_hidden_layers"] + 1  # query, key and value are one, and so are gate and up
    assert "15 layers in int8 (head included)" in caplog.text
    assert type(model.bridge[1].proj) is nn.Linear  # only the LLM
    adapted = model.llm.model.model.layers[0].self_attn.q_proj
    assert isinstance(adapted.base_layer, JoinedPart) and type(adapted.lora_A["default"]) is nn.Linear
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in plain.named_parameters() if p.requires_grad
    }
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    for part_of in (model, plain):
        part_of.llm.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data.fill_(0.1)
    with torch.no_grad():
        found, expected = (m(batched(examples), return_logits=True).logits.float() for m in (model, plain))
    assert model.compute_dtype is dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1 * expected.abs().max().item())
    with pytest.raises(ConfigError, match="int8 weights of a CPU cannot be saved"):
        model.state_dict()


@needs_vnni
def test_each_layer_is_released_before_the_next_is_made(build) -> None:
    model, alive = build(), []

    def make(floats: nn.Linear) -> nn.Module:
        assert not [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(floats.weight))
        return Int8Linear.of(floats)

    assert replace_linears(model.llm.model, make, wide) == 15
    assert not wide(nn.Linear(64, 8))  # a router of 8 experts


@pytest.mark.parametrize(
    "broken, why",
    [
        ({"unsupported": lambda: "the CPU has no AVX512-VNNI"}, "no int8 because the CPU has no AVX512-VNNI"),
        ({"ERROR_BOUND": 1e-4}, "no int8 because torch's int8 kernel is off by 1% on 61 x 32 weights"),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_bf16_where_int8_cannot_be_computed(monkeypatch, caplog, broken: dict, why: str, fast: bool) -> None:
    if fast and bf16.unsupported() is not None:
        pytest.skip("bf16 is not fast here")
    if "ERROR_BOUND" in broken and int8.unsupported() is not None:
        pytest.skip("no kernel to test")
    for name, value in broken.items():
        monkeypatch.setattr(int8, name, value)
    if not fast:
        monkeypatch.setattr(bf16, "unsupported", lambda: "the CPU has no AVX512-BF16")
    model = load_model(tiny_config(llm=quantised(), weights=RANDOM), device="cpu")
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    told = [record.getMessage() for record in warned if record.name == "vlm.models.quantized.short"]
    assert told[0] == f"model.llm.quantize: {why}; the LLM is stored in bf16"
    if fast:
        assert sum(isinstance(m, Bf16Linear) for m in model.llm.modules()) == 4 * LLAMA["num_hidden_layers"] + 1
        assert len(told) == 1 and model.compute_dtype is torch.float32
    else:
        assert told[1] == "model.llm.quantize: bf16 is not faster here because the CPU has no AVX512-BF16"
        assert {p.dtype for p in model.llm.parameters()} == {torch.bfloat16}
        assert model.compute_dtype is torch.bfloat16


def test_a_kernel_that_torch_does_not_have(monkeypatch, build) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(int8.platform, "machine", lambda: "x86_64")
    assert "has no int8 kernels for a CPU" in int8.unsupported()

    def absent(*_: torch.Tensor) -> None:
        raise RuntimeError("not here\nmore")

    monkeypatch.setattr(torch, "_int_mm", absent, raising=False)
    assert int8.self_test([layer(32, 32)]) == "torch's int8 kernel fails (not here)"


def test_where_int8_is_asked_for(monkeypatch) -> None:
    cfg = composition(llm=quantised())
    check_trains(cfg, CPU)
    check_trains(plain_llm(cfg), CPU)
    with pytest.raises(ConfigError, match="bf16 on a CPU is for answers, a run cannot train through it"):
        check_trains(composition(llm=quantised("bf16")), CPU)
    monkeypatch.setattr(int8, "unsupported", lambda: None)
    check_quantize("int8", CPU)
    check_quantize("nf4", CPU)
    monkeypatch.setattr(int8, "unsupported", lambda: "the CPU has no AVX512-VNNI")
    with pytest.raises(ConfigError, match="int8 is not possible: the CPU has no AVX512-VNNI"):
        check_quantize("int8", CPU)
    monkeypatch.setattr(bnb, "missing", lambda: True)
    with pytest.raises(ConfigError, match="nf4 needs the package bitsandbytes"):
        check_quantize("nf4", CPU)


def test_what_is_refused_and_what_only_warns(build, caplog, monkeypatch) -> None:
    model = build()
    with pytest.raises(ConfigError, match="'int3' is unknown"):
        quantize_llm(model.llm, "int3", CPU)
    monkeypatch.setattr(bnb, "missing", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert quantize_llm(model.llm, "int8", torch.device("cuda")) is None
    assert "int8 ignored because bitsandbytes is not installed" in caplog.text
    with pytest.raises(ConfigError, match="needs the package bitsandbytes, which is not installed"):
        quantize_llm(model.llm, "nf4", CPU)


@needs_bf16
@pytest.mark.parametrize("bias", [False, True])
def test_packed_bf16_is_close_to_the_float_layer_for_any_number_of_tokens(bias: bool) -> None:
    floats = layer(129, 67, bias)
    made = Bf16Linear.of(floats)
    for rows in (1, 8, 200):
        inputs = torch.randn(2, rows, 67)
        with torch.no_grad():
            expected, found = floats(inputs), made(inputs)
        assert found.dtype is torch.float32 and found.shape == expected.shape
        assert (found - expected).norm() / expected.norm() < 0.01
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(inputs).dtype is made(inputs[:, :1]).dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="bf16 weights of a CPU cannot be saved"):
        made.state_dict()


@needs_bf16
def test_a_model_that_is_loaded_in_bf16(caplog, examples, batched) -> None:
    def loaded(llm: Part):
        torch.manual_seed(0)
        return load_model(tiny_config(llm=llm, weights=RANDOM), device="cpu")

    with caplog.at_level(logging.INFO):
        model = loaded(quantised("bf16"))
    assert "15 layers in bf16 (head included)" in caplog.text and model.compute_dtype is torch.float32
    plain = loaded(part("hf", HFCausalLM.Config(config=dict(LLAMA), dtype="fp32")))
    assert model.llm.model.model.norm.weight.dtype is torch.float32
    with torch.no_grad():
        found, expected = (m(batched(examples), return_logits=True).logits for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


@needs_vnni
def test_images_in_int8(caplog, examples, batched) -> None:
    def loaded(**options):
        torch.manual_seed(0)
        return load_model(tiny_config(llm=quantised(**options), train={"bridge.1": True}, weights=RANDOM), device="cpu")

    with caplog.at_level(logging.INFO):
        model, plain = loaded(quantize_images=True), loaded()
    assert "(of images)" in caplog.text and caplog.text.count("model.llm.quantize") == 3
    assert any(isinstance(m, Int8Linear) for m in model.vision.modules())
    assert any(isinstance(m, Int8Linear) for m in model.bridge[0].modules())
    assert type(model.bridge[1].proj) is nn.Linear and model.bridge[1].proj.weight.requires_grad
    assert not any(isinstance(m, Int8Linear) for m in plain.vision.modules())
    pixels = batched(examples).pixels
    with torch.no_grad():
        found, expected = (m.encode(pixels).tokens for m in (model, plain))
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


@needs_vnni
def test_images_that_cannot_be_tried_stay_in_float(monkeypatch, caplog, build) -> None:
    model = build()
    monkeypatch.setattr(type(model.vision), "forward", lambda *_: (_ for _ in ()).throw(ValueError("other pixels")))
    quantize_images(model)
    assert "no image of noise could be encoded; images are encoded as without it" in caplog.text
    assert not any(isinstance(m, Int8Linear) for m in model.modules())


@needs_vnni
def test_joined_layers_give_the_bits_of_each_alone() -> None:
    layers = [layer(64, 48), layer(32, 48, bias=True), layer(80, 48)]
    whole = Joined(Int8Linear.of(one_layer(layers)), [one.out_features for one in layers])
    parts = [JoinedPart(whole, number) for number in range(3)]
    alone = [Int8Linear.of(one, whole.layer.packed) for one in layers]
    one, other = torch.randn(2, 5, 48), torch.randn(3, 48)
    with torch.no_grad():
        calls = [(0, one), (1, one), (2, one), (0, other), (1, one), (2, other), (1, other), (0, one), (0, other)]
        for number, inputs in calls:  # in order, and as two threads at once would
            assert torch.equal(parts[number](inputs), alone[number](inputs))
        one.zero_()
        assert torch.equal(parts[0](one), alone[0](one))


@needs_vnni
@pytest.mark.parametrize(
    ("family", "joined"), [("gemma2", [3, 2] * 4), ("gptj", [3] * 4), ("gpt2", []), ("lfm2", [2, 3, 2, 2, 3, 2])]
)
def test_what_is_joined_in_other_families(monkeypatch, family: str, joined: list[int]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    from llm_families import small

    torch.manual_seed(0)
    sizes = {name: value for name, value in small(family).to_dict().items() if name != "model_type"}
    llm = HFCausalLM(HFCausalLM.Config(config={"model_type": family, **sizes}, dtype="fp32")).eval()
    ones, place = torch.ones(2, 6, dtype=torch.long), torch.arange(6).expand(2, 6)
    inputs = LLMInputs(torch.randn(2, 6, llm.hidden_size), ones, place, -100 * ones)
    with torch.no_grad():
        expected = llm.head(llm(inputs))
        quantize_llm(llm, "int8", CPU)
        found = llm.head(llm(inputs))
    assert [len(m.widths) for m in llm.modules() if isinstance(m, Joined)] == joined
    assert 0 < (found - expected).norm() / expected.norm() < 0.08


def test_who_reads_the_same_input() -> None:
    a, b, c, d, e = (nn.Linear(8, 8) for _ in range(5))
    x = torch.randn(2, 8)

    def run() -> None:
        y = a(x) + b(x)
        c(y)
        y += 1  # which d does not see as c did
        d(y)
        e(x)
        e(x)

    assert find_siblings(run, [a, b, c, d, e]) == [[a, b], [c], [d]]

    def fail() -> None:
        run()
        raise ValueError

    assert find_siblings(fail, [a, b]) == []
    assert not any(one._forward_pre_hooks for one in (a, b, c, d, e))
