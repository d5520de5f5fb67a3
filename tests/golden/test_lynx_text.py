"""Golden: prompts, ids and labels of the published Lynx code.

Runs on every case folder (one with ``case.json`` and ``images.jsonl``) below ``<golden root>/lynx``.
"""

from __future__ import annotations

import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Image, Message, Sample, Text, Video
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.lynx.template import UserBot

NEW_PAD = "[PAD]"
"""Added by the published code where the folder names no pad token."""

MEDIA = {"image": Image(np.zeros((4, 4, 3), np.uint8)), "video": Video("clip")}


class Case:
    """One case folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.case = json.loads((folder / "case.json").read_text())
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_folder(folder / self.config["llm_folder"]["path"], new_pad_token=NEW_PAD)
        self.width: int = self.config["bridge"]["num_latents"]

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return file.get_tensor(name)

    def processor(self, **text: Any) -> Processor:
        recipe = ImageRecipe(ImageRecipe.Config(size=4))
        clip = lambda source, name, rng: torch.zeros(3, 3, 4, 4)  # noqa: E731
        return Processor(
            self.tokenizer, UserBot(UserBot.Config()), recipe, TextConfig(**{"max_txt_len": 100, **text}), clip
        )

    @cached_property
    def default(self) -> Processor:
        return self.processor(max_input_len=self.config["peer_config"]["max_input_tokens"])

    def questions(self, kind: str) -> list[str]:
        return [json.loads(line)["question"] for line in (self.folder / f"{kind}s.jsonl").read_text().splitlines()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        found = sorted(p.parent for p in Path(root, "lynx").rglob("case.json"))
        folders = [p for p in found if (p / "images.jsonl").is_file()]
        metafunc.parametrize("folder", folders, ids=[p.name for p in folders])


@pytest.fixture
def case(folder: Path) -> Case:
    return Case(folder)


def real(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def test_special_ids(case: Case) -> None:
    tokenizer, said = case.tokenizer, case.case["tokenizer"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk) == tuple(said[k][1] for k in ("bos", "eos", "unk"))
    assert (tokenizer.pad, tokenizer.vocab_size) == (said["pad"][1], said["len"])


def test_a_pad_token_is_added_where_the_folder_names_none(case: Case, tmp_path: Path) -> None:
    folder = case.folder / case.config["llm_folder"]["path"]
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    said = case.case.get("pad_branch", {"pad_token": NEW_PAD, "pad_token_id": case.config["llm"]["vocab_size"]})
    assert Tokenizer.from_folder(tmp_path, new_pad_token=said["pad_token"]).pad == said["pad_token_id"]
    assert Tokenizer.from_folder(folder, new_pad_token=said["pad_token"]).pad == case.case["tokenizer"]["pad"][1]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_prompts(case: Case, kind: str) -> None:
    want = real(case.tensor(f"{kind}/input_ids"), case.tensor(f"{kind}/input_atts"))
    record = case.case["prompts"][kind]
    for question, text, ids in zip(case.questions(kind), record["text"], want, strict=True):
        asked = [Message("user", (MEDIA[kind], Text(question)))]
        assert "".join(s.text for s in case.default.template.chat_segments(asked)) == text
        assert case.default.encode_chat(asked).ids == [MEDIA_TOKEN, *ids]


def test_long_prompts_lose_their_beginning(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    record = case.case.get("truncation")
    if record is None:
        pytest.skip("the case has none")
    before, _, after = UserBot.Config().prompt_template.lower().partition("{}")
    question = record["text"].removeprefix(before).removesuffix(after)
    asked = Message("user", (MEDIA["image"], Text(question)))
    limit = record["max_input_tokens"]
    whole = case.processor().encode_chat([asked])
    assert whole.ids == [MEDIA_TOKEN, *record["full_ids"]]
    default = case.processor(max_input_len=limit)
    assert default.encode_chat([asked]).ids == [MEDIA_TOKEN, *record["kept_ids"]]
    exact = len(record["full_ids"])
    assert f"prompt of {exact} tokens cut to its last {limit} (model.text.max_input_len)" in caplog.text
    caplog.clear()
    assert case.processor(max_input_len=exact).encode_chat([asked]).ids == whole.ids
    assert not caplog.text
    assert case.processor(max_input_len=exact - 1).encode_chat([asked]).ids == [MEDIA_TOKEN, *record["full_ids"][1:]]
    trained = default.encode_train(Sample((asked, Message("assistant", (Text("yes"),)))), random.Random(0))
    assert trained.ids[: limit + 1] == [MEDIA_TOKEN, *record["kept_ids"]]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_training_ids_and_labels(case: Case, kind: str) -> None:
    name = f"train_{kind}"
    want = real(case.tensor(f"{name}/input_ids"), case.tensor(f"{name}/text_mask"))
    labels = real(case.tensor(f"{name}/labels"), case.tensor(f"{name}/attention_mask"))
    texts = case.case["train"][name]["texts"]
    for question, text, ids, row in zip(case.questions(kind), texts, want, labels, strict=True):
        asked = Message("user", (MEDIA[kind], Text(question)))
        answer = text.partition("\nbot: ")[2].upper()
        example = case.default.encode_train(Sample((asked, Message("assistant", (Text(answer),)))), random.Random(0))
        assert example.ids == [MEDIA_TOKEN, *ids]
        assert [IGNORE_INDEX] * case.width + example.labels[1:] == row
        prompt = case.default.encode_chat([asked]).ids
        assert prompt + case.default.encode_answer(answer) == example.ids
