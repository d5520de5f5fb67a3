from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm.common.errors import ConfigError, DataError, PromptError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Cut, Image, Message, Sample, Text, Video
from vlm.config.api import ModelConfig, load_config
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig, build_processor
from vlm.processors.templates.alpaca import Alpaca
from vlm.processors.templates.base import Segment
from vlm.processors.templates.roles import Plain, Template
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.template import Vicuna0

IMAGE = Image(np.zeros((4, 4, 3), np.uint8))


def say(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def make(tokenizer: Tokenizer, template: Template | None = None, **text: object) -> Processor:
    recipe = ImageRecipe(ImageRecipe.Config(size=4))
    return Processor(tokenizer, template or Vicuna0(Vicuna0.Config()), recipe, TextConfig(**text))


def sample(*messages: Message) -> Sample:
    return Sample(messages, id="7", source="toy")


def targets(example) -> list[int]:  # noqa: ANN001
    return [label for label in example.labels if label != IGNORE_INDEX]


def test_tiny_dialogue_is_tokenised_segment_by_segment(tokenizer: Tokenizer) -> None:
    processor = make(tokenizer, Vicuna0(Vicuna0.Config(system="", chat_form=True)), max_txt_len=100)
    dialogue = (
        say("user", IMAGE, "What is it?"),
        say("assistant", "a boat"),
        say("user", "Which color?"),
        say("assistant", "red"),
    )
    example = processor.encode_train(sample(*dialogue), random.Random(0))
    enc = tokenizer.encode
    parts = [
        ([1], False),
        (enc("###Human: <Img>"), False),
        ([MEDIA_TOKEN], False),
        (enc("</Img> What is it?###Assistant: "), False),
        (enc("a boat###"), True),
        (enc("Human: Which color?###Assistant: "), False),
        (enc("red###"), True),
    ]
    assert example.ids == [i for ids, _ in parts for i in ids]
    assert example.labels == [i if sup else IGNORE_INDEX for ids, sup in parts for i in ids]
    assert [m.shape for m in example.media] == [(1, 3, 4, 4)]
    assert (example.id, example.source) == ("7", "toy")
    chat = processor.encode_chat(dialogue[:3])
    assert chat.ids == example.ids[: len(chat.ids)]
    assert not chat.num_targets


def test_answers_are_cut_with_and_without_their_end(tokenizer: Tokenizer) -> None:
    answer = "a red boat on the river near the old house"
    item = sample(say("user", IMAGE), say("assistant", answer))
    whole = tokenizer.encode(answer + "###")
    end = tokenizer.encode("x###")[len(tokenizer.encode("x")) :]
    published = make(tokenizer, max_txt_len=5).encode_train(item, random.Random(0))
    assert targets(published) == whole[:5]
    kept = make(tokenizer, max_txt_len=5, keep_end=True).encode_train(item, random.Random(0))
    assert targets(kept) == whole[: 5 - len(end)] + end
    for length in (len(whole), len(whole) + 3):
        example = make(tokenizer, max_txt_len=length, keep_end=True).encode_train(item, random.Random(0))
        assert targets(example) == whole


def test_keep_end_drops_a_question_that_is_cut(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("a boat###")
    item = sample(
        say("user", IMAGE, "What?"), say("assistant", "a boat"), say("user", "Color?"), say("assistant", "red")
    )
    example = make(tokenizer, max_txt_len=len(first) + 2, keep_end=True).encode_train(item, random.Random(0))
    assert example.ids[-len(first) :] == first


def test_a_image_in_a_turn_that_is_cut_goes_with_it(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("a boat###")
    item = sample(
        say("user", IMAGE, "What?"), say("assistant", "a boat"), say("user", "And", IMAGE), say("assistant", "red")
    )
    short = make(tokenizer, max_txt_len=len(first)).encode_train(item, random.Random(0))
    assert (short.ids.count(MEDIA_TOKEN), len(short.media)) == (1, 1)
    whole = make(tokenizer, max_txt_len=100).encode_train(item, random.Random(0))
    assert (whole.ids.count(MEDIA_TOKEN), len(whole.media)) == (2, 2)


def test_without_a_limit_only_the_context_of_the_llm_cuts(tokenizer: Tokenizer) -> None:
    answer = "a red boat on the river " * 30
    turns = [say("user", IMAGE, "What?"), say("assistant", answer), say("user", "And", IMAGE), say("assistant", answer)]
    free = make(tokenizer).encode_train(sample(*turns), random.Random(0))
    assert free.cut is None
    assert len(targets(free)) == 2 * len(tokenizer.encode(answer + "###"))
    one = VisualTokens(0, 5)
    for positions, cut in (
        (len(free.ids) + 8, None),
        (len(free.ids) + 7, Cut(answers=1)),
        (len(free.ids) // 2 - 9, Cut(answers=1, turns=1, images=1, questions=2)),
    ):
        example = make(tokenizer).within(positions, one).encode_train(sample(*turns), random.Random(0))
        assert example.cut == (cut and replace(cut, limit=f"{positions} positions, the context of the LLM"))
        assert one.fused_length(example) <= positions
        assert example.ids == free.ids[: len(example.ids)]
        assert len(example.media) == example.ids.count(MEDIA_TOKEN)
    stated = make(tokenizer, max_txt_len=5).within(20, one).encode_train(sample(*turns), random.Random(0))
    assert stated.cut == Cut(answers=1, turns=1, images=1, questions=2, limit="model.text.max_txt_len 5")
    assert make(tokenizer, max_turn_len=9).has_limit


def test_context_is_cut_on_the_right_but_never_loses_a_image(tokenizer: Tokenizer) -> None:
    item = sample(say("user", IMAGE, "What is in the image?"), say("assistant", "a boat"))
    head = len(tokenizer.encode("###Human: <Img>"))
    whole = make(tokenizer).encode_train(item, random.Random(0))
    cut = make(tokenizer, max_context_len=head + 6, tokens_per_medium=4).encode_train(item, random.Random(0))
    assert cut.ids == whole.ids[: 1 + head + 1 + 2] + tokenizer.encode("a boat###")
    with pytest.raises(DataError, match="toy/7: an image is beyond max_context_len"):
        make(tokenizer, max_context_len=head + 3, tokens_per_medium=4).encode_train(item, random.Random(0))


def test_nothing_to_train_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="sample toy/7: no supervised token"):
        make(tokenizer).encode_train(sample(say("user", IMAGE, "What?")), random.Random(0))
    silent = make(tokenizer, Plain(Plain.Config(end_sym="")))
    with pytest.raises(DataError, match="no supervised token"):
        silent.encode_train(sample(say("user", IMAGE), say("assistant", "")), random.Random(0))
    with pytest.raises(DataError, match="no supervised token"):
        make(tokenizer, max_txt_len=0).encode_train(sample(say("user", IMAGE), say("assistant", "a")), random.Random(0))


def test_bad_images_name_the_sample(tokenizer: Tokenizer) -> None:
    item = sample(say("user", Image(b"junk"), "What?"), say("assistant", "a"))
    with pytest.raises(DataError, match="image toy/7"):
        make(tokenizer).encode_train(item, random.Random(0))


def test_raw_prompts(tokenizer: Tokenizer) -> None:
    processor = make(tokenizer)
    example = processor.encode_prompt("a <ImageHere> boat <ImageHere>", [IMAGE, IMAGE.source])
    enc = tokenizer.encode
    assert example.ids == [1, *enc("a "), MEDIA_TOKEN, *enc(" boat "), MEDIA_TOKEN]
    assert len(example.media) == 2
    with pytest.raises(PromptError, match="0 image placeholders but 1 media"):
        processor.encode_prompt("What is it?", [IMAGE])


def test_clips_need_a_video_recipe(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="takes images only"):
        make(tokenizer).encode_chat([say("user", Video("clip.mp4"), "What?")])
    recipe = ImageRecipe(ImageRecipe.Config(size=4))
    clips = Processor(tokenizer, Plain(Plain.Config()), recipe, video=lambda source, name, rng: torch.zeros(5, 3, 4, 4))
    assert clips.encode_chat([say("user", Video("clip.mp4"), "What?")]).media[0].shape == (5, 3, 4, 4)


def test_stop_ids_hold_both_spellings(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("###")
    after = tokenizer.encode("x###")[len(tokenizer.encode("x")) :]
    assert alone != after
    assert make(tokenizer).stop_ids == [alone, after]


def test_pickles_into_workers(tokenizer: Tokenizer) -> None:
    processor = make(tokenizer)
    item = sample(say("user", IMAGE, "What?"), say("assistant", "a boat"))
    copy = pickle.loads(pickle.dumps(processor))
    one, two = (p.encode_train(item, random.Random(0)) for p in (processor, copy))
    assert one.ids == two.ids
    assert torch.equal(one.media[0], two.media[0])


def composition(**model: Any) -> ModelConfig:
    return load_config({"model": {"image": {"size": 8}, **model}}, check="none").model


def test_build_processor_reads_the_composition(llm_folder: Path) -> None:
    processor = build_processor(
        composition(
            llm={"name": "hf", "path": str(llm_folder)},
            template={"name": "vicuna0", "system": ""},
            text={"max_txt_len": 11, "keep_end": True},
        )
    )
    assert (processor.image.config.size, processor.text_cfg.max_txt_len) == (8, 11)
    example = processor.encode_chat([say("user", IMAGE, "What?")])
    assert processor.tokenizer.decode(example.ids[: example.ids.index(MEDIA_TOKEN)]) == "###Human: <Img>"


class Fixed(Plain):
    """Always the given segments."""

    def __init__(self, segments: list[Segment]) -> None:
        super().__init__(Plain.Config())
        self.segments = segments

    def train_segments(self, sample: Sample, rng: random.Random) -> list[Segment]:
        return self.segments


def flamingo(llm_folder: Path, limit: int = 512) -> Processor:
    tokenizer = Tokenizer.from_folder(llm_folder, special_tokens=["<image>"])
    recipe = ImageRecipe(ImageRecipe.Config(size=4))
    return Processor(tokenizer, Alpaca(Alpaca.Config()), recipe, TextConfig(max_turn_len=limit, tokens_per_medium=3))


def test_joined_segments_are_one_text(tokenizer: Tokenizer) -> None:
    enc = tokenizer.encode
    one, two = Segment("a red", bos=True), Segment(" boat", supervised=True, joined=True, eos=True)
    whole, head = enc("a red boat"), enc("a red")
    example = make(tokenizer, Fixed([one, two])).encode_train(sample(), random.Random(0))
    assert example.ids == [1, *whole, 2]
    assert example.labels == [IGNORE_INDEX] * (1 + len(head)) + [*whole[len(head) :], 2]
    apart = make(tokenizer, Fixed([one, Segment(" boat", supervised=True)])).encode_train(sample(), random.Random(0))
    assert apart.ids == [1, *head, *enc(" boat")] != [1, *whole]


def test_begin_ids_stand_where_segments_say(tokenizer: Tokenizer) -> None:
    """Before a later turn, or behind an image."""
    enc = tokenizer.encode
    segments = [Segment(medium=IMAGE), Segment("a", bos=True), Segment("b", supervised=True), Segment("c", bos=True)]
    example = make(tokenizer, Fixed(segments), max_txt_len=100).encode_train(sample(), random.Random(0))
    assert example.ids == [MEDIA_TOKEN, 1, *enc("a"), *enc("b"), 1, *enc("c")]
    assert targets(example) == enc("b")


def test_end_ids_of_cut_answers(tokenizer: Tokenizer) -> None:
    segments = [Segment("a", bos=True), Segment("a red boat on the river", supervised=True, eos=True)]
    whole = [*tokenizer.encode("a red boat on the river"), 2]
    for keep, want in ((False, whole[:4]), (True, [*whole[:3], 2])):
        processor = make(tokenizer, Fixed(segments), max_txt_len=4, keep_end=keep)
        assert targets(processor.encode_train(sample(), random.Random(0))) == want


def test_literal_words_in_every_template(tokenizer: Tokenizer) -> None:
    words = "what is </s> and <s>?"
    for template in (Vicuna0(Vicuna0.Config()), Vicuna0(Vicuna0.Config(chat_form=True))):
        processor = make(tokenizer, template, max_txt_len=100)
        dialogue = (say("system", "<s>"), say("user", IMAGE, words), say("assistant", words))
        assert not {2} & set(processor.encode_train(sample(*dialogue), random.Random(0)).ids)
        chat = processor.encode_chat([*dialogue, say("user", words)])
        assert chat.ids.count(1) == 1
        assert 2 not in chat.ids
        assert tokenizer.decode([i for i in chat.ids if i >= 0]).count(words) == 3
    assert 2 in make(tokenizer).encode_prompt("a </s>").ids


def test_a_turn_is_cut_but_never_loses_a_image(llm_folder: Path) -> None:
    item = sample(say("user", IMAGE, "What is it?"), say("assistant", "a red boat"))
    whole = flamingo(llm_folder).encode_train(item, random.Random(0))
    before = whole.ids.index(MEDIA_TOKEN)
    width = len(whole.ids) + 2
    assert flamingo(llm_folder, width).encode_train(item, random.Random(0)).ids == whole.ids
    assert flamingo(llm_folder, width - 1).encode_train(item, random.Random(0)).ids == whole.ids[:-1]
    with pytest.raises(DataError, match=rf"toy/7: an image is beyond max_turn_len {before + 2}"):
        flamingo(llm_folder, before + 2).encode_train(item, random.Random(0))
    with pytest.raises(DataError, match=r"no supervised token\n.*raise model\.text\.max_turn_len"):
        flamingo(llm_folder, before + 3).encode_train(item, random.Random(0))


def test_media_tokens_are_one_mark_and_must_be_known(llm_folder: Path, tokenizer: Tokenizer) -> None:
    processor = flamingo(llm_folder)
    assert processor.media_id == tokenizer.vocab_size
    example = processor.encode_prompt("a boat <image> a boat <ImageHere>", [IMAGE, IMAGE])
    boat = tokenizer.encode("a boat")
    assert example.ids == [1, *boat, MEDIA_TOKEN, *boat, MEDIA_TOKEN]
    assert processor.encode_prompt("").ids == [1]
    with pytest.raises(PromptError, match="2 image placeholders but 1 media"):
        processor.encode_prompt("<image> <image>", [IMAGE])
    with pytest.raises(
        ConfigError, match=r"media_token is '<image>', which is not a special token of the tokenizer\n.*special_tokens"
    ):
        Processor(tokenizer, Alpaca(Alpaca.Config()), processor.image)


def test_answers_for_ranking_are_those_of_training(llm_folder: Path, tokenizer: Tokenizer) -> None:
    asked, answer = say("user", "What is it?"), "a red boat"
    apart = make(tokenizer, Alpaca(Alpaca.Config(joint_answer=False, media_token="")), max_txt_len=100)
    for processor in (make(tokenizer), flamingo(llm_folder), apart):
        trained = processor.encode_train(sample(asked, say("assistant", answer)), random.Random(0))
        assert processor.encode_answer(answer) == targets(trained)


def test_tokenizer_options_of_a_composition(llm_folder: Path, tmp_path: Path) -> None:
    text = {"tokenizer": str(llm_folder), "special_tokens": ["<image>"], "new_pad_token": "<PAD>", "bos_id": 1}
    llm = {"name": "hf", "path": str(tmp_path / "nowhere")}
    processor = build_processor(composition(llm=llm, template="alpaca", text=text))
    assert (processor.media_id, processor.pad_id) == (processor.tokenizer.vocab_size - 2,) + (
        processor.tokenizer.vocab_size - 1,
    )


@pytest.mark.parametrize("template", [Vicuna0(Vicuna0.Config(chat_form=True)), Alpaca(Alpaca.Config(media_token=""))])
def test_of_a_sample_with_only_last_the_last_answer_alone_is_trained(tokenizer: Tokenizer, template: Any) -> None:
    dialogue = (say("user", "One?"), say("assistant", "no"), say("user", "Two?"), say("assistant", "yes"))
    both = make(tokenizer, template).encode_train(sample(*dialogue), random.Random(0))
    last = replace(sample(*dialogue), only_last=True)
    example = make(tokenizer, template).encode_train(last, random.Random(0))
    answers = [tokenizer.decode(targets(e)) for e in (both, example)]
    assert "no" in answers[0] and "yes" in answers[0]
    assert "no" not in answers[1] and "yes" in answers[1]
    assert example.ids == both.ids
    assert targets(both)[-example.num_targets :] == targets(example)


def test_a_last_answer_that_is_cut_off_is_an_error_and_no_other_is_trained(tokenizer: Tokenizer) -> None:
    dialogue = (say("user", "One?"), say("assistant", "no"), say("user", "Two?"), say("assistant", "yes"))
    processor = make(tokenizer, max_txt_len=4)
    assert processor.encode_train(sample(*dialogue), random.Random(0)).num_targets
    with pytest.raises(DataError, match="no supervised token"):
        processor.encode_train(replace(sample(*dialogue), only_last=True), random.Random(0))
