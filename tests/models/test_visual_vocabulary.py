"""The bridge ``visual_vocabulary``: mixtures of rows of a table, against transformers' own and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlm.common.errors import ConfigError
from vlm.common.types import Features, MediumShape
from vlm.models.bridges.visual_vocabulary import VisualVocabulary

TOKENS = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))


def bridge(**options: Any) -> VisualVocabulary:
    torch.manual_seed(0)
    return VisualVocabulary(VisualVocabulary.Config(size=7, **options), 5, 4).eval()


def test_what_leaves_is_what_transformers_computes_for_ovis() -> None:
    from transformers.models.ovis2.modeling_ovis2 import Ovis2VisualEmbeddingTable

    ours = bridge(norm="layer")
    theirs = Ovis2VisualEmbeddingTable(7, 4)
    theirs.load_state_dict({"weight": ours.table.weight})
    probabilities = ours.head(ours.norm(TOKENS)).softmax(-1)
    torch.testing.assert_close(ours(Features(TOKENS)).tokens, theirs(probabilities))


def test_the_tokens_of_a_word_follow_one_another() -> None:
    part = bridge(tokens_per_word=2, temperature=1e-4)
    words = part.head(TOKENS).argmax(-1)
    grid = torch.tensor([[1, 3], [1, 3]])
    mask = torch.tensor([[[True, True, False]], [[True, True, True]]])
    found = part(Features(TOKENS, mask, grid))
    torch.testing.assert_close(found.tokens, part.table.weight[words].view(2, 1, 6, 4))
    assert found.mask is not None and found.mask[0, 0].tolist() == [True, True, True, True, False, False]
    assert found.grid is None
    assert part.num_tokens(3) == 6 == part.counter()(MediumShape(tokens=3, grid=(1, 3))).tokens


def test_in_training_the_likeliest_word_can_be_left_out() -> None:
    part = bridge(hide=0.5)
    shown = part.probabilities(Features(TOKENS))
    likeliest = shown.argmax(-1, keepdim=True)
    part.train()
    torch.manual_seed(1)
    left = torch.cat([part.probabilities(Features(TOKENS)).gather(-1, likeliest) for _ in range(50)])
    assert 0.3 < (left == 0).float().mean() < 0.7
    assert torch.equal(left[left > 0], shown.gather(-1, likeliest).repeat(50, 1, 1, 1)[left > 0])
    torch.testing.assert_close(part.probabilities(Features(TOKENS)).sum(-1), torch.ones(2, 1, 3))


def test_a_word_of_one_token_keeps_the_grid_and_its_count() -> None:
    part, grid = bridge(), torch.tensor([[1, 3], [1, 3]])
    shape = MediumShape(tokens=3, grid=(1, 3))
    assert torch.equal(part(Features(TOKENS, None, grid)).grid, grid) and part.counter()(shape) == shape


def test_probabilities_do_not_depend_on_autocast() -> None:
    part = bridge(temperature=0.006)
    expected = part.probabilities(Features(TOKENS))
    with torch.autocast("cpu", torch.bfloat16):
        found = part.probabilities(Features(TOKENS))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_the_only_word_cannot_be_hidden() -> None:
    with pytest.raises(ConfigError, match="hide needs a size of 2"):
        VisualVocabulary.Config(size=1, hide=0.1)


def test_dropout_and_temperature() -> None:
    sharp, plain = (bridge(temperature=t).probabilities(Features(TOKENS)) for t in (0.1, 1.0))
    assert (sharp.amax(-1) > plain.amax(-1)).all()
    coldest = bridge(temperature=1e-6).probabilities(Features(100 * TOKENS))
    assert torch.equal(coldest.amax(-1), torch.ones(2, 1, 3))
    dropped = bridge(dropout=0.5)
    assert torch.equal(dropped.probabilities(Features(TOKENS)), plain)
    assert not torch.equal(dropped.train().probabilities(Features(TOKENS)), plain)
