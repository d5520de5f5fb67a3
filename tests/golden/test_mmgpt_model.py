"""Golden: every boundary of the model, losses, gradients, the training loop and generation of Multimodal-GPT.

Runs on every case folder (one with ``OpenFlamingo-9B/`` and ``llama/``) below ``<golden root>/mmgpt``.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.checkpoint.load import load_file
from vlm.common.errors import ConfigError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch, Example, Features, Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.fusion.locations import locate
from vlm.models.inserts.media_mask import media_mask
from vlm.models.vlm import VLM
from vlm.processors.processor import build_processor
from vlm.runners.train.optim import build_optimizer, set_lr, split_parameters
from vlm.runners.train.schedule import Plan, build_schedule
from vlm.systems.mmgpt.checkpoint import MmgptLora, published_names, read_content

from .helpers_mmgpt import FirstMarks, MmgptCase

VARIANTS = ("attend_previous", "no_lora", "vision_none", "one_image_missing")


def _cases(config: pytest.Config) -> list[Path]:
    root = config.getoption("--golden-root", default=None) or Path(__file__).parent
    return sorted(p.parent for p in Path(root, "mmgpt").rglob("OpenFlamingo-9B") if (p.parent / "llama").is_dir())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folders = _cases(metafunc.config)
        metafunc.parametrize("case", folders, ids=[f.name for f in folders], indirect=True, scope="module")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> MmgptCase:
    torch.manual_seed(0)
    return MmgptCase(request.param)


def close(got: Tensor, want: Tensor, name: str = "") -> None:
    """Equal up to 2e-5 of the largest value (at least of 1)."""
    scale = max(1.0, want.abs().max().item())
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * scale, msg=lambda m: f"{name}: {m}")


def close_where(mask: Tensor, got: Tensor, want: Tensor, name: str = "") -> None:
    """:func:`close` at the real positions ``mask [b, s]`` of ``[b, s, ...]``."""
    close(got[mask > 0], want[mask > 0], name)


def interleaved(case: MmgptCase, pictures: Tensor | None) -> tuple[Batch, Tensor]:
    mask = case.tensor("inter.attention_mask")
    return case.batch(case.tensor("inter.input_ids"), mask, case.tensor("inter.labels"), pictures), mask


@contextlib.contextmanager
def seen(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Outputs of modules by name."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out))
        for name, module in modules.items()
    ]
    yield found
    for hook in hooks:
        hook.remove()


@contextlib.contextmanager
def without_lora(model: VLM) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    yield
    for layer in layers:
        layer.enable_adapters(True)


def test_clip_tokens(case: MmgptCase) -> None:
    """Patch tokens before the final norm; weights from open_clip's file and from the TorchScript archive agree."""
    pixels = case.tensor("inter.vision_x").flatten(0, 1)
    want = case.tensor("inter.clip_tokens")
    with torch.no_grad():
        close(case.model.vision(pixels).tokens[:, 0], want)
        archive = next((case.folder / "clip").glob("*.pt"), None)
        if archive is not None:
            other = case.load(clip=str(archive.relative_to(case.folder)))
            close(other.vision(pixels).tokens[:, 0], want)
    for key, value in (other if archive else case.model).vision.state_dict().items():
        assert torch.equal(value, case.model.vision.state_dict()[key]), key


def test_perceiver(case: MmgptCase) -> None:
    with torch.no_grad():
        got = case.model.encode(case.tensor("inter.vision_x").flatten(0, 1)).tokens[:, 0]
        close(got, case.tensor("inter.perceiver").flatten(0, 1))
        got = case.model.encode(case.tensor("train_vision.image")[:, None]).tokens[:, 0]
        close(got, case.tensor("train_vision.perceiver").flatten(0, 1))


def test_locations(case: MmgptCase) -> None:
    ids, mask = case.tensor("inter.input_ids"), case.tensor("inter.attention_mask")
    for name, previous in (("next", False), ("previous", True)):
        got = locate(ids == case.image, mask, previous)
        assert torch.equal(got[mask > 0], case.tensor(f"inter.text_time_attend_{name}")[mask > 0])


def test_cross_attention_alone(case: MmgptCase) -> None:
    """All rules of looking, on the module by itself and with the weights of the checkpoint."""
    attention = case.model.inserts[0].layers[str(case.config["gated_layer_indices"][0])].attn
    x, media = case.tensor("xattn.x"), case.tensor("xattn.media")
    places = case.tensor("xattn.media_locations").bool()
    given = [(r, j, p) for r, m in enumerate(places) for j, p in enumerate(m.nonzero()[:, 0].tolist())]
    row, slot, position = torch.tensor([g for g in given if g[1] < media.shape[1]]).T
    ids = torch.full_like(places, 3, dtype=torch.long).masked_fill(places, MEDIA_TOKEN)
    batch = Batch(ids, torch.full_like(ids, IGNORE_INDEX), torch.ones_like(ids), None, row, position)
    all_placed = torch.bincount(row, minlength=len(media)) == media.shape[1]
    with torch.no_grad(), without_lora(case.model):
        close(attention(x, media.flatten(1, 2), None), case.tensor("xattn.out.no_media_locations"))
        for immediate in (True, False):
            for previous in (True, False):
                config = CrossAttention.Config(3, previous, immediate=immediate, uniform_when_missing=True)
                data = CrossAttention(config, case.model.llm)(batch, Features(media[row, slot][:, None])).inserts
                looked = media_mask(data)
                got = attention(x, looked.of(data.shared["media"]), looked.allowed, looked.even)
                name = f"xattn.out.immediate={immediate}.attend_previous={previous}"
                rows = all_placed | immediate  # a picture without mark counts where attention is even
                close(got[rows], case.tensor(name)[rows], name)


def test_interleaved_boundaries(case: MmgptCase) -> None:
    batch, mask = interleaved(case, case.tensor("inter.vision_x"))
    model, layers = case.model, case.model.llm.layers()
    modules = {f"gated{i}_out": block for i, block in model.inserts[0].layers.items()}
    modules |= {f"layer{i}_out": layer for i, layer in enumerate(layers)}
    modules["final_norm"] = model.llm.model.model.norm
    with torch.no_grad(), seen(modules) as found:
        found["inputs_embeds"] = model.prepare(batch).inputs_embeds
        output = model(batch, return_logits=True)
    compared = [name for name in found if case.has(f"inter.{name}")]
    assert {"inputs_embeds", "final_norm", f"layer{len(layers) - 1}_out"} <= set(compared)
    assert {f"gated{i}_out" for i in case.config["gated_layer_indices"]} <= set(compared)
    for name in compared:
        close_where(mask, found[name], case.tensor(f"inter.{name}"), name)
    close_where(mask[:, ::3], output.logits[:, ::3], case.tensor("inter.logits"), "logits")
    with torch.no_grad():
        for got in (output, model(batch)):
            torch.testing.assert_close(got.loss_sum / got.num_tokens, case.tensor("inter.loss"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(case: MmgptCase, variant: str) -> None:
    pictures: Tensor | None = case.tensor("inter.vision_x")
    model, context = case.model, contextlib.nullcontext()
    if variant == "attend_previous":
        model = case.fused(attend_previous=True)
    elif variant == "no_lora":
        context = without_lora(model)
    elif variant == "vision_none":
        pictures = None
    else:
        model, pictures = case.fused(uniform_when_missing=True), pictures[:, :1]
    batch, mask = interleaved(case, pictures)
    with torch.no_grad(), context:
        output, fast = model(batch, return_logits=True), model(batch)
    close_where(mask[:, ::4], output.logits[:, ::4, ::3], case.tensor(f"inter.{variant}.logits"))
    for got in (output, fast):
        want = case.tensor(f"inter.{variant}.loss")
        torch.testing.assert_close(got.loss_sum / got.num_tokens, want, rtol=0, atol=1e-5)


def published(case: MmgptCase) -> dict[str, str]:
    """Published name -> our name of what trains."""
    return {str(theirs): name for name, theirs in published_names(case.model).items()}


@pytest.mark.parametrize("name", ["train_vision", "train_lang"])
def test_training_batches(case: MmgptCase, name: str) -> None:
    """Loss, logits and every gradient; text alone gives none to the inserted layers."""
    ids, mask, labels = (case.tensor(f"{name}.{key}") for key in ("input_ids", "attention_mask", "labels"))
    pictures = case.tensor(f"{name}.image")[:, None, None] if case.has(f"{name}.image") else None
    batch = case.batch(ids, mask, labels, pictures)
    model, records = case.model, case.records
    with torch.no_grad():
        logits = model(batch, return_logits=True).logits
        if case.has(f"{name}.inputs_embeds"):
            embeds = model.prepare(batch).inputs_embeds[:, ::4]
            close_where(mask[:, ::4], embeds, case.tensor(f"{name}.inputs_embeds"))
    close_where(mask[:, ::8], logits[:, ::8, ::4], case.tensor(f"{name}.logits"))
    model.zero_grad()
    output = model(batch)
    loss = output.loss_sum / output.num_tokens
    torch.testing.assert_close(loss.detach(), case.tensor(f"{name}.loss"), rtol=0, atol=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    grads = {theirs: parameters[ours].grad for theirs, ours in published(case).items()}
    norms: dict[str, float | None] = records[f"{name}.grad_norms"]
    assert set(norms) <= set(grads)
    for key, grad in grads.items():
        torch.testing.assert_close(
            grad.norm().item(), norms.get(key) or 0.0, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )
        if case.has(f"{name}.grad.{key}"):
            want = case.tensor(f"{name}.grad.{key}")
            assert (grad - want).norm() <= 1e-4 * want.norm(), key
    total = math.sqrt(sum(g.norm().item() ** 2 for g in grads.values()))
    assert total == pytest.approx(records[f"{name}.total_grad_norm"], rel=1e-5)
    model.zero_grad()


def test_training_loop(case: MmgptCase) -> None:
    """Six micro-steps: vision and language batch with a backward pass each, clipping after every micro-step."""
    told: dict[str, Any] = case.records["loop"]
    model = case.load()
    model.train()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decayed = [n for n, _ in split_parameters(model, ["inserts"])[0]]
    names = {ours: theirs for theirs, ours in published(case).items()}
    assert {names[n] for n in decayed} == set(told["weight_decay_names"])
    base, accumulate = told["learning_rate"], told["gradient_accumulation_steps"]
    steps = len(told["grad_norm_before_clip_per_microstep"])
    optimizer = build_optimizer(
        model,
        lr=base,
        weight_decay=told["weight_decay"],
        beta2=told["betas"][1],
        device=model.device,
        decay_on=["inserts"],
    )
    plan = Plan(base, warmup_steps=told["warmup_steps"], total_steps=steps // accumulate)
    schedule = build_schedule(told["scheduler"], plan)
    rates: list[float] = []
    for micro in range(steps):
        losses = []
        for kind in ("v", "l"):
            get = lambda key, kind=kind, micro=micro: case.tensor(f"loop.{kind}{micro}.{key}")  # noqa: E731
            pictures = get("image")[:, None, None] if kind == "v" else None
            output = model(case.batch(get("input_ids"), None, get("labels"), pictures))
            loss = output.loss_sum / output.num_tokens
            (loss / accumulate).backward()
            losses.append(loss.item())
        want = told["loss_per_microstep_vision_then_language"][micro]
        assert losses == pytest.approx(want, abs=1e-5, rel=1e-5), micro
        norm = torch.nn.utils.clip_grad_norm_(named.values(), told["max_grad_norm"])
        assert norm.item() == pytest.approx(told["grad_norm_before_clip_per_microstep"][micro], rel=1e-4), micro
        if (micro + 1) % accumulate == 0:
            rates.append(schedule(len(rates)))
            set_lr(optimizer, rates[-1])
            optimizer.step()
            optimizer.zero_grad()
    assert rates == pytest.approx([pair[0] for pair in told["lr_used_at_each_optimizer_step"]])
    after = case.load(case.tuned)
    outliers = values = 0
    for name, want in after.named_parameters():
        if want.requires_grad:
            apart = (named[name].detach() - want.detach()).abs() > 2e-4
            outliers, values = outliers + int(apart.sum()), values + apart.numel()
    assert outliers <= values / 1000


def example(case: MmgptCase, ids: list[int], pictures: list[Tensor]) -> Example:
    """A prompt of recorded ids; its first marks stand for the pictures, and further ones are missing media."""
    marked = [MEDIA_TOKEN if i == case.image and pictures else i for i in ids]
    return Example(marked, [IGNORE_INDEX] * len(ids), pictures)


def test_generation(case: MmgptCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded runs, cached and uncached, greedy and with beams."""
    runs = json.loads((case.folder / "generation.json").read_text())
    monkeypatch.setattr(case.model.llm, "banned_ids", ())  # published code bans nothing
    images = next(p for p in (case.folder / "images", case.folder.parent / "images") if p.is_dir())
    for run in runs:
        pictures = [case.processor.image(images / name)[None] for name in run["images"]]
        prompt = example(case, run["prompt_ids"], pictures)
        marks = prompt.ids.count(MEDIA_TOKEN)
        kind = Engine if marks == len(pictures) else FirstMarks
        model = case.model if kind is Engine else case.fused(uniform_when_missing=True)
        engine = kind(model, case.processor)
        told = run["args"]
        assert not told["do_sample"]
        options = CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=told["max_new_token"])
        options = options.replace(num_beams=told["num_beams"], length_penalty_form="prompt")
        for cached in (True, False):
            got = engine.generate_ids([prompt], options.replace(use_cache=cached), stops=())
            assert got == [run["generated_ids"]], (run["tag"], cached)


def said(turn: list[Any], images: Path) -> Message:
    """A recorded entry of the history as a message."""
    role, content = turn
    text, name = content if isinstance(content, list) else (content, None)
    parts = [Text(text)] if name is None else [Image(str(images / name)), Text(text)]
    return Message("user" if role == "Instruction" else "assistant", tuple(parts))


def test_answers_to_conversations(case: MmgptCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """From messages and picture files to the cleaned answer; whole, and in pieces."""
    monkeypatch.setattr(case.model.llm, "banned_ids", ())
    images = next(p for p in (case.folder / "images", case.folder.parent / "images") if p.is_dir())
    engine = Engine(case.model, case.processor)
    compared = 0
    for run in json.loads((case.folder / "generation.json").read_text()):
        shown = sum(isinstance(content, list) for _, content in run["history"])
        if run["buffer_size"] >= 0 or shown != len(run["images"]):
            continue
        messages = [said(turn, images) for turn in run["history"] if turn[1] is not None]
        options = CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=run["args"]["max_new_token"])
        options = options.replace(num_beams=run["args"]["num_beams"], stop=())
        assert engine.examples([messages])[0].ids == example(case, run["prompt_ids"], run["images"]).ids
        assert engine.generate([messages], options) == [run["answer"]], run["tag"]
        assert "".join(engine.stream(messages, options)) == run["answer"], run["tag"]
        compared += 1
    assert compared


def test_another_mark_than_the_tokenizer_has(case: MmgptCase) -> None:
    cfg = case.composition(fusion={"name": "cross_attn", "image_token_id": 5}).model
    with pytest.raises(ConfigError, match=f"image_token_id is 5, but the tokenizer's '<image>' is {case.image}"):
        build_processor(cfg)


def test_batched_generation(case: MmgptCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.model.llm, "banned_ids", ())
    ids, mask, told = (case.tensor(f"gen_batch.{key}") for key in ("input_ids", "attention_mask", "output_ids"))
    pictures = case.tensor("gen_batch.vision_x")
    rows = [example(case, ids[r][mask[r] > 0].tolist(), list(pictures[r])) for r in range(len(ids))]
    new = told.shape[1] - ids.shape[1]
    options = CHAT.replace(do_sample=False, repetition_penalty=1.0, max_new_tokens=new)
    got = Engine(case.model, case.processor).generate_ids(rows, options, stops=())
    for row, want in zip(got, told[:, ids.shape[1] :].tolist(), strict=True):
        assert row + [0] * (new - len(row)) == want


def test_files_of_the_trainer(case: MmgptCase) -> None:
    """What the published trainer saved fits, in every form, and says the settings; ours has the recorded names."""
    recorded = json.loads((case.folder / "saved_keys.json").read_text())
    files = [p for p in sorted((case.folder / "lora").glob("*.pt")) if "two_tensors" not in p.name]
    assert case.folder / case.lora in files
    for file in files:
        model = case.load(f"lora/{file.name}", llm=_open_lora(case, "llm"), inserts=_open_lora(case, "inserts"))
        assert {n for n, p in model.named_parameters() if p.requires_grad} == set(published(case).values())
    told = next(v["model_state_dict"] for k, v in recorded.items() if k.startswith("checkpoint"))
    names = {f"module.{k}": list(dict(case.model.named_parameters())[v].shape) for k, v in published(case).items()}
    assert names == told


def _open_lora(case: MmgptCase, part: str) -> Any:
    """The composition's part with LoRA left to the file."""
    stored = case.composition().resolved["model"][part]
    if isinstance(stored, dict):
        return {**stored, "lora": None}
    return [{**entry, "lora": None} for entry in stored]


def test_loading_twice_gives_the_same(case: MmgptCase, tmp_path: Path) -> None:
    """Written out and read back: the release file, flat, prefixed, and with names of peft before 0.3."""
    content = read_content(case.folder / case.lora)
    flat = {k.removeprefix("module."): v for k, v in content["model_state_dict"].items()}
    old = {k.replace(".default.weight", ".weight"): v for k, v in flat.items()}
    want = {n: p.detach().clone() for n, p in case.model.named_parameters() if p.requires_grad}
    model = case.load()
    for number, form in enumerate((flat, {"model_state_dict": flat}, old)):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in want:
                    parameter.zero_()
        file = tmp_path / f"{number}.pt"
        torch.save(form, file)
        load_file(model, MmgptLora(), file)
        assert all(torch.equal(want[n], p) for n, p in model.named_parameters() if n in want)
