"""Golden: every boundary of the model, losses, gradients and the training trace of the published MiniGPT-4 code.

Runs on every case folder (one with ``eva_vit_g.pth`` and ``llm/``) below ``<golden root>/minigpt4``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example, Features
from vlm.processors.collate import collate
from vlm.processors.tokenizer.tokenizer import Tokenizer

from .helpers_minigpt4 import ModelCase

FEATURES = {"rtol": 0, "atol": 1e-4}


def _cases(config: pytest.Config) -> list[Path]:
    root = config.getoption("--golden-root", default=None) or Path(__file__).parent
    return sorted(p.parent for p in Path(root, "minigpt4").rglob("eva_vit_g.pth") if (p.parent / "llm").is_dir())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folders = _cases(metafunc.config)
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> ModelCase:
    torch.manual_seed(0)
    return ModelCase(request.param)


def record_outputs(modules: dict[str, torch.nn.Module]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    return seen


def test_vision_boundaries(case: ModelCase) -> None:
    vision = case.model.vision
    seen = record_outputs(
        {f"vit.block{i}": b for i, b in enumerate(vision.blocks())} | {"vit.ln_vision": vision.ln_vision}
    )
    with torch.no_grad():
        vision(case.tensor("images")[:, None])
    seen["vit.out"] = seen[f"vit.block{len(vision.blocks()) - 1}"]
    seen["vit.pos_embed_used"] = vision.vit.pos_embed.detach()
    seen["ln_vision.weight"], seen["ln_vision.bias"] = vision.ln_vision.weight.detach(), vision.ln_vision.bias.detach()
    compared = [name for name in seen if case.has(name)]
    assert {"vit.out", "vit.ln_vision"} <= set(compared)
    for name in compared:
        torch.testing.assert_close(seen[name], case.tensor(name), **FEATURES)


def test_bridge_boundaries(case: ModelCase) -> None:
    bridge = case.model.bridge
    modules = {}
    if case.has("qformer.last_hidden_state"):
        inner = bridge[0].qformer
        modules = {f"qformer.layer{i}": layer for i, layer in enumerate(inner.encoder.layer)}
        modules |= {"qformer.embeddings": inner.layernorm}
    seen = record_outputs(modules)
    value = Features(case.tensor("vit.ln_vision")[:, None])
    with torch.no_grad():
        first = bridge[0](value)
        seen["bridge.llama_proj"] = bridge[1](first).tokens[:, 0]
    seen["qformer.last_hidden_state" if modules else "bridge.concat4"] = first.tokens[:, 0]
    for name, got in seen.items():
        want = case.tensor(name)
        torch.testing.assert_close(got.expand_as(want), want, **FEATURES)
    assert case.model.tokens_per_frame == case.image_tokens


def test_forward_calls(case: ModelCase) -> None:
    """Inputs of the LLM at real positions, labels, selected logits and the loss of every recorded batch."""
    for name in case.forwards:
        get = lambda key, name=name: case.tensor(f"{name}.{key}")  # noqa: E731
        mask, labels = get("attention_mask"), get("labels")
        batch = case.batch(get("inputs_embeds"), mask, labels)
        with torch.no_grad():
            inputs = case.model.prepare(batch)
            out = case.model(batch, return_logits=True)
            fast = case.model(batch)
        size = inputs.segments.shape[1]
        assert torch.equal(inputs.attention_mask, mask[:, :size])
        assert not mask[:, size:].any()
        assert torch.equal(inputs.labels[mask[:, :size] > 0], labels[mask > 0])
        torch.testing.assert_close(inputs.inputs_embeds[mask[:, :size] > 0], get("inputs_embeds")[mask > 0], **FEATURES)
        position, wanted = get("logits_pos"), get("logits_sel")
        for row in range(len(labels)):
            real = mask[row, position[row]] > 0
            at = position[row][real]
            torch.testing.assert_close(out.logits[row, at], wanted[row][real], **FEATURES)
        for output in (out, fast):
            mean = output.loss_sum / output.num_tokens
            torch.testing.assert_close(mean, get("loss"), rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert out.num_tokens == sum(case.records[name]["supervised_tokens"])


def test_gradients(case: ModelCase) -> None:
    checked = 0
    model = case.model
    for name in case.forwards:
        norms = case.records[name].get("grad_norms", {})
        get = lambda key, name=name: case.tensor(f"{name}.{key}")  # noqa: E731
        model.zero_grad()
        output = model(case.batch(get("inputs_embeds"), get("attention_mask"), get("labels")))
        (output.loss_sum / output.num_tokens).backward()
        parameters = dict(model.named_parameters())
        for key, norm in norms.items():
            grad = parameters[case.published(key)].grad
            torch.testing.assert_close(grad.norm().item(), norm, rtol=1e-4, atol=1e-7)
            if case.has(f"{name}.grad.{key}"):
                want = get(f"grad.{key}")
                assert (grad - want).norm() <= 1e-4 * want.norm()
            checked += 1
    model.zero_grad()
    assert checked > 0 or not any("grad_norms" in case.records[name] for name in case.forwards)


def test_chat_embeddings(case: ModelCase) -> None:
    """Fused prompts of the recorded chat turns, from their recorded segment ids."""
    turns = case.records.get("chat", {}).get("turns", [])
    assert bool(turns) == case.has("chat.turn0.embs")
    for number, turn in enumerate(turns):
        pieces = turn["segment_ids"]
        ids = [*pieces[0]]
        for piece in pieces[1:]:
            ids += [MEDIA_TOKEN, *piece]
        marks = torch.tensor([[i == MEDIA_TOKEN for i in ids]]).nonzero()
        picture = case.tensor("prep.eval")[None, None].expand(len(marks), -1, -1, -1, -1)
        row = torch.tensor([ids])
        batch = Batch(row, torch.full_like(row, IGNORE_INDEX), torch.ones_like(row), picture, marks[:, 0], marks[:, 1])
        with torch.no_grad():
            got = case.model.prepare(batch).inputs_embeds
        torch.testing.assert_close(got, case.tensor(f"chat.turn{number}.embs"), **FEATURES)


def test_generation_batch_is_left_padded(case: ModelCase) -> None:
    assert ("batchgen" in case.records) == case.has("batchgen.embs")
    if "batchgen" not in case.records:
        return
    embeds, mask = case.tensor("batchgen.embs"), case.tensor("batchgen.attention_mask")
    with torch.no_grad():
        got = case.model.prepare(case.batch(embeds, mask)).left_padded()
    assert torch.equal(got.attention_mask, mask)
    torch.testing.assert_close(got.inputs_embeds * mask[..., None], embeds, **FEATURES)


def text_rows(case: ModelCase, prompts: list[str], answers: list[str], limit: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of finished prompts with answers, each piece of text tokenised on its own."""
    tokenizer = Tokenizer.from_folder(case.folder / "llm")
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [tokenizer.bos]
        for k, piece in enumerate(prompt.split("<ImageHere>")):
            ids += ([MEDIA_TOKEN] if k else []) + tokenizer.encode(piece)
        told = tokenizer.encode(answer)[:limit]
        rows.append((ids + told, [IGNORE_INDEX] * len(ids) + told))
    return rows


def as_batch(rows: list[tuple[list[int], list[int]]], pictures: Tensor) -> Batch:
    """``pictures [n, 3, h, w]``, one for each mark."""
    frames = list(pictures[:, None])
    return collate([Example(ids, labels, [frames.pop(0)] * ids.count(MEDIA_TOKEN)) for ids, labels in rows], 0)


def test_training_trace(case: ModelCase) -> None:
    """The published run again, step by step, with its learning rates: every loss and the final projection."""
    trace = case.records.get("training", {}).get("trace", [])
    assert bool(trace) == case.has("train.init.llama_proj.weight")
    if not trace:
        return
    merged = case.folder / "framework" / "config_merge.json"  # what --options changed for the run, if anything
    built = case.config["constructor"]
    limit = _find(json.loads(merged.read_text()), "max_txt_len") if merged.is_file() else built["max_txt_len"]
    model = copy.deepcopy(case.model)
    named = {
        key: dict(model.named_parameters())[case.published(key)] for key in ("llama_proj.weight", "llama_proj.bias")
    }
    for key, parameter in named.items():
        parameter.data.copy_(case.tensor(f"train.init.{key}"))
    recorded = case.records["training"]["optimizer_groups"]
    groups = [{"params": [p], "weight_decay": g["weight_decay"]} for p, g in zip(named.values(), recorded, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=tuple(recorded[0]["betas"]), eps=recorded[0]["eps"])
    model.train()
    for step, item in enumerate(trace):
        answers = [a + built["end_sym"] for a in item["answer"]]
        rows = text_rows(case, [item["prompt"]] * len(answers), answers, limit)
        batch = as_batch(rows, torch.stack([case.tensor(f"train.image{i}") for i in item["image_id"]]))
        inputs = model.prepare(batch)
        assert torch.equal(inputs.labels, case.tensor(f"train.step{step}.labels"))
        output = model(batch)
        loss = output.loss_sum / output.num_tokens
        torch.testing.assert_close(loss.item(), item["loss"], rtol=0, atol=1e-5)
        for group in optimizer.param_groups:
            group["lr"] = item["lr"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), case.tensor(f"train.final.{key}"), rtol=0, atol=1e-5)


def test_multi_select(case: ModelCase) -> None:
    """Losses and ranks of candidate answers, normalised by the padded length as published."""
    record = case.records.get("multi_select")
    assert (record is not None) == case.has("multi_select.losses")
    if record is None:
        return
    want = case.tensor("multi_select.losses")
    got = torch.zeros_like(want)
    for c, candidates in enumerate(record["candidates_per_choice"]):
        answers = [a + case.config["constructor"]["end_sym"] for a in candidates]
        batch = as_batch(text_rows(case, record["instructions"], answers, 1000), case.tensor("images"))
        with torch.no_grad():
            output = case.model(batch, return_logits=True)
            real = case.model.prepare(batch).attention_mask.sum(1)
        losses = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), output.labels[:, 1:], reduction="none")
        told = (output.labels != IGNORE_INDEX).sum(1)
        # the published code pads conditions and answers separately, and counts that padding
        got[:, c] = losses.sum(1) / ((real - told).max() + told.max() - 1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    allowed = torch.arange(want.shape[1])[None] < torch.tensor(record["num_cand"])[:, None]
    assert got.masked_fill(~allowed, 9999).argsort(1).tolist() == record["ranks"]


def _find(tree: object, key: str) -> int:
    """The only value of ``key`` anywhere in a merged configuration."""
    found: list[int] = []
    for name, value in tree.items() if isinstance(tree, dict) else []:
        found += (
            [value] if name == key else ([_find(value, key)] if isinstance(value, dict) and key in str(value) else [])
        )
    return found[0]
