"""Two LoRA runs of one base hold it once, and answer as each does alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.inference.engine import Engine
from vlm.models.quantize import replace_linears
from vlm.serve.http.models import load_models
from vlm.serve.sharing import own_weights, share_weights, weight_bytes

from .lora_runs import two_runs

ASKED = ["What is in the image?", "Describe it.", "###Human: boat"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    return two_runs(tmp_path_factory.mktemp("runs"))


def answers(engine: Engine) -> list[str]:
    return engine.generate(ASKED, max_new_tokens=12, do_sample=False)


def test_two_lora_runs_hold_one_base(runs: list[Path]) -> None:
    alone = [Engine.load(run, "cpu") for run in runs]
    expected = [answers(engine) for engine in alone]
    assert expected[0] != expected[1], "the runs learnt the same: this test could not fail"
    models = load_models({"a": str(runs[0]), "b": str(runs[1])}, lambda run: Engine.load(run, "cpu"))
    one, both = weight_bytes([alone[0].model]), weight_bytes([e.model for e in models.engines.values()])
    assert weight_bytes([e.model for e in alone]) == 2 * one
    assert both <= 1.1 * one
    assert [answers(engine) for engine in models.engines.values()] == expected


def test_an_edit_in_place_after_own_weights_changes_no_other(runs: list[Path]) -> None:
    from peft.tuners.lora import LoraLayer

    first, second = (Engine.load(run, "cpu") for run in runs)
    share_weights(second.model, [first.model])
    before = answers(first)
    own_weights(second.model)
    assert weight_bytes([first.model, second.model]) == 2 * weight_bytes([first.model])
    for module in second.model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    assert answers(first) == before


def test_replacing_layers_changes_no_other(runs: list[Path]) -> None:
    """What quantising does: every linear layer is replaced by one that is made of its weights."""
    first, second = (Engine.load(run, "cpu") for run in runs)
    share_weights(second.model, [first.model])
    before = answers(first)

    def half(layer: torch.nn.Linear) -> torch.nn.Linear:
        new = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        new.weight = torch.nn.Parameter(layer.weight.data / 2)
        return new

    assert replace_linears(second.model.llm.model.base_model, half)
    assert answers(second) != before
    assert answers(first) == before


def test_what_differs_in_a_bit_stays_apart() -> None:
    class One(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([value, float("nan")]))

    zero, minus, same, typed = One(0.0), One(-0.0), One(0.0), One(0.0).half()
    assert share_weights(minus, [zero]) == 0
    assert share_weights(typed, [zero]) == 0
    assert share_weights(same, [zero]) == 8  # NaN too, as its bits are the same
    assert str(minus.weight[0].item()) == "-0.0"
