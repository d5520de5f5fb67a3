"""Validation loss: weighted by tokens, without touching the run's random state or mode."""

import pytest
import torch

from vlm.common.errors import NotFiniteError
from vlm.runners.train.optim import Precision
from vlm.runners.train.validate import Validator
from vlm.tasks.image_text_pretrain import ImageTextPretrain


def test_loss_is_the_mean_over_all_tokens(tools):
    model = tools.model(dropout=0.5)
    sets = {"a": [tools.batch(2, 6, 1), tools.batch(1, 3, 2)], "b": [tools.batch(3, 5, 4)]}
    model.train()
    before = torch.get_rng_state()
    validator = Validator(model, ImageTextPretrain(), sets, device=torch.device("cpu"), precision=Precision())
    found = validator()
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.eval()
    outputs = {n: [model(b) for b in batches] for n, batches in sets.items()}
    sums = {
        n: (sum(float(o.loss_sum.detach()) for o in os), sum(o.num_tokens for o in os)) for n, os in outputs.items()
    }
    total = [sum(x) for x in zip(*sums.values(), strict=True)]
    assert found["loss"] == pytest.approx(total[0] / total[1]) and found["tokens"] == total[1]
    assert found["loss_a"] == pytest.approx(sums["a"][0] / sums["a"][1])
    assert found["loss_b"] == pytest.approx(sums["b"][0] / sums["b"][1])
    assert found == {**validator(), "seconds": found["seconds"]}


def test_a_loss_that_is_not_a_number_ends_the_run(tools):
    model = tools.model()
    model.poison = "s2.0"
    sets = {"a": [tools.batch(2, 6, 1)], "b": [tools.batch(1, 3, 2), tools.batch(3, 5, 4)]}
    validator = Validator(model, ImageTextPretrain(), sets, device=torch.device("cpu"), precision=Precision())
    with pytest.raises(NotFiniteError, match="the validation loss of b is not a number"):
        validator()
