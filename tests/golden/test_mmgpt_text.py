"""Golden: tokenizer, prompts, ids and labels of the published Multimodal-GPT code.

Runs on every case folder (one with ``tokenizer_probes.json``) below ``<golden root>/mmgpt``. The recorded id of
``<image>`` is a ``MEDIA_TOKEN`` here.
"""

from __future__ import annotations

import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm.common.errors import PromptError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Image, Message, Sample, Text
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.templates.alpaca import Alpaca
from vlm.processors.tokenizer.tokenizer import Tokenizer

from .mmgpt_corpora import recorded, recorded_sample, recorded_turns

PICTURE = Image(np.zeros((4, 4, 3), np.uint8))
SPECIAL = {
    "special_tokens": ["<|endofchunk|>", "<image>"],
    "new_pad_token": "<PAD>",
    "bos_id": 1,
    "eos_id": 2,
}
"""The published tokenizer options; they go into ``model.text``."""


class Case:
    """One case folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_folder(folder / "llama", "", **SPECIAL)
        self.image = self.tokenizer.encode("<image>")[0]

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def processor(self, limit: int = 512, **options: Any) -> Processor:
        recipe = ImageRecipe(ImageRecipe.Config(size=4))
        return Processor(self.tokenizer, Alpaca(Alpaca.Config(**options)), recipe, TextConfig(max_turn_len=limit))

    @cached_property
    def default(self) -> Processor:
        return self.processor()

    def marked(self, ids: list[int]) -> list[int]:
        """Recorded ids with ``MEDIA_TOKEN`` for ``<image>``."""
        return [MEDIA_TOKEN if i == self.image else i for i in ids]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" not in metafunc.fixturenames:
        return
    root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
    folders = sorted(p.parent for p in Path(root, "mmgpt").rglob("tokenizer_probes.json"))
    if "record" in metafunc.fixturenames:
        pairs = [(f, r) for f in folders for r in recorded(f)]
        names = [f"{f.name}-{r['dataset']}-{r['index']}-{r['seed']}" for f, r in pairs]
        metafunc.parametrize(("folder", "record"), pairs, ids=names)
    else:
        metafunc.parametrize("folder", folders, ids=[f.name for f in folders])


_cases: dict[Path, Case] = {}


@pytest.fixture
def case(folder: Path) -> Case:
    return _cases.setdefault(folder, Case(folder))


def messages(history: list[Any]) -> list[Message]:
    """A published history (role, text or (text, picture)) as a conversation; the open answer left out."""
    out = []
    for role, said in history:
        text, *pictures = said if isinstance(said, list) else [said]
        if text is not None:
            picture = [PICTURE] if pictures else []
            out.append(Message("user" if role == "Instruction" else "assistant", (*picture, Text(text))))
    return out


def prompt(segments: list[Any]) -> str:
    return "".join(s.text for s in segments)


def published_ids(case: Case, instruction: str, answer: str, limit: int) -> tuple[list[int], list[int]]:
    """The published rule for one turn: ids and labels."""
    ids = case.tokenizer.encode(instruction + answer, bos=True)[:limit]
    ids += [2] if len(ids) < limit else []
    masked = min(len(case.tokenizer.encode(instruction, bos=True)), limit)
    return case.marked(ids), [IGNORE_INDEX] * masked + ids[masked:]


def test_tokenizer_probes(case: Case) -> None:
    record = case.read("tokenizer_probes.json")
    tokenizer = case.tokenizer
    assert tokenizer.vocab_size == record["len"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, record["special"]["<PAD>"])
    for text, index in record["special"].items():
        assert tokenizer.encode(text) == [index]
    for probe in record["probes"]:
        ids = probe["input_ids"]
        assert tokenizer.encode(probe["text"], bos=True) == ids, probe["text"]
        assert tokenizer.decode(ids) == probe["decoded_skip_special"], probe["text"]
        shown = tokenizer.decode(ids, skip_special=False)  # the published one puts blanks around special tokens
        assert "".join(shown.split()) == "".join(probe["decoded"].split())


def test_broken_tokenizer_config(case: Case, tmp_path: Path) -> None:
    """A widespread conversion has empty strings for begin, end and unknown token, and another class name."""
    shutil.copy(case.folder / "llama" / "tokenizer.model", tmp_path)
    broken = {"bos_token": "", "eos_token": "", "unk_token": ""}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**broken, "tokenizer_class": "LLaMATokenizer"}))
    (tmp_path / "special_tokens_map.json").write_text("{}")
    tokenizer = Tokenizer.from_folder(tmp_path, "", **SPECIAL)
    record = case.read("tokenizer_probes.json")
    for probe in record["probes"]:
        assert tokenizer.encode(probe["text"], bos=True) == probe["input_ids"]


def test_prompts_of_histories(case: Case) -> None:
    for record in case.read("prompts.json"):
        processor = case.processor(keep_turns=record["buffer_size"])
        segments = processor.template.chat_segments(messages(record["history"]))
        assert prompt(segments) == record["prompt"]
        example = processor.encode_chat(messages(record["history"]))
        assert example.ids == case.marked(case.tokenizer.encode(record["prompt"], bos=True))
        # published: only the last picture was given, whatever the prompt said
        assert len(example.media) == record["prompt"].count("<image>") >= len(record["images_used"])


def test_generations(case: Case) -> None:
    for record in case.read("generation.json"):
        example = case.processor(keep_turns=record["buffer_size"]).encode_chat(messages(record["history"]))
        assert example.ids == case.marked(record["prompt_ids"])
        template = case.default.template
        assert template.clean(record["decoded"]) == record["answer"]
        assert template.clean(case.tokenizer.decode(record["generated_ids"])) == record["answer"]


def test_recorded_samples(case: Case, record: dict[str, Any]) -> None:
    """Prompt text, ids and labels of every recorded training sample."""
    sample = recorded_sample(case.folder, record)
    segments = case.default.template.train_segments(sample, random.Random(0))
    asked, answers = record["instruction"], record["answer"]
    pairs = list(zip(asked, answers, strict=True)) if isinstance(asked, list) else [(asked, answers)]
    assert prompt(segments) == "".join(q + a for q, a in pairs)
    example = case.default.encode_train(sample, random.Random(0))
    assert example.ids == case.marked(record["input_ids"])
    assert example.labels == record["labels"]
    assert len(recorded_turns(record)) == sum(s.eos for s in segments)


def test_first_turns_of_training_are_chat_prompts(case: Case, record: dict[str, Any]) -> None:
    sample = recorded_sample(case.folder, record)
    chat = case.default.encode_chat(sample.messages[:1])
    example = case.default.encode_train(sample, random.Random(0))
    assert chat.ids == example.ids[: len(chat.ids)]
    first = record["answer"][0] if isinstance(record["answer"], list) else record["answer"]
    answer = case.default.encode_answer(first)
    assert example.ids[len(chat.ids) : len(chat.ids) + len(answer)] == answer


@pytest.mark.parametrize("spare", [-9, -2, -1, 0, 1, 2, 400])
def test_turns_are_cut_on_the_right_and_lose_their_end(case: Case, spare: int) -> None:
    """The published limit is 512 for every turn; smaller ones here."""
    turns = [("What is it?", "A red boat.\n"), ("Why?", " It floats on the river.")]
    said = [(Message("user", (Text(q),)), Message("assistant", (Text(a),))) for q, a in turns]
    sample = Sample(tuple(m for pair in said for m in pair))
    texts = [s.text for s in case.default.template.train_segments(sample, random.Random(0))]
    limit = len(case.tokenizer.encode(texts[0] + texts[1], bos=True)) + spare
    want = [published_ids(case, texts[i], texts[i + 1], limit) for i in (0, 2)]
    example = case.processor(limit).encode_train(sample, random.Random(0))
    assert example.ids == [i for ids, _ in want for i in ids]
    assert example.labels == [label for _, labels in want for label in labels]


def test_finished_prompts(case: Case) -> None:
    """``<image>`` in a finished prompt stands for a picture."""
    for record in case.read("generation.json"):
        pictures = [PICTURE] * record["prompt"].count("<image>")
        assert case.default.encode_prompt(record["prompt"], pictures).ids == case.marked(record["prompt_ids"])
    for text in [t for texts in case.read("case.json")["texts"].values() for t in texts]:
        pictures = [PICTURE] * text.count("<image>")
        want = case.marked(case.tokenizer.encode(text, bos=True))
        assert case.default.encode_prompt(text, pictures).ids == want
        with pytest.raises(PromptError, match=f"{len(pictures)} image placeholders but {len(pictures) - 1} media"):
            case.default.encode_prompt(text, pictures[1:])


def test_marks_in_the_users_words_stay_words(case: Case) -> None:
    words = "What does <image> mean in <s>html</s>?"
    example = case.default.encode_chat([Message("user", (PICTURE, Text(words)))])
    assert example.ids.count(MEDIA_TOKEN) == len(example.media) == 1
    assert not {2, case.image} & set(example.ids)
    assert example.ids.count(1) == 1
    assert case.default.media_id == case.image
