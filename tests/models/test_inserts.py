"""Inserts: where they work, that they leave the LLM's names alone, and that every way through the LLM agrees."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlm.common.errors import ConfigError
from vlm.common.registry import register_fusion, register_insert
from vlm.inference.decoding import Prompt, StopCriteria, decode
from vlm.inference.generation import CHAT
from vlm.models.build import build_model
from vlm.models.fusion.splice import Splice
from vlm.models.inserts.adapter import Adapter
from vlm.models.inserts.base import Insert, InsertData
from vlm.models.llm.hf import HFCausalLM
from vlm.models.trainable import select_trainable, trainable_table
from vlm.testing import LLAMA, part

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = {
    "gpt_neox": {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4},
    "opt": {**LLAMA, "ffn_dim": 40, "word_embed_proj_dim": 32},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    "qwen2": {**LLAMA, "num_key_value_heads": 2},
}


@register_insert("tint_of_the_tests")
class Tint(Insert):
    """Adds to each position a vector of its own, chosen by data of the call."""

    needs_data = True

    def __init__(self, config, llm_dim, num_layers, visual_dim) -> None:
        super().__init__()
        self.layers["1"] = nn.Linear(visual_dim, llm_dim)

    def before(self, module, hidden, data):
        if "which" not in data.tokens:
            return hidden
        return hidden + module(data.shared["palette"][data.tokens["which"]])


@register_fusion("tint_of_the_tests")
class TintFusion(Splice):
    """Splice that also gives each position the number of its id modulo 3."""

    def __call__(self, batch, visual):
        inputs = super().__call__(batch, visual)
        if visual is None:
            return inputs
        which = (inputs.position_ids * 7 + inputs.segments) % 3
        palette = visual.tokens.flatten(0, 2)[:3]
        return dataclasses.replace(inputs, inserts=InsertData({"which": which}, {"palette": palette}, {"which": 1}))


def with_adapter(**options):
    return {"inserts": [part("adapter", Adapter.Config(every=1, **options))], "train": ["bridge.1", "inserts"]}


def tinted(compose, **llm):
    parts = compose(
        llm=part("hf", HFCausalLM.Config(**{"config": dict(LLAMA), **llm})),
        fusion=part(f"{__name__}:TintFusion", Splice.Config()),
        inserts=[part(f"{__name__}:Tint", None)],
        train=["bridge.1", "inserts"],
    )
    torch.manual_seed(0)
    return build_model(parts)


def step(model, batch):
    model.zero_grad()
    output = model(batch)
    output.loss_sum.backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_keys_and_places(build) -> None:
    plain, model = build(), build(**with_adapter(first=1))
    names = [n for n in model.state_dict() if not n.startswith("inserts.")]
    assert names == list(plain.state_dict())
    assert {n.split(".")[3] for n in model.state_dict() if n.startswith("inserts.0.layers.")} == {"1"}
    assert "inserts.0" in trainable_table(model)
    norm = build(**with_adapter()).inserts[0].layers["0"].norm
    assert norm.eps == 1e-5


def test_adapter_formula(build, examples, batched) -> None:
    """The output of a decoder layer with its adapter is the plain output plus the bottleneck of it."""
    plain, model = build(), build(**with_adapter())
    model.load_state_dict(plain.state_dict(), strict=False)
    inputs = plain.prepare(batched(examples))
    seen: dict[str, torch.Tensor] = {}
    plain.llm.layers()[0].register_forward_hook(lambda _m, _i, out: seen.__setitem__("plain", out))
    model.llm.layers()[0].register_forward_hook(lambda _m, _i, out: seen.__setitem__("with", out))
    plain.llm(inputs)
    model.llm(inputs)
    a = model.inserts[0].layers["0"]
    h = seen["plain"]
    wanted = h + a.scaling * a.up(torch.nn.functional.silu(a.down(a.norm(h))))
    torch.testing.assert_close(seen["with"], wanted, rtol=0, atol=1e-6)


def test_identity_start_changes_nothing(build, examples, batched) -> None:
    plain = build()
    model = build(**with_adapter(identity_start=True))
    for name, tensor in plain.state_dict().items():
        model.state_dict()[name].copy_(tensor)
    assert model(batched(examples)).loss_sum.item() == plain(batched(examples)).loss_sum.item()
    with torch.no_grad():
        model.inserts[0].layers["0"].up.weight.normal_()
    assert model(batched(examples)).loss_sum.item() != plain(batched(examples)).loss_sum.item()


@pytest.mark.parametrize("kind", ["adapter", "data"])
def test_packing_padding_and_recomputation_change_nothing(build, compose, examples, batched, packed, kind) -> None:
    def make(**llm):
        if kind == "data":
            return tinted(compose, **llm)
        return build(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), **llm)), **with_adapter())

    rows = [e for e in examples if e.media]
    output, grads = step(make(), batched(rows))
    assert any(n.startswith("inserts") and g.abs().sum() > 0 for n, g in grads.items())
    for other in (make(packing=False), make(checkpointing=True), make(checkpointing=True, packing=False)):
        again, other_grads = step(other, batched(rows))
        torch.testing.assert_close(again.loss_sum, output.loss_sum, **CLOSE)
        assert set(grads) == set(other_grads)
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, rtol=1e-4, atol=1e-5)
    if kind == "adapter":
        dense, _ = step(make(), packed(rows, 40))
        torch.testing.assert_close(dense.loss_sum, output.loss_sum, **CLOSE)


def test_recomputed_inside_the_layer(build, examples, batched) -> None:
    """With checkpointing an adapter runs twice: forward, and again in the backward pass."""
    model = build(llm=part("hf", HFCausalLM.Config(config=dict(LLAMA), checkpointing=True)), **with_adapter())
    calls: list[int] = []
    model.inserts[0].layers["0"].register_forward_pre_hook(lambda *_: calls.append(1))
    step(model, batched(examples))
    assert len(calls) == 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_with_data_equals_teacher_forcing(compose, examples, batched, use_cache) -> None:
    model = tinted(compose)
    rows = [e for e in examples if e.media]
    batch = batched(rows)
    with torch.no_grad():
        inputs = model.prepare(batch).left_padded()
    prompt = Prompt(inputs.inputs_embeds, (inputs.segments > 0).long(), inputs.inserts)
    greedy = CHAT.replace(do_sample=False, max_new_tokens=5, repetition_penalty=1.0, use_cache=use_cache)
    ends = StopCriteria(eos=(), bos=1, pad=0)
    told = decode(model.llm.model, prompt, greedy, ends)
    for row, ids in enumerate(told):
        for count in range(1, len(ids) + 1):
            embeds, data = inputs.inputs_embeds[row : row + 1], inputs.inserts.moved(lambda v, r=row: v[r : r + 1])
            for token in ids[: count - 1]:
                embeds = torch.cat([embeds, model.llm.embed(torch.tensor([[token]]))], 1)
                data = data.extended()
            mask = torch.cat([prompt.mask[row : row + 1], torch.ones(1, count - 1, dtype=torch.long)], 1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad():
                out = model.llm.model(
                    inputs_embeds=embeds, attention_mask=mask, position_ids=positions, insert_data=data
                )
            assert out.logits[0, -1].argmax().item() == ids[count - 1]


def test_text_only_batch_gives_every_gradient(compose, examples, batched) -> None:
    model = tinted(compose)
    _, grads = step(model, batched([e for e in examples if not e.media]))
    assert set(grads) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_copy_uses_its_own_inserts(build, examples, batched) -> None:
    model = build(**with_adapter())
    twin = copy.deepcopy(model)
    before = model(batched(examples)).loss_sum.item()
    with torch.no_grad():
        twin.inserts[0].layers["1"].scaling.fill_(5)
    assert twin(batched(examples)).loss_sum.item() != before
    assert model(batched(examples)).loss_sum.item() == before


def test_frozen_inserts_and_globs(build) -> None:
    model = build(**with_adapter())
    chosen = select_trainable(model, {"inserts": True, "inserts.0.layers.0.*": False})
    assert chosen
    assert all(".layers.1." in n for n in chosen)
    model.train()
    assert not model.inserts[0].layers["0"].training
    assert model.inserts[0].layers["1"].training


def test_bfloat16_keeps_the_stream(compose, examples, batched) -> None:
    torch.manual_seed(0)
    exact = build_model(compose(**with_adapter()))
    model = build_model(compose(**with_adapter() | {"train": ["bridge.1"]}), dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    assert model.inserts[0].layers["0"].up.weight.dtype == torch.bfloat16
    assert model.inserts[0].layers["0"].norm.weight.dtype == torch.float32
    seen: list[torch.dtype] = []
    model.llm.layers()[0].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    got = model(batched(examples)).loss_sum
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(got, exact(batched(examples)).loss_sum, rtol=0.02, atol=0)


def test_meta_device_builds(compose) -> None:
    model = build_model(compose(**with_adapter()), device="meta")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_other_families_of_llm(build, compose, examples, batched, family) -> None:
    config = {**FAMILIES[family], "model_type": family, "vocab_size": 61}
    parts = part("hf", HFCausalLM.Config(config=config))
    _, grads = step(build(llm=parts, **with_adapter()), batched(examples))
    assert all(grads[n].abs().sum() > 0 for n in grads if n.endswith("up.weight"))
    _, grads = step(tinted(compose, **vars(parts.config)), batched([e for e in examples if e.media]))
    assert grads["inserts.0.layers.1.weight"].abs().sum() > 0


class SilentConfig(PreTrainedConfig):
    """A family of language models whose decoder passes its layers nothing but the hidden states."""

    model_type = "silent"
    hidden_size = 32
    num_hidden_layers = 2
    tie_word_embeddings = False


class SilentLayer(nn.Linear):
    def forward(self, hidden_states):
        return super().forward(hidden_states)


class SilentModel(PreTrainedModel):
    config_class = SilentConfig
    base_model_prefix = "model"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SilentLayer(config.hidden_size, config.hidden_size) for _ in range(2))
        self.post_init()

    def forward(self, inputs_embeds, **kwargs):
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return (inputs_embeds,)


class SilentForCausalLM(PreTrainedModel):
    config_class = SilentConfig
    base_model_prefix = "model"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model = SilentModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, inputs_embeds, **kwargs):
        return SimpleNamespace(logits=self.lm_head(self.model(inputs_embeds)[0]))


@pytest.fixture
def silent_family() -> Iterator[dict[str, object]]:
    """The configuration of a :class:`SilentForCausalLM`, known to transformers during the test."""
    AutoConfig.register("silent", SilentConfig)
    AutoModelForCausalLM.register(SilentConfig, SilentForCausalLM)
    yield {"model_type": "silent", "vocab_size": 61}
    AutoModelForCausalLM._model_mapping._extra_content.pop(SilentConfig)
    CONFIG_MAPPING._extra_content.pop("silent")


def test_families_that_pass_no_data_are_refused(compose, examples, batched, build, silent_family) -> None:
    """Inserts that read nothing work with them; those that need data say that it does not arrive."""
    _, grads = step(build(llm=part("hf", HFCausalLM.Config(config=silent_family)), **with_adapter()), batched(examples))
    assert all(grads[n].abs().sum() > 0 for n in grads if n.endswith("up.weight"))
    with pytest.raises(ConfigError, match="passes no further data to its layers"):
        tinted(compose, config=silent_family)(batched(examples))


def test_data_that_got_lost(compose, examples, batched) -> None:
    model = tinted(compose)
    inputs = dataclasses.replace(model.prepare(batched(examples[:1])), inserts=None)
    with pytest.raises(ConfigError, match="passes no further data to its layers"):
        model.llm(inputs)


@pytest.mark.parametrize("options", [{"every": 0}, {"first": 2}, {"first": -1}])
def test_no_layer_chosen(compose, options) -> None:
    with pytest.raises(ConfigError, match="choose no layer of an LLM with 2"):
        build_model(compose(inserts=[part("adapter", Adapter.Config(**options))]))


def test_calls_at_the_same_time_keep_their_data_apart(compose, examples, batched) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = tinted(compose)
    rows = [e for e in examples if e.media] * 3
    greedy = CHAT.replace(do_sample=False, max_new_tokens=6, repetition_penalty=1.0)

    def told(number: int) -> list[list[int]]:
        with torch.no_grad():
            inputs = model.prepare(batched([rows[number]]))
        prompt = Prompt(inputs.inputs_embeds, (inputs.segments > 0).long(), inputs.inserts)
        beams = greedy.replace(num_beams=1 + number % 2)
        return decode(model.llm.model, prompt, beams, StopCriteria(eos=(), bos=1, pad=0))

    alone = [told(n) for n in range(len(rows))]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(told, range(len(rows)))) == alone
