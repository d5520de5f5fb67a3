"""Gated cross-attention: who looks at what, and that every way through the model agrees."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.models.cross_attending import MARK, xattn
from vlm.common.errors import ConfigError, PromptError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example
from vlm.inference.decoding import Prompt, decode
from vlm.inference.generation import CHAT
from vlm.inference.stopping import StopCriteria
from vlm.models.build import build_model
from vlm.models.fusion.cross_attn import CrossAttention
from vlm.models.fusion.locations import locate
from vlm.models.inserts.gated_xattn import GatedCrossAttention
from vlm.models.lora import LoraOptions
from vlm.models.trainable import select_trainable
from vlm.testing import LLAMA, part

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = {
    "llama": dict(LLAMA),
    "gpt_neox": {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4},
    "opt": {**LLAMA, "model_type": "opt", "ffn_dim": 40, "word_embed_proj_dim": 32},
}
GREEDY = CHAT.replace(do_sample=False, max_new_tokens=6, repetition_penalty=1.0)


def logits(model, batch):
    with torch.no_grad():
        return model(batch, return_logits=True).logits


def prompt_of(model, batch) -> Prompt:
    with torch.no_grad():
        inputs = model.prepare(batch).left_padded()
    return Prompt(inputs.inputs_embeds, (inputs.segments > 0).long(), inputs.inserts)


def generate(model, batch, **options) -> list[list[int]]:
    return decode(
        model.llm.model, prompt_of(model, batch), GREEDY.replace(**options), StopCriteria(eos=(), bos=1, pad=0)
    )


def parse(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``tIt|It`` -> placeholders and segments; ``|`` begins a new sample, ``.`` is padding."""
    marks, segments, number = [], [], 1
    for letter in text:
        number += letter == "|"
        if letter != "|":
            marks.append(letter == "I")
            segments.append(0 if letter == "." else number)
    return torch.tensor([marks]), torch.tensor([segments])


@pytest.mark.parametrize(
    ("text", "previous", "following"),
    [
        ("ttIttIt", "0011122", "1112220"),
        ("ttItt", "00111", "11100"),
        ("ttt", "000", "000"),
        ("IIt", "122", "120"),
        ("..tIt", "00011", "00110"),
        ("tIt..", "01100", "11000"),
        ("tIt|tt|tIIt", "011000233", "110002230"),
    ],
)
def test_locations(text, previous, following) -> None:
    marks, segments = parse(text)
    for want, attend_previous in ((previous, True), (following, False)):
        assert locate(marks, segments, attend_previous)[0].tolist() == [int(n) for n in want]


def test_closed_gates_change_nothing(examples, batched) -> None:
    model = xattn()
    with torch.no_grad():
        for block in model.inserts[0].layers.values():
            block.attn_gate.zero_()
            block.ff_gate.zero_()
    rows = [Example([MARK if i == MEDIA_TOKEN else i for i in e.ids], e.labels) for e in examples]
    torch.testing.assert_close(logits(model, batched(examples)), logits(model, batched(rows)), **CLOSE)
    fresh = GatedCrossAttention(GatedCrossAttention.Config(every=2), 32, 4, 16)
    assert list(fresh.layers) == ["1", "3"]
    assert not any(b.attn_gate.any() or b.ff_gate.any() for b in fresh.layers.values())


def test_names_of_the_llm_stay(build) -> None:
    plain, model = build(), xattn()
    names = [n for n in model.state_dict() if n.startswith("llm.")]
    assert names == [n for n in plain.state_dict() if n.startswith("llm.")]
    assert model.bridge[-1].out_dim == 16 != model.llm.hidden_size


def test_a_mark_is_one_token(examples, batched) -> None:
    model = xattn()
    batch = batched(examples)
    inputs = model.prepare(batch)
    assert inputs.inputs_embeds.shape[:2] == batch.ids.shape
    here = inputs.inputs_embeds[batch.media_row, batch.media_pos]
    assert torch.equal(here, model.llm.embed(torch.full((len(here),), MARK)))


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("immediate", [False, True])
def test_rows_together_equal_rows_alone(examples, batched, previous, immediate) -> None:
    model = xattn(attend_previous=previous, immediate=immediate)
    together = logits(model, batched(examples))
    for row, example in enumerate(examples):
        alone = logits(model, batched([example]))[0]
        torch.testing.assert_close(together[row, : len(example.ids)], alone, **CLOSE)


def test_text_passes_untouched(examples, batched) -> None:
    """A row without media beside rows with media skips attention and feed-forward."""
    model = xattn()
    plain = xattn()
    plain.load_state_dict(model.state_dict())
    for layer in plain.llm.layers():
        layer.forward.inserts.clear()
    text = next(e for e in examples if not e.media)
    want = logits(plain, batched([text]))[0]
    row = examples.index(text)
    torch.testing.assert_close(logits(model, batched(examples))[row, : len(text.ids)], want, **CLOSE)


def test_who_sees_which_image(batched) -> None:
    """Changing an image changes the logits from the first position that looks at it on, and none before."""
    ids = [1, 11, MEDIA_TOKEN, 12, 13, MEDIA_TOKEN, 14, 15]
    torch.manual_seed(1)
    images = [torch.randn(1, 3, 28, 28) for _ in range(3)]
    make = lambda first, second: batched([Example(ids, [IGNORE_INDEX] * len(ids), [first, second])])  # noqa: E731
    begin = {(False, True): (0, 3), (True, True): (2, 5), (True, False): (2, 5), (False, False): (0, 3)}
    for (previous, immediate), starts in begin.items():
        model = xattn(attend_previous=previous, immediate=immediate)
        base = logits(model, make(*images[:2]))[0]
        for number, start in enumerate(starts):
            changed = [images[2] if n == number else images[n] for n in range(2)]
            apart = (logits(model, make(*changed))[0] - base).abs().amax(1) > 1e-5
            assert apart.nonzero()[0, 0] == start


def test_packing_and_recomputation_change_nothing(examples, batched, packed) -> None:
    def step(model, batch):
        model.zero_grad()
        output = model(batch)
        output.loss_sum.backward()
        return output.loss_sum, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    for fusion in ({}, {"attend_previous": True, "immediate": False}):
        want, grads = step(xattn(**fusion), batched(examples))
        assert len(grads) == 2 * 11
        for llm in ({"packing": False}, {"checkpointing": True}):
            got, others = step(xattn(llm=llm, **fusion), batched(examples))
            torch.testing.assert_close(got, want, **CLOSE)
            for name, grad in grads.items():
                torch.testing.assert_close(others[name], grad, rtol=1e-4, atol=1e-5, msg=name)
        for llm in ({"packing": False}, {}):
            got, _ = step(xattn(llm=llm, **fusion), packed(examples, 40))
            torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("immediate", [False, True])
def test_cached_generation_equals_teacher_forcing(examples, batched, family, previous, immediate) -> None:
    llm = {"config": {**FAMILIES[family], "model_type": family, "vocab_size": 61}}
    model = xattn(llm=llm, attend_previous=previous, immediate=immediate)
    told = generate(model, batched(examples))
    assert told == generate(model, batched(examples), use_cache=False)
    for row, example in enumerate(examples):
        ids = example.ids + told[row]
        whole = Example(ids, [IGNORE_INDEX] * len(ids), example.media)
        want = logits(model, batched([whole]))[0].argmax(1)
        assert want[len(example.ids) - 1 : -1].tolist() == told[row]


@pytest.mark.parametrize("previous", [False, True])
def test_beams_see_the_images_of_their_row(examples, batched, previous) -> None:
    model = xattn(attend_previous=previous)
    together = generate(model, batched(examples), num_beams=3)
    assert together == [generate(model, batched([e]), num_beams=3)[0] for e in examples]
    assert together == generate(model, batched(examples), num_beams=3, use_cache=False)


def test_calls_of_several_threads_do_not_meet(batched) -> None:
    model = xattn(attend_previous=True)
    torch.manual_seed(3)
    batches = []
    for media in (0, 1, 2, 1):
        ids = [1, *[MEDIA_TOKEN, 5] * media, 9]
        batches.append(batched([Example(ids, [IGNORE_INDEX] * len(ids), [torch.randn(1, 3, 28, 28)] * media)]))
    want = [generate(model, b, num_beams=1 + n % 2) for n, b in enumerate(batches)]
    assert len({str(w) for w in want}) > 1
    got: dict[int, list] = {}

    def work(number: int) -> None:
        got[number] = [generate(model, batches[number], num_beams=1 + number % 2) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[n] == [want[n]] * 3 for n in got)
    assert len(got) == len(batches)


def test_placement_augmentation(examples, batched) -> None:
    """Drawn once for each pass that records gradients, the same for all rows and layers; never without."""
    model = xattn(placement_augmentation=True)
    losses = {a: xattn(attend_previous=a)(batched(examples)).loss_sum.item() for a in (False, True)}
    assert losses[False] != losses[True]
    torch.manual_seed(5)
    drawn = [model(batched(examples)).loss_sum.item() for _ in range(12)]
    assert {round(loss, 3) for loss in drawn} == {round(loss, 3) for loss in losses.values()}
    with torch.no_grad():
        assert {model(batched(examples)).loss_sum.item() for _ in range(6)} == {losses[False]}


def test_missing_images(batched) -> None:
    """An error; with the option, text whose image is missing attends evenly to the others."""
    ids = [1, MEDIA_TOKEN, 12, MEDIA_TOKEN, 14]
    image = torch.randn(1, 3, 28, 28)
    batch = batched([Example(ids, [IGNORE_INDEX] * len(ids), [image, image])])
    short = type(batch)(**{**vars(batch), "pixels": batch.pixels[:1], "media_row": batch.media_row[:1]})
    short.media_pos = batch.media_pos[:1]
    with pytest.raises(PromptError, match=r"2 image placeholder\(s\) in the prompt, 1 image\(s\)"):
        xattn()(short)
    model = xattn(uniform_when_missing=True)
    with torch.no_grad():
        data = model.prepare(short).inserts
    assert data.tokens["location"].tolist() == [[0, 0, 1, 1, -1]]
    assert data.tokens["last"].tolist() == [[0] * 5]
    got = logits(model, short)[0]
    assert not torch.allclose(got[2:], logits(model, batch)[0, 2:])
    torch.testing.assert_close(got[:2], logits(model, batch)[0, :2], **CLOSE)


def test_lora_by_suffix(examples, batched) -> None:
    lora = LoraOptions(r=2, alpha=2, dropout=0.0, targets=["to_q", "to_kv", "to_out", "ff.1", "ff.3"])
    model = xattn(lora=lora, train=["inserts.lora"])
    training = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(training) == 2 * 5 * 2
    assert all(".lora_" in n for n in training)
    model(batched(examples)).loss_sum.backward()
    assert all(model.get_parameter(n).grad is not None for n in training)
    assert model.get_parameter("inserts.0.layers.1.ff.3.lora_B.default.weight").grad.any()


def test_text_only_batch_gives_every_gradient(examples, batched) -> None:
    model = xattn(train=["inserts", "bridge"])
    model(batched([e for e in examples if not e.media])).loss_sum.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_bfloat16(examples, batched) -> None:
    exact = xattn()
    want = exact(batched(examples)).loss_sum
    model = xattn().to(torch.bfloat16)
    model.compute_dtype = model.vision_dtype = torch.bfloat16
    select_trainable(model, ["inserts"])
    got = model(batched(examples)).loss_sum
    torch.testing.assert_close(got, want, rtol=0.03, atol=0)


def test_frames_of_a_medium_and_masked_tokens(batched) -> None:
    """Tokens of all frames are looked at; padded ones are not."""
    model = xattn()
    ids = [1, MEDIA_TOKEN, 12, 9]
    clip = torch.randn(2, 3, 28, 28)
    batch = batched([Example(ids, [IGNORE_INDEX] * len(ids), [clip])])
    visual = model.encode(batch.pixels)
    visual.tokens = torch.cat([visual.tokens, torch.randn_like(visual.tokens)], 2)
    visual.mask = torch.arange(visual.tokens.shape[2]).expand(visual.tokens.shape[:3]) < 3
    with torch.no_grad():
        got = model.llm(model.prepare(batch, visual))
        want = model.llm(model.prepare(batch, model.encode(batch.pixels)))
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("mark", [None, -1, 61])
def test_mark_outside_the_vocabulary(mark) -> None:
    with pytest.raises(ConfigError, match=f"image_token_id is {mark}, allowed: 0 to 60"):
        xattn(image_token_id=mark)


def test_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match="gated_xattn attends to media, but"):
        GatedCrossAttention(GatedCrossAttention.Config(), 32, 4, None)


def test_fusion_and_insert_belong_together(compose) -> None:
    insert = [part("gated_xattn", GatedCrossAttention.Config(every=1))]
    with pytest.raises(ConfigError, match=r"inserts\.0 reads first, last, location, which the fusion splice does not"):
        build_model(compose(inserts=insert))
    with pytest.raises(ConfigError, match=r"keeps media outside the sequence, but no part of model\.inserts"):
        build_model(compose(fusion=part("cross_attn", CrossAttention.Config(image_token_id=MARK))))


def test_banned_ids(examples, batched) -> None:
    model = xattn()
    free = generate(model, batched(examples))
    banned = tuple({i for row in free for i in row})
    for beams in (1, 3):
        options = GREEDY.replace(num_beams=beams)
        rows = decode(
            model.llm.model, prompt_of(model, batched(examples)), options, StopCriteria((), 1, 0, banned=banned)
        )
        assert not set(banned) & {i for row in rows for i in row}
    with pytest.raises(ConfigError, match=r"banned_ids: \[61\], allowed: 0 to 60"):
        xattn(llm={"banned_ids": [61]})
