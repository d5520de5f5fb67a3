"""Golden: prompts and generation of the published Lynx code, greedy and with beams.

Runs on every case folder below ``<golden root>/lynx``.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from vlm.common.types import Image, Message, Text, Video
from vlm.inference.beams import Hypotheses
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.processors.tokenizer.tokenizer import Tokenizer

from .helpers_lynx import LynxCase, parametrize

FEATURES = {"rtol": 0, "atol": 1e-4}
KINDS = ("image", "video", "text_only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> LynxCase:
    return LynxCase(request.param)


@pytest.fixture(scope="module")
def engine(case: LynxCase) -> Engine:
    tokenizer = Tokenizer.from_folder(case.file("llm"), new_pad_token="[PAD]")
    template = SimpleNamespace(config=SimpleNamespace(truncate_at=[]), stop=[], clean=str.strip)
    return Engine(case.model, SimpleNamespace(tokenizer=tokenizer, template=template))


def options(arguments: dict) -> Generation:
    """The published arguments as our options."""
    defaults = {"num_beams": 5, "max_new_tokens": 64, "min_length": 2, "length_penalty": 1.0}
    defaults |= {"no_repeat_ngram_size": 3, "repetition_penalty": 1.0}
    return CHAT.replace(do_sample=False, **{name: arguments.get(name, value) for name, value in defaults.items()})


def runs(case: LynxCase, kind: str) -> dict[str, dict]:
    """The recorded deterministic runs over all prompts of a kind."""
    found = {n: r for n, r in case.records["generate"].items() if n.startswith(f"gen_{kind}_")}
    return {
        name: record
        for name, record in found.items()
        if not record["arguments"].get("use_nucleus_sampling") and "_alone" not in name
    }


@pytest.mark.parametrize("kind", KINDS)
def test_prompts(case: LynxCase, engine: Engine, kind: str) -> None:
    """Padding stands in front here and in the middle there; real positions are the same, and so are their logits."""
    if f"gen_{kind}/first_step_logits" not in case.tensors:
        pytest.skip("the case has none")
    prompt = engine.prompt(case.prompts(kind))
    mask = case.tensors[f"gen_{kind}/attention_mask"]
    assert torch.equal(prompt.mask.sum(1), mask.sum(1))
    real, theirs = prompt.mask.bool(), mask.bool()
    assert torch.equal(prompt.positions[real], case.tensors[f"gen_{kind}/position_ids"][theirs])
    if f"gen_{kind}/inputs_embeds" in case.tensors:
        torch.testing.assert_close(prompt.embeds[real], case.tensors[f"gen_{kind}/inputs_embeds"][theirs], **FEATURES)
    with torch.no_grad():
        logits = engine.model.llm.model(
            inputs_embeds=prompt.embeds, attention_mask=prompt.mask, position_ids=prompt.positions
        ).logits
    torch.testing.assert_close(logits[:, -1], case.tensors[f"gen_{kind}/first_step_logits"], **FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_ids(case: LynxCase, engine: Engine, kind: str) -> None:
    for name, record in runs(case, kind).items():
        for cached in (True, False):
            generation = options(record["arguments"]).replace(use_cache=cached)
            ids = engine.generate_ids(case.prompts(kind), generation)
            assert ids == record["new_ids"], (name, cached)
            alone = [engine.generate_ids([prompt], generation)[0] for prompt in case.prompts(kind)]
            assert alone == ids, name
        assert engine.generate(case.prompts(kind), options(record["arguments"])) == record["text"]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_shipped_composition_answers_the_recorded_files(case: LynxCase, kind: str) -> None:
    """From the YAML, the weight files and the annotation file to the lines that the published program wrote."""
    engine = Engine.load(case.shipped(frame_sampling="segments"), device="cpu")
    records = [json.loads(line) for line in (case.folder / f"{kind}s.jsonl").read_text().splitlines()]
    medium = {"image": Image, "video": Video}[kind]
    questions = [
        [Message("user", (medium(str(case.folder / record[kind])), Text(record["question"])))] for record in records
    ]
    wanted = options(case.config["peer_config"])
    assert engine.default_generation() == wanted.replace(
        num_beams=5, length_penalty=-2.0, min_length=2, no_repeat_ngram_size=2, top_k=3, max_new_tokens=64
    )
    answers = engine.generate(questions, wanted)
    lines = (case.folder / f"result_{kind}s_beam.jsonl").read_text().splitlines()
    found = [{"index": r["index"], "text_output": a} for r, a in zip(records, answers, strict=True)]
    assert found == [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_beam_scores(case: LynxCase, engine: Engine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published scores: the sum over ``length ** penalty``, the dummy token counted."""
    for name, record in runs(case, kind).items():
        if record.get("sequences_scores") is None:
            continue
        scored: dict[tuple[int, ...], float] = {}
        add = Hypotheses.add

        def keep(self: Hypotheses, ids: list[int], total: float, length: int, to=scored, add=add) -> None:
            to[tuple(ids)] = total / (self.prefix + length) ** self.penalty
            add(self, ids, total, length)

        monkeypatch.setattr(Hypotheses, "add", keep)
        ids = engine.generate_ids(case.prompts(kind), options(record["arguments"]))
        monkeypatch.undo()
        for row, wanted in zip(ids, record["sequences_scores"], strict=True):
            assert scored[tuple(row)] == pytest.approx(wanted, rel=1e-5), name
