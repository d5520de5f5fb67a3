"""Compiled decoder layers: the same numbers as eager ones, inserts and packed rows included, and a fallback."""

from __future__ import annotations

import functools
import logging
import shutil

import pytest
import torch
from torch import nn

from vlm.models.layer_hooks import Layout, hooks_of, laid_out
from vlm.models.llm.compiled import CompiledForward, compile_layers
from vlm.models.llm.hf import HFCausalLM
from vlm.testing import LLAMA


class Doubles:
    """An insert that changes what enters a layer and what leaves it."""

    needs_data = False
    reads = ()

    def before(self, module: nn.Module, hidden: torch.Tensor, data: object) -> torch.Tensor:
        return hidden + 0.5

    def after(self, module: nn.Module, hidden: torch.Tensor, data: object) -> torch.Tensor:
        return hidden * 2


@pytest.fixture
def llm() -> HFCausalLM:
    torch.manual_seed(0)
    made = HFCausalLM(HFCausalLM.Config(config=dict(LLAMA), dtype="fp32")).eval()
    hooks_of(made.layers()[0]).inserts.append((Doubles(), nn.Identity()))
    return made


def rows(llm: HFCausalLM, lengths: tuple[int, ...]) -> torch.Tensor:
    """Hidden states of a packed row of samples of these lengths."""
    torch.manual_seed(sum(lengths))
    longest, total = max(lengths), sum(lengths)
    scatter = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)])
    gather = torch.zeros(len(lengths) * longest, dtype=torch.long).index_copy(0, scatter, torch.arange(total))
    layout = Layout(gather, scatter, len(lengths), longest)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.inference_mode(), laid_out(layout):
        return llm.model.model(inputs_embeds=torch.randn(1, total, 32), position_ids=positions, use_cache=False)[0]


def check(llm: HFCausalLM) -> None:
    shapes = ((3, 5, 1), (7,), (2, 2, 2, 2))
    expected = [rows(llm, lengths) for lengths in shapes]
    assert compile_layers(llm) == 2 and compile_layers(llm) == 0
    for lengths, before in zip(shapes, expected, strict=True):
        torch.testing.assert_close(rows(llm, lengths), before, rtol=1e-4, atol=1e-5)
    forward = hooks_of(llm.layers()[0]).forward
    assert isinstance(forward, CompiledForward) and not forward.state


@pytest.mark.heavy
def test_traced_layers_compute_the_same(monkeypatch, llm) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    check(llm)


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_layers_compute_the_same(llm) -> None:
    check(llm)


def test_a_compiler_that_fails_leaves_the_layers_as_they_are(monkeypatch, llm, caplog) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    torch._dynamo.reset()
    expected = rows(llm, (3, 2))
    compile_layers(llm)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(rows(llm, (3, 2)), expected)
        assert torch.equal(rows(llm, (3, 2)), expected)
    told = [r.getMessage() for r in caplog.records if r.name == "vlm.models.llm.compiled"]
    assert len(told) == 1 and "the decoder layers are not compiled" in told[0]
