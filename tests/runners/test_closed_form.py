"""``run.runner: closed_form``: its solution against least squares of plain matrices, and a run of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import IGNORE_INDEX, Batch
from vlm.config.api import load_config
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.models.bridges.qformer import QFormer
from vlm.models.bridges.visual_vocabulary import VisualVocabulary
from vlm.runners.fit.closed_form import ClosedForm, layer_of
from vlm.runners.fit.ridge import RidgeSums
from vlm.runners.fit.targets import Answers, MeanEmbeddings, spread

ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sums(x: torch.Tensor, y: torch.Tensor, parts: int = 3) -> RidgeSums:
    found = RidgeSums(x.shape[1], y.shape[1])
    for own, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.add(own, wanted)
    return found


def test_without_a_penalty_the_solution_is_that_of_least_squares() -> None:
    x = ROWS * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + 5
    y = torch.stack([x[:, 0] - 2 * x[:, 2], x.square().sum(1)], dim=1)
    found = sums(x, y).solve(0.0)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1, dtype=x.dtype)], 1), y).solution
    torch.testing.assert_close(torch.cat([found.weight, found.bias[:, None]], 1), expected.T, rtol=1e-5, atol=1e-6)
    left = (y - x @ found.weight.T - found.bias).square().mean(0).sum() / y.var(0, correction=0).sum()
    assert found.unexplained == pytest.approx(float(left), rel=1e-5)


def test_the_penalty_is_of_channels_of_variance_one() -> None:
    """By hand: of one channel the weight is covariance / (variance * (1 + penalty)), in any unit."""
    x, y = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    for unit in (1.0, 100.0):
        found = sums(x * unit, y, 1).solve(0.25)
        assert float(found.weight) * unit == pytest.approx(1.25 / 1.25)
        assert float(found.bias) == pytest.approx(3 - 2)


def test_a_channel_that_never_changes_has_no_weight() -> None:
    x = torch.cat([ROWS[:, :1], torch.full((40, 1), 7.0, dtype=ROWS.dtype)], 1)
    found = sums(x, 3 * ROWS[:, :1] + 1).solve(0.0)
    assert found.weight.tolist()[0] == pytest.approx([3, 0]) and float(found.bias) == pytest.approx(1)


def batch_of(*answers: list[int], media: Sequence[int] | None = None) -> Batch:
    """Rows of a prompt of one token, the answer and its end (2); ``media``: rows with an image, None: all."""
    longest = max(map(len, answers))
    ids = torch.tensor([[5, *answer, 2] + [0] * (longest - len(answer)) for answer in answers])
    lengths = torch.tensor([[len(answer)] for answer in answers])
    places = torch.arange(longest + 2)
    labels = torch.where((places > 0) & (places < lengths + 2), ids, IGNORE_INDEX)
    rows = torch.tensor(range(len(answers)) if media is None else media, dtype=torch.long)
    return Batch(ids, labels, torch.ones_like(ids), None, rows, torch.zeros_like(rows))


def model_of(vocabulary: int = 10) -> Any:
    """A model whose embedding of id n is ``[n]``."""
    model: Any = torch.nn.Module()
    model.llm = torch.nn.Linear(1, 1)
    model.llm.vocab_size = vocabulary
    model.llm.embed = lambda ids: ids[..., None].float()
    return model


def test_the_last_token_of_an_answer_is_left_out() -> None:
    mean, known = MeanEmbeddings(model_of()).of(batch_of([7, 9], [6], []))
    assert mean[:2, 0].tolist() == [8, 6] and known.tolist() == [True, True, False]


def vocabulary(size: int = 4, slots: int = 2) -> VisualVocabulary:
    return VisualVocabulary(VisualVocabulary.Config(size=size, tokens_per_word=slots), 3, 1)


def test_each_answer_becomes_a_word() -> None:
    part = vocabulary()
    targets = Answers(model_of(), part, part.head)
    first, known = targets.of(batch_of([7, 9, 8], [6], []))
    again, _ = targets.of(batch_of([6], [7, 9, 8]))
    assert first[:2].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]] == again.flip(0).tolist()
    assert known.tolist() == [True, True, False] and first[2].sum() == 0
    targets.finish()
    assert part.table.weight[:2].tolist() == [[7, 8.5], [6, 4.5]], "a shorter name ends with the mean of all embeddings"


def test_what_is_said_without_an_image_is_no_word() -> None:
    part = vocabulary()
    targets = Answers(model_of(), part, part.head)
    found, known = targets.of(batch_of([7], [6], [8], media=[2]))
    assert known.tolist() == [False, False, True] and found[2].tolist() == [1, 0, 0, 0] and found[:2].sum() == 0
    assert targets.known == {(8,): 0}


def test_one_slot_has_the_mean() -> None:
    assert spread(torch.tensor([[1.0], [3.0]]), 1, torch.zeros(1)).tolist() == [[2]]


def test_more_answers_than_words_are_refused() -> None:
    part, model = vocabulary(size=1), model_of()
    model.bridge = [torch.nn.Identity(), part]
    targets, sums_of = Answers(model, part, part.head), RidgeSums(3, 1)
    sums_of.add(ROWS[:3, :3].float(), targets.of(batch_of([7], [6], [8]))[0])
    with pytest.raises(
        DataError, match=r"3 different answers, but .* 1 visual words\n  fix: set model.bridge.1.size to 3"
    ):
        targets.over_processes(sums_of)


def test_processes_agree_on_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that met other answers the sums are those of one that met all."""
    halves, x = [batch_of([7], [6]), batch_of([6], [8])], ROWS[:4, :3].float()
    part, model = vocabulary(), model_of()
    found = []
    for rows, batch in zip(x.chunk(2), halves, strict=True):
        targets, sums_of = Answers(model, part, part.head), RidgeSums(3, 4)
        sums_of.add(rows, targets.of(batch)[0])
        found.append((targets, sums_of))
    known = [dict(targets.known) for targets, _ in found]
    monkeypatch.setattr("vlm.runners.fit.targets.dist.gather_objects", lambda _: known)
    for targets, sums_of in found:
        targets.over_processes(sums_of)
    alone, whole = Answers(model, part, part.head), RidgeSums(3, 4)
    for rows, batch in zip(x.chunk(2), halves, strict=True):
        whole.add(rows, alone.of(batch)[0])
    assert whole.rows == 4 and found[0][0].known == found[1][0].known == alone.known
    torch.testing.assert_close(found[0][1].products + found[1][1].products, whole.products)
    torch.testing.assert_close(found[0][1].squares + found[1][1].squares, whole.squares)


def test_which_bridges_can_be_solved_for() -> None:
    model: Any = torch.nn.Module()
    model.bridge = torch.nn.ModuleList([Linear(Linear.Config(), 4, 3), MLP(MLP.Config(shortcut=True), 3, 2)])
    assert layer_of(model) is model.bridge[1].shortcut
    model.bridge[1].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"solves for shortcut.weight, shortcut.bias of the last bridge, .* frozen"):
        layer_of(model)
    model.bridge[1].requires_grad_(True)
    model.bridge[1].shortcut.bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"solves for shortcut.bias of"):
        layer_of(model)
    model.bridge.append(Linear(Linear.Config(bias=False), 2, 2))
    with pytest.raises(ConfigError, match=r"with a bias; the last one is Linear"):
        layer_of(model)
    model.bridge[2] = vocabulary()
    assert layer_of(model) is model.bridge[2].head
    model.bridge[2].table.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"solves for table.weight of"):
        layer_of(model)
    model.bridge.append(QFormer(QFormer.Config(2, 4, 1, 1, 4), 2, 2))
    with pytest.raises(ConfigError, match=r"the last one is QFormer"):
        layer_of(model)


def tiny(tmp_path: Path, *options: str, rows: int = 12) -> Any:
    """Plain squares, named by their colour, for the embedded LLM and an encoder of random weights."""
    from PIL import Image

    lines = []
    for k in range(rows):
        colour = ("red", "green", "blue", "yellow")[k % 4]
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{k}.png")
        lines.append(f'{{"image": "{k}.png", "question": "Which?", "answer": "{colour}"}}')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    vision = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 32}
    return load_config(
        {
            "model": {
                "vision": vision | {"options": {"depth": 1, "embed_dim": 24, "num_heads": 2}, "precision": "fp32"},
                "bridge": [{"name": "mlp", "shortcut": True}],
                "fusion": {"name": "splice"},
                "llm": {"name": "hf", "path": "${asset:tiny/llm}", "dtype": "fp32"},
                "template": {"name": "plain"},
                "image": {"size": 32},
                "train": ["bridge.*"],
                "weights": [
                    {"format": "hf_llm", "path": "${asset:tiny/llm}", "into": "llm"},
                    {"format": "random", "into": "vision"},
                ],
            },
            "datasets": {
                "squares": {
                    "format": "table",
                    "batch_size": 4,
                    "build_info": {"ann_path": str(tmp_path / "rows.jsonl"), "image_path": str(tmp_path)},
                }
            },
            "run": {
                "runner": "closed_form",
                "weight_decay": 1e-4,
                "num_workers": 0,
                "device": "cpu",
                "report": False,
                "trackers": ["jsonl"],
                "output_dir": str(tmp_path / "run"),
            },
        },
        options,
    )


def test_a_run_maps_pictures_to_the_embeddings_of_their_answers(tmp_path: Path) -> None:
    from vlm.checkpoint.load import load_model
    from vlm.runners.train.run import run_training

    cfg = tiny(tmp_path, f"run.feature_cache.dir={tmp_path / 'features'}")
    result = run_training(cfg)
    assert (result.status, result.step) == ("finished", 3) and result.loss < 0.01
    again = tiny(tmp_path, f"run.output_dir={tmp_path / 'again'}", f"run.feature_cache.dir={tmp_path / 'features'}")
    assert run_training(again).loss == result.loss
    weights = {"format": "trained", "path": str(tmp_path / "run")}
    cfg.model.weights.append(type(cfg.model.weights[0])(**weights))
    model = load_model(cfg, device="cpu")
    assert model.bridge[0].shortcut.weight.abs().sum() > 0 and model.bridge[0].layers[-1].weight.abs().sum() == 0


def test_a_run_names_the_words_of_a_vocabulary(tmp_path: Path) -> None:
    from vlm.checkpoint.load import load_model
    from vlm.runners.train.run import run_training

    words = "model.bridge=[{name: visual_vocabulary, size: 5, tokens_per_word: 3, temperature: 0.05}]"
    cfg = tiny(tmp_path, words, f"run.feature_cache.dir={tmp_path / 'features'}")
    assert run_training(cfg).loss < 0.01
    cfg.model.weights.append(type(cfg.model.weights[0])(format="trained", path=str(tmp_path / "run")))
    model: Any = load_model(cfg, device="cpu")
    every, first = model.llm.embed(torch.arange(model.llm.vocab_size)), model.bridge[0].table.weight[:, :128]
    nearest = torch.cdist(first, every).min(1)
    assert (nearest.values[:4] < 1e-3).all() and nearest.values[4] > 0.01, "four colours are four words, one is free"
    assert len(set(nearest.indices[:4].tolist())) == 4


def test_packed_samples_are_refused(tmp_path: Path) -> None:
    from vlm.runners.train.run import run_training

    cfg = tiny(tmp_path, "run.packing={max_tokens: 64}", "run.max_steps=1")
    with pytest.raises(ConfigError, match=r"one sample per row"):
        run_training(cfg)


def test_split_weights_are_refused() -> None:
    model: Any = torch.nn.Module()
    model.bridge = torch.nn.ModuleList([Linear(Linear.Config(), 4, 3)])
    run = SimpleNamespace(packing=None, parallel=SimpleNamespace(shard="all"))
    with pytest.raises(ConfigError, match=r"closed_form needs whole weights"):
        ClosedForm.fit(SimpleNamespace(model=model, run=run))  # type: ignore[arg-type]
