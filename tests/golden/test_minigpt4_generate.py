"""Golden: chat turns, batch generation, stop rules, context cutting and answer ranking of the published code.

Runs on every case folder below ``<golden root>/minigpt4`` that recorded them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.inference.stopping import stop_sequences
from vlm.inference.streaming import join
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.roles import Template
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.template import Llama2, MiniGPTv2, Vicuna0

from .helpers_minigpt4 import ModelCase

CONVERSATIONS: dict[str, type[Template]] = {"vicuna0": Vicuna0, "llama2": Llama2, "minigptv2": MiniGPTv2}
EMBEDS = {"rtol": 0, "atol": 1e-4}
KNOWN = ("max_new_tokens", "num_beams", "do_sample", "min_length", "top_p", "repetition_penalty", "length_penalty")


class Chat:
    """A case's records next to an engine that runs its files."""

    def __init__(self, folder: Path) -> None:
        self.case = ModelCase(folder)
        self.record = self.case.records["chat"]
        template = CONVERSATIONS[self.record["conversation"]]
        recipe = ImageRecipe(ImageRecipe.Config(size=self.case.config["vision"]["img_size"]))
        tokenizer = Tokenizer.from_folder(self.case.file("llm"))
        end = {k: v for k, v in self.case.config["constructor"].items() if k == "end_sym"}
        self.engine = Engine(self.case.model, Processor(tokenizer, template(template.Config(**end)), recipe))
        self.picture = Image(self.case.file(self.record["image"]))
        self.stops = tuple(map(tuple, self.record["stop_ids"]))

    def turns(self, count: int) -> list[Message]:
        """The conversation up to the open question number ``count - 1``."""
        messages: list[Message] = []
        for index, turn in enumerate(self.record["turns"][:count]):
            first = (self.picture,) if index == 0 else ()
            messages.append(Message("user", (*first, Text(turn["question"]))))
            messages.append(Message("assistant", (Text(turn["answer_after_cleanup"]),)))
        return messages[:-1]

    def new_ids(self, recorded: list[int]) -> list[int]:
        """Recorded ids without the dummy begin id and the filling after an end."""
        bos = self.engine.processor.tokenizer.bos
        assert recorded[0] == bos
        eos = self.engine.processor.tokenizer.eos
        ids = recorded[1:]
        return ids[: ids.index(eos) + 1] if eos in ids else ids


def options(kwargs: dict) -> Generation:
    return CHAT.replace(**{k: kwargs[k] for k in KNOWN}, temperature=float(kwargs["temperature"]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chat" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-root", default=None) or Path(__file__).parent
        files = sorted(Path(root, "minigpt4").rglob("eva_vit_g.pth"))
        folders = [f.parent for f in files if (f.parent / "llm").is_dir()]
        metafunc.parametrize("chat", folders, ids=[f.name for f in folders], indirect=True, scope="module")


@pytest.fixture(scope="module")
def chat(request: pytest.FixtureRequest) -> Chat:
    return Chat(request.param)


def test_every_turn(chat: Chat) -> None:
    assert chat.record["turns"]
    for index, turn in enumerate(chat.record["turns"]):
        generation = options(turn["generate_kwargs"])
        messages = chat.turns(index + 1)
        torch.testing.assert_close(
            chat.engine.prompt([messages], generation).embeds, chat.case.tensor(f"chat.turn{index}.embs"), **EMBEDS
        )
        ids = chat.engine.generate_ids([messages], generation, stops=chat.stops)[0]
        assert ids == chat.new_ids(turn["ids_with_leading_bos"])
        answer = chat.engine.processor.tokenizer.decode(ids)
        assert answer == turn["decoded"]
        assert chat.engine.generate([messages], generation) == [turn["answer_after_cleanup"]]
        assert join(chat.engine.stream(messages, generation)) == turn["answer_after_cleanup"]


def test_stop_sequences_are_derived(chat: Chat) -> None:
    texts = chat.engine.processor.template.stop
    assert set(chat.stops) <= set(stop_sequences(chat.engine.processor.tokenizer, texts))


def test_stop_rules(chat: Chat) -> None:
    turn = chat.record["turns"][0]
    for demo in chat.record["stop_demo"]:
        stops = tuple(map(tuple, demo["stops"]))
        ids = chat.engine.generate_ids([chat.turns(1)], options(turn["generate_kwargs"]), stops=stops)
        assert ids == [chat.new_ids(demo["ids"])]


def test_published_context_cut(chat: Chat) -> None:
    cut = chat.record["truncation"]
    generation = CHAT.replace(max_new_tokens=cut["max_new_tokens"], max_length=cut["max_length"], context="published")
    messages = chat.turns(1)
    assert chat.engine.length(messages) == cut["full_length"]
    embeds = chat.engine.prompt([messages], generation).embeds
    assert embeds.shape[1] == cut["kept"]
    torch.testing.assert_close(embeds, chat.case.tensor("chat.truncated.embs"), **EMBEDS)


def test_two_images(chat: Chat) -> None:
    if not chat.case.has("chat.two_images.embs"):
        assert "two_images" not in chat.record
        return
    record = chat.record["two_images"]
    other = int(record["images"][1].removeprefix("images[").removesuffix("]"))
    media = [Image(chat.case.file(record["images"][0])), Image(chat.case.tensor("images")[other])]
    asked = record["prompt"].split("</Img>")[-1].split(chat.engine.processor.template.config.sep)[0].strip()
    messages = [Message("user", (media[0],)), Message("user", (media[1], Text(asked)))]
    recorded = chat.case.tensor("chat.two_images.embs")
    for conversation in (messages, chat.engine.processor.encode_prompt(record["prompt"], media)):
        torch.testing.assert_close(chat.engine.prompt([conversation]).embeds, recorded, **EMBEDS)


def test_batch_generation(chat: Chat) -> None:
    record = chat.case.records["batchgen"]
    pictures = chat.case.tensor("images")
    processor = chat.engine.processor
    prompts = [processor.encode_prompt(text, [pictures[i]]) for i, text in enumerate(record["texts"])]
    generation = options(record["kwargs"]).replace(stop=(), cleanup="answer")
    prompt = chat.engine.prompt(prompts, generation)
    torch.testing.assert_close(prompt.embeds, chat.case.tensor("batchgen.embs"), **EMBEDS)
    assert torch.equal(prompt.mask, chat.case.tensor("batchgen.attention_mask"))
    ids = chat.engine.generate_ids(prompts, generation)
    assert ids == [chat.new_ids(row) for row in chat.case.tensor("batchgen.ids").tolist()]
    assert chat.engine.generate(prompts, generation) == record["answers"]
    assert [chat.engine.generate([p], generation)[0] for p in prompts] == record["answers"]


def test_ranking(chat: Chat) -> None:
    if "multi_select" not in chat.case.records:
        assert not chat.case.has("multi_select.losses")
        return
    record = chat.case.records["multi_select"]
    prompts = [
        chat.engine.processor.encode_prompt(text, [picture])
        for text, picture in zip(record["instructions"], chat.case.tensor("images"), strict=False)
    ]
    columns = [list(row) for row in zip(*record["candidates_per_choice"], strict=True)]
    ranked = chat.engine.rank(prompts, columns)
    torch.testing.assert_close(
        torch.tensor([r.losses for r in ranked]), chat.case.tensor("multi_select.losses"), rtol=0, atol=1e-5
    )
    for row, count, published in zip(ranked, record["num_cand"], record["ranks"], strict=True):
        masked = [loss if i < count else 9999.0 for i, loss in enumerate(row.losses)]
        assert sorted(range(len(masked)), key=masked.__getitem__) == published
