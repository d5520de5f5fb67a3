"""One optimiser step: exact accumulation, clipping, guards."""

from dataclasses import replace

import pytest
import torch

from vlm.common.errors import DataError, NonFiniteLossError
from vlm.common.types import IGNORE_INDEX, Batch
from vlm.runners.train.optim import Precision, build_optimizer, build_scaler, pick_precision
from vlm.runners.train.step import StepCounts, Stepper
from vlm.tasks.image_text_pretrain import ImageTextPretrain

CPU = torch.device("cpu")


def stepper_for(model, precision=None, **more):
    optimizer = build_optimizer(model, lr=0.1, weight_decay=0.0, beta2=0.999, device=CPU)
    precision = precision or Precision()
    scaler = build_scaler(precision, CPU)
    return Stepper(model, ImageTextPretrain(), optimizer, scaler, device=CPU, precision=precision, **more)


def rows_of(batch):
    """One batch per row."""
    empty = torch.empty(0, dtype=torch.long)
    return [
        Batch(
            batch.ids[i : i + 1], batch.labels[i : i + 1], batch.segments[i : i + 1], None, empty, empty, sample_ids=[n]
        )
        for i, n in enumerate(batch.sample_ids)
    ]


def test_four_micro_batches_equal_one_batch(tools):
    batch = tools.batch(4, 6, seed=3)
    assert len({int((row != IGNORE_INDEX).sum()) for row in batch.labels}) > 1
    results = []
    for batches in ([batch], rows_of(batch)):
        model = tools.model(dropout=0.0, dtype=torch.float64)
        stats = stepper_for(model)(batches, step=1, lr=0.1)
        results.append((stats.loss, stats.grad_norm, stats.targets, model.proj.weight.detach().clone()))
    assert results[0][:3] == pytest.approx(results[1][:3], abs=1e-12)
    assert torch.allclose(results[0][3], results[1][3], atol=1e-12, rtol=0)


def test_step_is_plain_adamw_on_the_token_mean(tools):
    model, reference = tools.model(dropout=0.0), tools.model(dropout=0.0)
    batch = tools.batch(3, 5, seed=1)
    stats = stepper_for(model)([batch], step=1, lr=0.1)
    optimizer = torch.optim.AdamW([reference.proj.weight, reference.proj.bias], lr=0.1, weight_decay=0.0)
    output = reference(batch)
    mean = output.loss_sum.item() / output.num_tokens
    (output.loss_sum / output.num_tokens).backward()
    assert stats.loss == pytest.approx(mean, rel=1e-6)
    norm = torch.cat([reference.proj.weight.grad.flatten(), reference.proj.bias.grad]).norm()
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-5)
    optimizer.step()
    assert torch.allclose(model.proj.weight, reference.proj.weight, atol=1e-7)
    assert (stats.samples, stats.tokens) == (3, 15)


def test_what_trains_without_a_gradient_is_named_once(tools, caplog):
    model = tools.model(dropout=0.0)
    model.unread = torch.nn.Linear(2, 2)
    stepper = stepper_for(model)
    for step in (1, 2):
        stepper([tools.batch(2, 6, seed=step)], step=step, lr=0.1)
    (said,) = [r.getMessage() for r in caplog.records if "no gradient" in r.getMessage()]
    assert said.startswith("step 1: 2 of 4 trained tensors have no gradient, first unread.weight")


@pytest.mark.parametrize("limit, scales", [(1e-3, True), (1e3, False)])
def test_clipping_limits_the_update_but_not_the_logged_norm(tools, limit, scales):
    model, free = tools.model(dropout=0.0), tools.model(dropout=0.0)
    batch = tools.batch(2, 6, seed=2)
    grads = {}
    for name, each, clip in (("clipped", model, limit), ("free", free, 0.0)):
        stepper = stepper_for(each, max_grad_norm=clip)
        stepper.optimizer.register_step_pre_hook(
            lambda *_, name=name, each=each: grads.update({name: each.proj.weight.grad.clone()})
        )
        norm = stepper([batch], step=1, lr=0.1).grad_norm
    factor = limit / norm if scales else 1.0
    assert torch.allclose(grads["clipped"], grads["free"] * factor, rtol=1e-3)


def test_nan_loss_names_step_and_samples_and_leaves_the_weights(tools):
    model = tools.model()
    good, bad = tools.batch(2, 6, seed=1), tools.batch(2, 6, seed=7)
    model.poison = "s7.1"
    before = model.proj.weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match=r"step 12: the loss is not a number; samples: s7\.0, s7\.1"):
        stepper_for(model)([good, bad], step=12, lr=0.1)
    assert torch.equal(model.proj.weight, before) and model.proj.weight.grad is None


def test_infinite_gradient_stops_too(tools):
    model = tools.model(dropout=0.0)
    model.proj.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteLossError, match="gradient is not a number"):
        stepper_for(model)([tools.batch(2, 6, seed=1)], step=1, lr=0.1)


def test_a_step_without_supervised_tokens_is_an_error(tools):
    batch = tools.batch(1, 4, seed=5)
    batch.labels[:] = IGNORE_INDEX
    with pytest.raises(DataError, match=r"no supervised token in samples s5\.0"):
        stepper_for(tools.model())([batch], step=1, lr=0.1)


def test_tokens_that_the_model_cut_do_not_count(tools):
    """A model that drops supervised positions gives the mean over the rest."""

    class Cutting(type(tools.model())):
        def forward(self, batch):
            kept = Batch(
                batch.ids[:, :4], batch.labels[:, :4], batch.segments[:, :4], None, batch.media_row, batch.media_pos
            )
            return super().forward(kept)

    cutting, reference = Cutting(dropout=0.0), tools.model(dropout=0.0)
    batch = tools.batch(2, 6, seed=1)
    stats = stepper_for(cutting)([batch], step=1, lr=0.1)
    short = Batch(batch.ids[:, :4], batch.labels[:, :4], batch.segments[:, :4], None, batch.media_row, batch.media_pos)
    expected = stepper_for(reference)([short], step=1, lr=0.1)
    assert stats.loss == pytest.approx(expected.loss, rel=1e-6)
    assert stats.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert stats.targets == expected.targets


def test_bf16_autocast_stays_near_fp32(tools):
    losses = []
    for precision in (Precision(), pick_precision(True, "bf16", CPU)):
        losses.append(stepper_for(tools.model(dropout=0.0), precision)([tools.batch(4, 6, seed=3)], 1, 0.1).loss)
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_fp16_overflow_skips_the_update_and_lowers_the_scale(tools):
    model = tools.model(dropout=0.0)
    stepper = stepper_for(model, Precision(torch.float16))
    before = model.proj.weight.detach().clone()
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    stats = stepper([tools.batch(2, 6, seed=1)], step=1, lr=0.1)
    assert stats.skipped and torch.equal(model.proj.weight, before)
    assert stepper.scaler.get_scale() == 2.0**39
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    stats = stepper([tools.batch(2, 6, seed=1)], step=2, lr=0.1)
    assert not stats.skipped and not torch.equal(model.proj.weight, before)


def test_a_process_with_fewer_micro_batches_computes_one_more_without_effect(tools, monkeypatch):
    """Models in shards need as many forward calls on every process."""
    batches = rows_of(tools.batch(3, 6, seed=3))
    results = []
    for uneven in (False, True):
        model, calls = tools.model(dropout=0.0), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if uneven:
            monkeypatch.setattr(StepCounts, "of", with_five_elsewhere(StepCounts.of))
        stats = stepper_for(model, uneven=uneven)(batches, step=1, lr=0.1)
        results.append((stats, model.proj.weight.detach().clone(), len(calls)))
    (one, weight, calls), (other, weight2, calls2) = results
    assert one == other and torch.equal(weight, weight2) and (calls, calls2) == (3, 5)


def with_five_elsewhere(plain):
    """``StepCounts.of`` that sees another process with five micro-batches."""
    return lambda *given: replace(plain(*given), batches=torch.tensor([3, 5]))


def test_dropout_follows_from_the_seed_of_a_batch(tools):
    batch = tools.batch(2, 6, seed=3)
    losses = []
    for seed in (1, 2, 1, None):
        torch.manual_seed(len(losses))
        losses.append(stepper_for(tools.model(dropout=0.5))([replace(batch, seed=seed)], step=1, lr=0.1).loss)
    assert losses[0] == losses[2] and len(set(losses)) == 3
