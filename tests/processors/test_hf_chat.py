"""A tokenizer's own chat template: the ids of ``apply_chat_template``, and exactly what the assistant wrote."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm.common.errors import ConfigError, PromptError, WeightsError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Message, Sample, Video
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.templates import rendering
from vlm.processors.templates.base import WritesJinja
from vlm.processors.templates.hf_chat import HFChat
from vlm.processors.templates.rendering import JinjaTemplate
from vlm.processors.tokenizer.chat_template import read_chat_template
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.processors.video.recipe import VideoRecipe

from .chat_families import CHATML, FAMILIES, GLM4, LLAVA, Family, write_tokenizer

ALL = {**FAMILIES, "glm4": GLM4, "llava": LLAVA}
OFF = {"enable_thinking": False, "thinking": False, "return_dict": False}
PIXELS = np.zeros((4, 4, 3), np.uint8)


class Case:
    """A family's folder, the tokenizer of transformers there, and our processor."""

    def __init__(self, folder: Path, family: Family, text: TextConfig | None = None, **options: Any) -> None:
        self.folder, self.family = folder, family
        self.theirs = write_tokenizer(folder, family)
        self.open(text, **options)

    def open(self, text: TextConfig | None = None, **options: Any) -> None:
        """Read the folder again."""
        tokenizer = Tokenizer.from_folder(self.folder, special_tokens=text.special_tokens if text else ())
        template = HFChat(HFChat.Config(**options))
        recipe = ImageRecipe(ImageRecipe.Config(size=4))
        self.processor = Processor(tokenizer, template, recipe, text, VideoRecipe(VideoRecipe.Config(), recipe))

    def train(self, *turns: tuple[str, Any]) -> Example:
        sample = Sample(tuple(Message(role, content) for role, content in turns))
        return self.processor.encode_train(sample, random.Random(0))

    def chat(self, *turns: tuple[str, Any]) -> Example:
        return self.processor.encode_chat([Message(role, content) for role, content in turns])

    def expected(self, *turns: tuple[str, str], open_turn: bool = False) -> list[int]:
        """What transformers makes of the same texts, as strings or as lists of parts, as the template wants them."""
        listed = self.family.image and "is string" not in self.family.template
        contents = [[{"type": "text", "text": text}] if listed else text for _, text in turns]
        messages = [{"role": role, "content": content} for (role, _), content in zip(turns, contents)]
        return self.theirs.apply_chat_template(messages, add_generation_prompt=open_turn, **OFF)

    def answers(self, example: Example) -> list[str]:
        """The supervised stretches as text, special tokens included."""
        runs = [list(run) for on, run in groupby(example.labels, lambda i: i != IGNORE_INDEX) if on]
        return [self.theirs.decode(run) for run in runs]


@pytest.fixture(scope="module", params=ALL)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), ALL[request.param])


@pytest.fixture
def chatml(tmp_path: Path) -> Case:
    return Case(tmp_path, FAMILIES["chatml"])


def as_part(piece: Any) -> dict[str, str]:
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image"}


SYSTEM = ("system", "Be  kind.")
DIALOGUE = (
    ("user", "What is it?"),
    ("assistant", "A red boat."),
    ("user", "Which colour?\n\n"),
    ("assistant", "It is <b>red</b>, 漢字 é."),
)


def test_ids_are_those_of_apply_chat_template_and_labels_the_answers(case: Case) -> None:
    systems = [(), (SYSTEM,)] if case.family.system else [()]
    for turns in [(*system, *DIALOGUE[:n]) for system in systems for n in (2, 4)]:
        trained, asked = case.train(*turns), case.chat(*turns[:-1])
        assert trained.ids == case.expected(*turns)
        assert asked.ids == case.expected(*turns[:-1], open_turn=True)
        assert asked.num_targets == 0
        texts = [text for role, text in turns if role == "assistant"]
        last = "" if case.family in (GLM4, LLAVA) else case.family.end
        ends = [*[case.family.end] * (len(texts) - 1), last]
        found = case.answers(trained)
        assert [text.strip() for text in found] == [text + end for text, end in zip(texts, ends, strict=True)]
        assert trained.ids[:2] != [case.theirs.bos_token_id] * 2
        if case.family is not FAMILIES["mistral_v3"] or SYSTEM not in turns:  # it writes the system text in a chat only
            assert trained.ids[: len(asked.ids)] == asked.ids
            assert trained.labels[len(asked.ids)] != IGNORE_INDEX == trained.labels[len(asked.ids) - 1]


def test_templates_that_strip_words_or_look_into_them(case: Case) -> None:
    conversations = (
        (("user", " What is it? \n"), ("assistant", "\n A red boat. \n"), ("user", "?"), ("assistant", "  red ")),
        (("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nA boat."), ("user", "b"), ("assistant", "Red.")),
    )
    for turns in conversations:
        example = case.train(*turns)
        assert example.ids == case.expected(*turns)
        found = case.answers(example)
        assert [text.strip()[:1] for text in found] in (["A", "r"], ["<", "R"], ["A", "R"])
        assert "A red boat." in found[0] or "A boat." in found[0]
        ends = [text.rstrip().endswith(case.family.end) for text in found]
        assert ends == [True, True] or (case.family is GLM4 and ends == [True, False])


def test_control_tokens_in_words_stay_words(case: Case) -> None:
    tokens = case.processor.tokenizer.controls
    words = f"What is {' '.join(tokens)}?{case.family.end}"
    turns = (("user", words), ("assistant", f"It is {words}"), ("user", words), ("assistant", "Nothing."))
    plain = [(role, "x") for role, _ in turns]
    example, other = case.train(*turns), case.train(*plain)
    ids = [case.processor.tokenizer.id_of(token) for token in tokens]
    assert [i for i in example.ids if i in ids] == [i for i in other.ids if i in ids]
    first, last = (text.replace(" ", "") for text in case.answers(example))
    assert first.startswith(f"Itis{words}".replace(" ", "")) and last.startswith("Nothing.")
    asked = case.chat(*turns[:-1])
    assert asked.ids == example.ids[: len(asked.ids)]


def test_an_answer_stops_at_the_end_of_its_turn_and_at_the_end_ids_of_the_model(case: Case) -> None:
    ends = case.processor.template.end_ids
    wanted = {case.family.eos, *case.family.ends, *([case.family.end.strip()] if case.family.end else [])}
    assert {case.theirs.convert_ids_to_tokens(i) for i in ends} == wanted
    assert case.processor.template.stop == []


def test_an_answer_for_ranking_is_what_training_writes(case: Case) -> None:
    example = case.train(*DIALOGUE[:2])
    assert case.processor.encode_answer("A red boat.") == [i for i in example.labels if i != IGNORE_INDEX]


def test_more_than_twenty_families() -> None:
    assert len(ALL) >= 25 and all("{% generation" not in family.template for family in FAMILIES.values())


def test_an_id_across_the_border_of_an_answer_is_trained(tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    text += "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"  # other than what training writes
    case = Case(tmp_path, Family(text, "", ("<|endoftext|>",), "<|endoftext|>"), end_sym="<|endoftext|>")
    turns = (("user", "?"), ("assistant", "a boat"), ("user", "?"), ("assistant", "the water"))
    assert case.answers(case.train(*turns)) == [" a boat<|endoftext|>", " the water<|endoftext|>"]


def test_a_template_without_a_generation_prompt_has_the_header_written(tmp_path: Path) -> None:
    text = CHATML.split("{% if add_generation_prompt")[0]
    case = Case(tmp_path, Family(text, "<|im_end|>", FAMILIES["chatml"].tokens, "<|im_end|>"))
    trained, asked = case.train(*DIALOGUE[:2]), case.chat(DIALOGUE[0])
    assert case.answers(trained) == ["<|im_start|>assistant\nA red boat.<|im_end|>"]
    assert trained.ids[: len(asked.ids)] == asked.ids


# images


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "smolvlm", "llava"])
def test_images_where_the_template_writes_them(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path, ALL[name])
    two = [Image(PIXELS), "What", Image(PIXELS), "is it?"]
    example = case.train(("user", two), ("assistant", "A boat."), ("user", [Image(PIXELS)]), ("assistant", "B"))
    parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in two]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A boat."}]},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "B"}]},
    ]
    wanted = case.theirs.apply_chat_template(messages, **OFF)
    token = case.theirs.convert_tokens_to_ids(case.family.image)
    assert case.processor.template.config.media_token == case.family.image
    assert case.processor.media_id == token and wanted.count(token) == 3
    assert example.ids == [MEDIA_TOKEN if i == token else i for i in wanted]
    assert len(example.media) == 3 and case.answers(example)[0].strip().startswith("A boat.")


def test_a_video_is_what_the_template_writes_for_one(tmp_path: Path) -> None:
    case = Case(tmp_path / "qwen", FAMILIES["qwen2_vl"])
    example = case.chat(("user", [Video([PIXELS]), Image(PIXELS), "?"]))
    text = case.theirs.decode([i for i in example.ids if i != MEDIA_TOKEN])
    assert example.ids.count(MEDIA_TOKEN) == 2 and "<|vision_start|><|vision_end|><|vision_start|>" in text
    case = Case(tmp_path / "smol", FAMILIES["smolvlm"])
    assert case.chat(("user", [Video([PIXELS]), "?"])).ids.count(MEDIA_TOKEN) == 1


@pytest.mark.parametrize("name", ["chatml", "llama2", "gemma"])
def test_images_where_the_user_puts_them(tmp_path: Path, name: str) -> None:
    """The ids are those of a tokenizer to which an image token was added; no space follows the image."""
    family = FAMILIES[name]
    own = Case(tmp_path / "own", family)
    added = Case(tmp_path / "added", replace(family, tokens=(*family.tokens, "<image>")), media_token="<image>")
    token = added.theirs.convert_tokens_to_ids("<image>")
    turns = (("user", ["Is", Image(PIXELS), "this \n", Image(PIXELS), "\n?"]), ("assistant", "Yes."))
    wanted = added.expected(("user", "Is<image>this \n<image>\n?"), ("assistant", "Yes."))
    wanted = [MEDIA_TOKEN if i == token else i for i in wanted]
    assert wanted.count(MEDIA_TOKEN) == 2
    assert added.train(*turns).ids == wanted
    assert own.train(*turns).ids == wanted
    assert len(own.train(*turns).media) == 2
    literal = own.train(("user", [Image(PIXELS), "\U0010fffd <image>?"]), ("assistant", "Yes."))
    assert literal.ids.count(MEDIA_TOKEN) == 1
    literal = added.train(("user", [Image(PIXELS), "<image>?"]), ("assistant", "<image>"))
    assert literal.ids.count(MEDIA_TOKEN) == 1 and token not in literal.ids
    placed = own.chat(("user", [Image(PIXELS), "Is <ImageHere> it?"]))
    assert placed.ids == own.chat(("user", ["Is ", Image(PIXELS), " it?"])).ids


def test_text_around_an_image_is_an_option(chatml: Case) -> None:
    turns = (("user", [Image(PIXELS), "What?"]),)
    plain = chatml.chat(*turns).ids
    chatml.open(image_prefix="<<", image_suffix=">>\n")
    ids = chatml.chat(*turns).ids
    assert chatml.theirs.decode([i for i in ids if i != MEDIA_TOKEN]).count("<<>>\nWhat?") == 1
    assert chatml.theirs.decode([i for i in plain if i != MEDIA_TOKEN]).count("user\nWhat?") == 1


def test_a_caption_without_words_gets_a_prompt_of_the_pool(chatml: Case, tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_text("Describe it.\n")
    chatml.open(prompt_path=str(tmp_path / "pool.txt"))
    example = chatml.train(("user", [Image(PIXELS)]), ("assistant", "A boat."))
    assert "user\nDescribe it.<|im_end|>" in chatml.theirs.decode([i for i in example.ids if i != MEDIA_TOKEN])


def test_the_template_with_its_options_as_jinja(case: Case) -> None:
    options = {"system": "Be brief."} if case.family.system else {}
    case.open(variables={"date_string": "1 Jan 2026"}, image_suffix="\n", **options)
    own = case.processor.template
    values = {"bos_token": case.family.bos or "", "eos_token": case.family.eos}
    token = own.config.media_token or "<image>"
    jinja = own.jinja(token)
    assert isinstance(own, WritesJinja) and jinja is not None
    written = JinjaTemplate(jinja, "written", values)
    turns = (("user", [Image(PIXELS), "What is it?"]), ("assistant", ["A boat."]), ("user", ["And now?"]))
    text = "".join(s.text or token for s in own.chat_segments([Message(role, parts) for role, parts in turns]))
    messages = [{"role": role, "content": [as_part(p) for p in parts]} for role, parts in turns]
    assert written.render(messages, open_turn=True) == text
    case.open()


# options and rules


def test_system_texts(chatml: Case) -> None:
    empty = chatml.chat(("system", ""), ("user", "?"))
    assert empty.ids == chatml.expected(("user", "?"), open_turn=True)
    chatml.open(system="Be brief.")
    assert chatml.chat(("user", "?")).ids == chatml.expected(("system", "Be brief."), ("user", "?"), open_turn=True)
    own = (SYSTEM, ("user", "?"))
    assert chatml.chat(*own).ids == chatml.expected(*own, open_turn=True)
    assert chatml.chat(("system", ""), ("user", "?")).ids == empty.ids


def test_thinking_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    case = Case(tmp_path, FAMILIES["qwen3"])
    turns = (("user", "?"), ("assistant", "<think>\nhm\n</think>\n\nA boat."))
    assert case.answers(case.train(*turns)) == ["A boat.<|im_end|>"]
    case.open(thinking=True)
    assert case.answers(case.train(*turns)) == ["<think>\nhm\n</think>\n\nA boat.<|im_end|>"]
    assert not case.theirs.decode(case.chat(turns[0]).ids).endswith("</think>\n\n")
    earlier = case.train(*turns, ("user", "b"), ("assistant", "Red."))
    assert case.answers(earlier) == ["A boat.<|im_end|>", "<think>\n\n</think>\n\nRed.<|im_end|>"]


def test_values_that_a_template_reads(tmp_path: Path) -> None:
    case = Case(tmp_path, FAMILIES["llama3.1"], variables={"date_string": "1 Jan 2026"})
    assert "Today Date: 1 Jan 2026" in case.theirs.decode(case.chat(("user", "?")).ids)


def test_an_end_that_the_template_does_not_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(tmp_path, LLAVA)
    for _ in range(2):
        case.train(*DIALOGUE)
    assert caplog.text.count("writes no end after an answer") == 1
    case.open(end_sym="</s>")
    example = case.train(*DIALOGUE)
    assert [text.strip() for text in case.answers(example)] == ["A red boat.</s>", "It is <b>red</b>, 漢字 é.</s>"]
    asked = case.chat(*DIALOGUE[:-1])
    assert asked.ids == example.ids[: len(asked.ids)] and asked.num_targets == 0


def test_an_end_that_is_not_a_token(tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + ' ###\n' }}{% endfor %}"
    opened = "{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}"
    case = Case(tmp_path, Family(text + opened, " ###", ("<|endoftext|>",), "<|endoftext|>"))
    assert case.answers(case.train(*DIALOGUE[:2])) == [" A red boat. ###"]
    template = case.processor.template
    assert template.stop == ["###"] and template.clean("A boat. ###\n### user") == "A boat."


def test_an_end_that_decoding_keeps_is_cut_off(tmp_path: Path) -> None:
    case = Case(tmp_path, FAMILIES["stablelm2"])
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_text())
    for token in tree["added_tokens"]:
        token["special"] &= token["content"] != "<|im_end|>"
    file.write_text(json.dumps(tree))
    case.open()
    template, end = case.processor.template, case.theirs.convert_tokens_to_ids("<|im_end|>")
    assert template.clean("A boat.<|im_end|>") == "A boat." and end in template.end_ids
    assert case.answers(case.train(*DIALOGUE[:2])) == ["A red boat.<|im_end|>"]


def test_limits(chatml: Case) -> None:
    whole = chatml.train(*DIALOGUE)
    chatml.open(TextConfig(max_txt_len=4, keep_end=True))
    cut = chatml.train(*DIALOGUE)
    end = chatml.theirs.convert_tokens_to_ids("<|im_end|>")
    first = whole.labels.index(next(i for i in whole.labels if i != IGNORE_INDEX))
    assert cut.ids == [*whole.ids[: first + 3], end] and cut.labels[first:] == cut.ids[first:]
    chatml.open(TextConfig(max_context_len=5))
    assert chatml.train(*DIALOGUE[:2]).ids[:6] == [*whole.ids[:5], whole.ids[first]]


def test_a_question_after_the_last_answer_is_left_out(chatml: Case) -> None:
    assert chatml.train(*DIALOGUE, ("user", "And now?")).ids == chatml.train(*DIALOGUE).ids


def test_raw_prompts_do_not_begin_twice(tmp_path: Path) -> None:
    case = Case(tmp_path, FAMILIES["llama3"])
    begin = case.theirs.bos_token_id
    for text in ("<|begin_of_text|>A boat", "A boat"):
        assert case.processor.encode_prompt(text).ids.count(begin) == 1
    ids = case.processor.encode_prompt("See <ImageHere>.", [PIXELS]).ids
    assert ids.count(MEDIA_TOKEN) == 1


def test_a_sentencepiece_folder(llm_folder: Path, tmp_path: Path) -> None:
    for file in llm_folder.glob("*.json"):
        shutil.copy(file, tmp_path)
    shutil.copy(llm_folder / "tokenizer.model", tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": False}))
    for name in ("llama2", "vicuna"):
        (tmp_path / "chat_template.jinja").write_text(FAMILIES[name].template)
        tokenizer = Tokenizer.from_folder(tmp_path)
        processor = Processor(tokenizer, HFChat(HFChat.Config()), ImageRecipe(ImageRecipe.Config(size=4)))
        example = processor.encode_train(Sample(tuple(Message(*turn) for turn in DIALOGUE)), random.Random(0))
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        messages = [{"role": role, "content": text} for role, text in DIALOGUE]
        assert example.ids == theirs.apply_chat_template(messages, **OFF)
        assert example.ids[0] == tokenizer.bos and example.ids.count(tokenizer.eos) == 2
        answers = [i for i in example.labels if i != IGNORE_INDEX]
        assert tokenizer.decode(answers).replace(" ", "") == "Aredboat.Itis<b>red</b>,漢字é."
        assert answers.count(tokenizer.eos) == 2 and answers[-1] == tokenizer.eos
        asked = processor.encode_chat([Message(*turn) for turn in DIALOGUE[:3]])
        assert asked.ids == example.ids[: len(asked.ids)]


def test_a_processor_travels_to_workers(chatml: Case) -> None:
    turns = (("user", [Image(PIXELS), "?"]), ("assistant", "A"))
    before = chatml.train(*turns).ids
    chatml.processor = pickle.loads(pickle.dumps(chatml.processor))
    assert chatml.train(*turns).ids == before


# where the template comes from


def test_files_that_hold_a_template(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]})
    )
    assert read_chat_template(tmp_path).text == "A" and read_chat_template(tmp_path, "rag").text == "B"
    with pytest.raises(ConfigError, match="default, rag, none of them 'x'"):
        read_chat_template(tmp_path, "x")
    config.write_text(json.dumps({"chat_template": "C"}))
    assert read_chat_template(tmp_path).file == str(config)
    for name, text in (("chat_template.jinja", "D"), ("chat_template.json", '{"chat_template": "E"}')):
        (tmp_path / name).write_text(text)
        assert read_chat_template(tmp_path).file == str(tmp_path / name)
    (tmp_path / "chat_template.json").write_text('{"chat_template": 3}')
    with pytest.raises(WeightsError, match="chat_template is 3, expected text"):
        read_chat_template(tmp_path)
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(WeightsError, match="chat_template.json is not JSON"):
        read_chat_template(tmp_path)
    assert read_chat_template(tmp_path / "none") is None


def test_a_template_of_ones_own(chatml: Case, tmp_path: Path) -> None:
    own = CHATML.replace("'\\n' + message['content']", "'\\n>' + message['content']")
    (tmp_path / "own.jinja").write_text(own)
    for value in (own, str(tmp_path / "own.jinja")):
        chatml.open(chat_template=value)
        assert "user\n>?" in chatml.theirs.decode(chatml.chat(("user", "?")).ids)


# faults


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "is not a Jinja template: line 1"),
        ("{{ messages[0].content + 1 }}", "cannot write this conversation"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        pytest.param(
            "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
            "more than 1,000,000 steps",
            marks=pytest.mark.heavy,
        ),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages[0].content }}", "does not write what the user and the assistant say"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "once each"),
    ],
)
def test_unusable_templates(tmp_path: Path, template: str, message: str) -> None:
    family = Family(template, "", ("<|endoftext|>",), "<|endoftext|>")
    with pytest.raises(ConfigError, match=message) as error:
        Case(tmp_path, family)
    assert "chat_template.jinja" in str(error.value) and "fix:" in str(error.value)


def test_conversations_that_a_template_refuses(tmp_path: Path) -> None:
    case = Case(tmp_path, FAMILIES["gemma"])
    with pytest.raises(PromptError, match=r"chat_template.jinja\).*System role not supported\n  fix: "):
        case.chat(SYSTEM, ("user", "?"))
    with pytest.raises(PromptError, match="roles must alternate"):
        case.train(("user", "?"), ("user", "?"), ("assistant", "A"))


def test_words_that_a_template_changes(tmp_path: Path) -> None:
    text = CHATML.replace("message['content']", "(message['content'] | replace('boat', 'ship'))")
    case = Case(tmp_path / "a", Family(text, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"))
    assert case.answers(case.train(*DIALOGUE[:2])) == ["A red ship.<|im_end|>"]
    text = CHATML.replace("message['content']", "message['content'][:4]")
    case = Case(tmp_path / "b", Family(text, "<|im_end|>", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"))
    with pytest.raises(PromptError, match="cannot be found"):
        case.train(*DIALOGUE[:2])


def test_a_tokenizer_without_the_image_token(tmp_path: Path) -> None:
    family = FAMILIES["smolvlm"]
    bare = replace(family, tokens=tuple(t for t in family.tokens if t != "<image>"))
    with pytest.raises(ConfigError, match=r"writes '<image>' for an image(.|\n)*special_tokens: \['<image>'\]"):
        Case(tmp_path, bare)
    case = Case(tmp_path, bare, TextConfig(special_tokens=["<image>"]))
    assert case.chat(("user", [Image(PIXELS), "?"])).ids.count(MEDIA_TOKEN) == 1
    with pytest.raises(ConfigError, match="media_token is '<img>', which is not a special token"):
        Case(tmp_path, FAMILIES["chatml"], media_token="<img>")


def test_several_tokens_for_an_image(tmp_path: Path) -> None:
    template = FAMILIES["qwen2_vl"].template.replace("<|image_pad|>", "<|a|>").replace("<|vision_", "<|b_")
    family = Family(
        template, "<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|a|>", "<|b_start|>", "<|b_end|>"), "<|im_end|>"
    )
    with pytest.raises(ConfigError, match=r"writes <\|b_start\|>, <\|a\|>, <\|b_end\|> for an image"):
        Case(tmp_path, family)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "image_token": "<|a|>"}))
    case = object.__new__(Case)
    case.folder, case.family = tmp_path, family
    case.open()
    assert case.processor.template.config.media_token == "<|a|>"


def test_no_template_at_all(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"])
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"has no chat template\n  fix: set model.template.chat_template"):
        Processor(Tokenizer.from_folder(tmp_path), HFChat(HFChat.Config()), ImageRecipe(ImageRecipe.Config(size=4)))


def test_transformers_reads_the_folder_as_we_do(chatml: Case) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(chatml.folder)
    assert theirs.chat_template == read_chat_template(chatml.folder).text


@pytest.mark.parametrize(
    "text",
    [
        "{{ 10 ** (10 ** 8) }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 'x' * 999999999 }}",
        "{{ [0] * 999999999 }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{% set a = 'ab' * 9000 %}{{ a.replace('a', a) }}",
        "{% set a = 'ab' * 9000 %}{{ a | replace('a', a) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    ],
)
def test_one_operation_does_not_take_all_memory(text: str) -> None:
    with pytest.raises(PromptError, match="one of its operations makes more than"):
        JinjaTemplate(text, "test").render([{"role": "user", "content": "hi"}], True)


def test_growth_in_many_steps_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MOST_MEMORY", 2**26)
    text = "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    with pytest.raises(PromptError, match="bytes of memory"):
        JinjaTemplate(text, "test").render([{"role": "user", "content": "hi"}], True)


def test_ordinary_operations() -> None:
    text = "{{ 'a' * 3 + 'b' }}{{ 2 ** 5 }}{{ '%03d' % 7 }}{{ 'x'.replace('x', 'y') }}{{ 'q' | replace('q', 'z') }}"
    assert JinjaTemplate(text, "test").render([], True) == "aaab32007yz"
