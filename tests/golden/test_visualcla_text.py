"""Golden: prompts, ids, labels, decoding and streams of the published VisualCLA code.

Runs on every case folder (one with ``case.json`` and ``lora_model/``) below ``<golden root>/visualcla``, with the
template of the shipped composition. A recorded run of placeholders is one ``MEDIA_TOKEN`` here.
"""

from __future__ import annotations

import json
import random
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Message, Sample, Text
from vlm.config.api import load_config
from vlm.inference.streaming import TextStream, cleaner, join, marks_of
from vlm.processors.processor import Processor, build_processor
from vlm.processors.templates.roles import IMAGE_PLACEHOLDER
from vlm.processors.tokenizer.tokenizer import Tokenizer


class Case:
    """One case folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = json.loads((folder / "case.json").read_text())
        self.config = json.loads((folder / "config.json").read_text())
        self.queries: int = self.config["num_patch"]
        self.slot: int = self.config["special_ids"]["<img_token>"]
        self.picture = Image(folder / "image.png")

    def processor(self, tokenizer: Path | None = None, **options: Any) -> Processor:
        """The shipped composition over this folder's tokenizer."""
        files = {name: str(self.folder / name) for name in ("text_model", "vision_model", "lora_model")}
        sizes = {"image_size": self.config["vision_config"]["image_size"], "num_query_token": self.queries}
        model = {"arch": "visualcla", "model_type": "7b_v0_1", **files, **sizes, **options}
        if tokenizer is not None:
            model["lora_model"] = str(tokenizer)
        return build_processor(load_config({"model": model}, check="none").model)

    @cached_property
    def default(self) -> Processor:
        return self.processor()

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return file.get_tensor(name)

    def marked(self, ids: list[int]) -> list[int]:
        """Recorded ids with one ``MEDIA_TOKEN`` for every run of placeholders."""
        out: list[int] = []
        at = 0
        while at < len(ids):
            if ids[at] == self.slot:
                assert ids[at : at + self.queries] == [self.slot] * self.queries
                at += self.queries - 1
            out.append(MEDIA_TOKEN if ids[at] == self.slot else ids[at])
            at += 1
        return out

    def fused(self, example: Example, values: list[int], fill: int) -> list[int]:
        """Values of an example with every medium as wide as its placeholders."""
        pairs = zip(example.ids, values, strict=True)
        return [v for i, value in pairs for v in ([fill] * self.queries if i == MEDIA_TOKEN else [value])]

    def messages(self, history: list[dict[str, Any]], text: str | None = None) -> list[Message]:
        """A published history, and a new instruction, as a conversation."""
        roles = {"instruction": "user", "response": "assistant"}
        turns = [*history]
        if text is not None:
            turns.append({"type": "instruction", "value": text, **({} if history else {"first_instruction": True})})
        out = []
        for turn in turns:
            picture = [self.picture] if "first_instruction" in turn else []
            out.append(Message(roles[turn["type"]], (*picture, Text(turn["value"]))))
        return out


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        found = sorted(p.parent for p in Path(root, "visualcla").rglob("case.json"))
        folders = [p for p in found if (p / "lora_model").is_dir()]
        metafunc.parametrize("folder", folders, ids=[p.name for p in folders])


@pytest.fixture
def case(folder: Path) -> Case:
    return Case(folder)


def other_spelling(case: Case, target: Path) -> Path:
    """The tokenizer folder with its additional special tokens written in the other of the two ways."""
    shutil.copytree(case.folder / "lora_model", target, ignore=shutil.ignore_patterns("adapter_model*"))
    file = target / "special_tokens_map.json"
    named = json.loads(file.read_text())
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    additional = [
        t if isinstance(t, dict) else {"content": t, "lstrip": True} for t in named["additional_special_tokens"]
    ]
    strips = any(token.get("lstrip") for token in additional)
    named["additional_special_tokens"] = [
        {"content": token["content"], **flags} if strips else token["content"] for token in additional
    ]
    file.chmod(0o644)
    file.write_text(json.dumps(named))
    config = target / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    for key in ("additional_special_tokens", "added_tokens_decoder"):
        settings.pop(key, None)
    config.chmod(0o644)
    config.write_text(json.dumps(settings))
    return target


def test_special_ids(case: Case) -> None:
    tokenizer = case.default.tokenizer
    for text, index in case.config["special_ids"].items():
        assert tokenizer.encode(text) == [index]
    assert tokenizer.pad == case.config["special_ids"]["<pad>"]
    assert tokenizer.vocab_size == case.config["text_config"]["vocab_size_after_resize"]


@pytest.mark.parametrize("files", [{"lora_model": ""}, {"visualcla_model": "merged_model"}])
def test_other_ways_in_give_the_same_ids(case: Case, files: dict[str, str]) -> None:
    """From scratch the marks are added to the LLM's tokenizer; a merged folder holds its own."""
    processor = case.processor(**{name: path and str(case.folder / path) for name, path in files.items()})
    for record in case.case["prompts"]:
        example = processor.encode_chat(case.messages(record["history"], record["text"]))
        if files.get("lora_model") is None:
            assert example.ids == case.marked(record["input_ids"])
        else:  # added marks are plain strings
            kinds = ("input_ids", "input_ids_other_special_token_kind")
            assert example.ids == case.marked(min((record[k] for k in kinds), key=len))
    assert processor.tokenizer.pad == case.config["special_ids"]["<pad>"]


def test_prompts_of_conversations(case: Case) -> None:
    for record in case.case["prompts"]:
        messages = case.messages(record["history"], record["text"])
        segments = case.default.template.chat_segments(messages)
        slots = "<img_token>" * case.queries
        assert "<s>" + "".join(s.text if s.medium is None else slots for s in segments) == record["prompt"]
        example = case.default.encode_chat(messages)
        assert example.ids == case.marked(record["input_ids"])
        assert len(example.media) == sum(m.role == "user" and bool(m.media) for m in messages)


def test_both_spellings_of_special_tokens(case: Case, tmp_path: Path) -> None:
    processor = case.processor(tokenizer=other_spelling(case, tmp_path / "other"))
    differ = 0
    for record in case.case["prompts"]:
        example = processor.encode_chat(case.messages(record["history"], record["text"]))
        assert example.ids == case.marked(record["input_ids_other_special_token_kind"])
        differ += record["input_ids"] != record["input_ids_other_special_token_kind"]
    assert differ


def test_finished_prompts(case: Case) -> None:
    for record in case.case["prompts"]:
        text = record["prompt"].removeprefix("<s>").replace("<img_token>" * case.queries, IMAGE_PLACEHOLDER)
        example = case.default.encode_prompt(text, [case.picture] * text.count(IMAGE_PLACEHOLDER))
        assert example.ids == case.marked(record["input_ids"])
        assert Tokenizer.from_folder(case.folder / "lora_model").encode(record["prompt"]) == record["input_ids"]


def test_generations_decode_and_stream_to_the_recorded_responses(case: Case) -> None:
    template, tokenizer = case.default.template, case.default.tokenizer
    for record in case.case["generations"]:
        messages = case.messages(record["history_before"], record["text"])
        assert case.default.encode_chat(messages).ids == case.marked(record["input_ids"])
        bos, *new = record["output_ids"]
        assert bos == tokenizer.bos
        assert template.clean(tokenizer.decode(new)) == record["response"]
        stream = TextStream(tokenizer, cleaner(template, "chat"), marks_of(template))
        pieces = [stream.push(i) for i in new]
        assert join([*pieces, stream.finish()]) == record["response"]
        later = case.messages(record["history_after"])
        assert [m.text for m in later[-2:]] == [record["text"], record["response"]]


def test_training_ids_and_labels(case: Case) -> None:
    ids, mask, labels = (case.tensor(f"train.{n}").tolist() for n in ("input_ids", "attention_mask", "labels"))
    for row, record in enumerate(case.case["train_texts"]):
        picture = [case.picture] if record["has_image"] else []
        asked = Message("user", (*picture, Text(record["instruction"])))
        sample = Sample((asked, Message("assistant", (Text(record["response"]),))))
        example = case.default.encode_train(sample, random.Random(0))
        real = sum(mask[row])
        assert example.ids == case.marked(ids[row][:real])
        assert case.fused(example, example.labels, IGNORE_INDEX) == labels[row][:real]
        chat = case.default.encode_chat([asked])
        assert chat.ids == example.ids[: len(chat.ids)]
        assert example.ids[len(chat.ids) :] == case.default.encode_answer(record["response"])


def test_pictures_at_the_head(case: Case) -> None:
    """The layout of the first training stage: begin id, marks, picture between them, caption."""
    processor = case.processor(image_at_head=True)
    ids, mask, labels = (case.tensor(f"head.{n}").tolist() for n in ("input_ids", "attention_mask", "labels"))
    fused = case.tensor("head.text_labels").tolist()
    for row, text in enumerate(case.case["head_texts"]):
        caption = Message("assistant", (Text(text.removesuffix("</s>")),))
        example = processor.encode_train(Sample((Message("user", (case.picture,)), caption)), random.Random(0))
        real = sum(mask[row])
        assert example.ids[:4][2] == MEDIA_TOKEN
        kept = [(i, label) for i, label in zip(example.ids, example.labels, strict=True) if i != MEDIA_TOKEN]
        assert [i for i, _ in kept] == ids[row][:real]
        assert [label for _, label in kept] == labels[row][:real]
        assert case.fused(example, example.labels, IGNORE_INDEX) == fused[row][: real + case.queries]
        assert processor.encode_chat([Message("user", (case.picture,))]).ids == example.ids[:4]


def test_marks_in_the_users_words_stay_words(case: Case) -> None:
    """Published fault: such words were read as marks. Ids of other words do not change."""
    words = "a <img> b </s> <img_token> <s> <image_placeholder>"
    example = case.default.encode_chat([Message("user", (case.picture, Text(words)))])
    specials = set(case.config["special_ids"].values()) | {MEDIA_TOKEN}
    start, end = case.config["special_ids"]["<img>"], case.config["special_ids"]["</img>"]
    assert [i for i in example.ids if i in specials] == [1, start, MEDIA_TOKEN, end]
    assert words in case.default.tokenizer.decode([i for i in example.ids if i >= 0])
    reply = case.default.encode_train(
        Sample((Message("user", (Text("q"),)), Message("assistant", (Text("a </s> b"),)))), random.Random(0)
    )
    assert reply.ids.count(2) == 1


def test_pictures_in_later_turns(case: Case) -> None:
    turns = [
        Message("user", (case.picture, Text("1"))),
        Message("assistant", (Text("2"),)),
        Message("user", (case.picture, Text("3"))),
    ]
    example = case.default.encode_chat(turns)
    assert example.ids.count(MEDIA_TOKEN) == len(example.media) == 2
    raw = "".join(s.text if s.medium is None else IMAGE_PLACEHOLDER for s in case.default.template.chat_segments(turns))
    assert raw.endswith(f"### Response:2\n\n### Instruction: \n<img>{IMAGE_PLACEHOLDER}</img>\n3\n\n### Response:")
    assert case.default.encode_prompt(raw, [case.picture] * 2).ids == example.ids
