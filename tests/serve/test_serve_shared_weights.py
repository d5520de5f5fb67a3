"""Two LoRA runs of one base hold it once, and answer as each does alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.inference.engine import Engine
from vlm.models.llm.linear import int8
from vlm.models.quantized.short import replace_linears
from vlm.serve.http.models import load_beside, load_models
from vlm.serve.sharing import own_weights, share_weights, weight_bytes

from .lora_runs import NORM, lora_run

ASKED = ["What is in the image?", "Describe it.", "###Human: boat"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    return [lora_run(folder, "a", seed=1), lora_run(folder, "b", seed=2)]


def is_shared(name: str) -> bool:
    """Whether a parameter comes from a file of the foundations, not from one of a run."""
    return ".lora_" not in name and not name.startswith("bridge.1.")


def answers(engine: Engine) -> list[str]:
    return engine.generate(ASKED, max_new_tokens=12, do_sample=False)


def test_two_lora_runs_hold_one_base(runs: list[Path]) -> None:
    alone = [Engine.load(run, "cpu") for run in runs]
    expected = [answers(engine) for engine in alone]
    assert expected[0] != expected[1], "the runs learnt the same: this test could not fail"
    models = load_models({"a": str(runs[0]), "b": str(runs[1])}, lambda run, others: load_beside(run, others, "cpu"))
    one, both = weight_bytes([alone[0].model]), weight_bytes([e.model for e in models.engines.values()])
    assert weight_bytes([e.model for e in alone]) == 2 * one
    assert both <= 1.1 * one
    assert [answers(engine) for engine in models.engines.values()] == expected


def test_what_the_same_file_filled_is_not_read_into_memory_again(runs: list[Path]) -> None:
    """Sharing happens while the second model is loaded: it never has a copy that is then dropped."""
    first = Engine.load(runs[0], "cpu")
    second = load_beside(str(runs[1]), [first], "cpu")
    one = weight_bytes([first.model])
    assert weight_bytes([first.model, second.model]) <= 1.1 * one
    mine, theirs = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert all((mine[name].data_ptr() == theirs[name].data_ptr()) == is_shared(name) for name in mine)


def test_what_a_later_file_fills_is_not_written_into_the_other_model(runs: list[Path]) -> None:
    """A run that trained a layer which both models read from one file: its own file comes second."""
    run = lora_run(runs[0].parent, "c", seed=3, more=[NORM])
    first = Engine.load(runs[0], "cpu")
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    alone = Engine.load(run, "cpu")
    beside = load_beside(str(run), [first], "cpu")
    after = first.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(alone.model.llm.model.model.norm.weight, first.model.llm.model.model.norm.weight)
    others = beside.model.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in alone.model.state_dict().items())
    assert weight_bytes([first.model, beside.model]) < 1.3 * weight_bytes([first.model])


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


@pytest.mark.skipif(int8.unsupported() is not None, reason="this CPU has no int8")
def test_int8_layers_of_one_file_are_held_once(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "PACKED_FROM", 1100)  # some of the layers are packed for the kernel, others are not
    options = ["model.llm.quantize=int8"]
    expected = [answers(Engine.load(run, "cpu", options=options)) for run in runs]
    named = {"a": str(runs[0]), "b": str(runs[1])}
    models = load_models(named, lambda run, others: load_beside(run, others, "cpu", options=options))
    first, second = (engine.model for engine in models.engines.values())
    layers = [layer for layer in first.modules() if isinstance(layer, int8.Int8Linear)]
    assert {layer.packed for layer in layers} == {True, False}
    held = {id(layer) for layer in second.modules()}
    assert all(id(layer) in held for layer in layers)
    assert [answers(engine) for engine in models.engines.values()] == expected
    assert weight_bytes([first, second]) <= 1.15 * weight_bytes([first])


def test_what_differs_in_a_bit_stays_apart() -> None:
    class One(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.read_from: dict[str, str] = {}
            self.weight = torch.nn.Parameter(torch.tensor([value, float("nan")]))

    zero, minus, same, typed = One(0.0), One(-0.0), One(0.0), One(0.0).half()
    assert share_weights(minus, [zero]) == 0
    assert share_weights(typed, [zero]) == 0
    assert share_weights(same, [zero]) == 8  # NaN too, as its bits are the same
    assert str(minus.weight[0].item()) == "-0.0"
