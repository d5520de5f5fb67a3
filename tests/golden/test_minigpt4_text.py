"""Golden: tokenizer, prompts, ids, labels, chat segments and pictures of the published MiniGPT-4 code.

Runs on every case folder (one with ``case.json`` and ``llm/``) below ``<golden root>/minigpt4``.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Image, Message, Sample, Text
from vlm.processors.caption_cleaning import BlipCaption
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor, TextConfig
from vlm.processors.templates.roles import IMAGE_PLACEHOLDER, Template
from vlm.processors.tokenizer.tokenizer import Tokenizer
from vlm.systems.minigpt4.template import Llama2, MiniGPTv2, Vicuna0

PRESETS: dict[str, type[Template]] = {"vicuna0": Vicuna0, "llama2": Llama2, "minigptv2": MiniGPTv2}
BATCHES = ("stage1", "stage2", "instr", "conv", "textonly", "frames")
JOIN = "!@#"


class Case:
    """One case folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = json.loads((folder / "case.json").read_text())["records"]
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_folder(folder / "llm")
        self.preset = PRESETS[self.records["chat"]["conversation"]]
        self.image_tokens = self.config["bridge"]["image_tokens"]

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return file.get_tensor(name)

    def has(self, name: str) -> bool:
        with safe_open(self.folder / "tensors.safetensors", "pt") as file:
            return name in file.keys()  # noqa: SIM118

    def processor(self, record: dict, **template: object) -> Processor:
        built = self.config["constructor"]
        options = {
            "end_sym": record.get("end_sym", built["end_sym"]),
            "prompt_template": built["prompt_template"],
            **template,
        }
        recipe = ImageRecipe(ImageRecipe.Config(size=self.config["vision"]["img_size"]))
        text = TextConfig(max_txt_len=record.get("max_txt_len", built["max_txt_len"]))
        return Processor(self.tokenizer, self.preset(self.preset.Config(**options)), recipe, text)

    @property
    def pixels(self) -> torch.Tensor:
        size = self.config["vision"]["img_size"]
        return torch.zeros(3, size, size)


def _cases(config: pytest.Config) -> list[Path]:
    root = config.getoption("--golden-root", default=None) or Path(__file__).parent
    found = sorted(p.parent for p in Path(root, "minigpt4").rglob("case.json") if (p.parent / "llm").is_dir())
    return [p for p in found if "chat" in json.loads((p / "case.json").read_text())["records"]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = _cases(metafunc.config)
    if "batch" in metafunc.fixturenames:
        pairs = [(c, b) for c in cases for b in BATCHES if b in json.loads((c / "case.json").read_text())["records"]]
        metafunc.parametrize(("folder", "batch"), pairs, ids=[f"{c.name}-{b}" for c, b in pairs])
    elif "folder" in metafunc.fixturenames:
        metafunc.parametrize("folder", cases, ids=[c.name for c in cases])


@pytest.fixture
def case(folder: Path) -> Case:
    return Case(folder)


class Fixed(random.Random):
    """Draws one given prompt of a pool."""

    def __init__(self, wanted: str) -> None:
        super().__init__(0)
        self.wanted = wanted

    def choice(self, seq):  # noqa: ANN001, ANN201
        return next(s for s in seq if s == self.wanted)


def message(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def fused(example: Example, image_tokens: int, values: list[int], fill: int) -> list[int]:
    out: list[int] = []
    for i, value in zip(example.ids, values, strict=True):
        out += [fill] * image_tokens if i == MEDIA_TOKEN else [value]
    return out


def question(case: Case, text: str, *, wrapped: str) -> Message:
    """The user message from which a published prompt was made: pictures and the bare question."""
    if wrapped != "{}":
        before, _, after = wrapped.partition("{}")
        assert text.startswith(before)
        assert text.endswith(after)
        text = text[len(before) : len(text) - len(after)]
    mark = f"<Img>{IMAGE_PLACEHOLDER}</Img>"
    pictures = []
    while text.startswith(mark):
        pictures.append(Image(case.pixels))
        text = text.removeprefix(mark)
    if pictures:
        text = text.removeprefix(" ").removesuffix(" ")
    return message("user", *pictures, text)


def raw_question(case: Case, text: str) -> Message:
    """A prompt that was given as finished text."""
    return message("user", text, *[Image(case.pixels)] * text.count(IMAGE_PLACEHOLDER))


def samples(case: Case, batch: str, record: dict) -> tuple[Processor, list[Sample], list[random.Random]]:
    prompts, answers = record.get("prompts_used"), record.get("answers")
    any_rng = random.Random(0)
    if batch == "stage1":
        turns = [(message("user", Image(case.pixels)), message("assistant", a)) for a in answers]
        return case.processor(record), [Sample(t) for t in turns], [any_rng] * len(turns)
    if batch == "stage2":
        pool = next(p for p in (case.folder / "alignment.txt", case.folder.parent / "alignment.txt") if p.is_file())
        processor = case.processor(record, prompt_path=str(pool))
        wrap = case.config["constructor"]["prompt_template"]
        assert [wrap.format(p) for p in processor.template.prompts] == record["prompt_list"]
        line = next(p for p in processor.template.prompts if wrap.format(p) == prompts)
        turns = [(message("user", Image(case.pixels)), message("assistant", a)) for a in answers]
        return processor, [Sample(t) for t in turns], [Fixed(line)] * len(turns)
    wrap = case.config["constructor"]["prompt_template"] if case.config["constructor"].get("chat_template") else "{}"
    if batch == "conv":
        rows = []
        for asked, told in zip(record["conv_q"], record["conv_a"], strict=True):
            turns = []
            for k, (q, a) in enumerate(zip(asked.split(JOIN), told.split(JOIN), strict=True)):
                first = question(case, q, wrapped="{}")
                turns += [first if k == 0 else message("user", q.removesuffix(" ")), message("assistant", a)]
            rows.append(Sample(tuple(turns)))
        return case.processor(record), rows, [any_rng] * len(rows)
    raw = {"chat_template": False, "question_suffix": ""} if wrap == "{}" else {}
    processor = case.processor(record, **raw)
    asked = [raw_question(case, p) if wrap == "{}" else question(case, p, wrapped=wrap) for p in prompts]
    rows = [Sample((q, message("assistant", a))) for q, a in zip(asked, answers, strict=True)]
    return processor, rows, [any_rng] * len(rows)


def embedding(case: Case) -> torch.Tensor:
    name = "model.embed_tokens.weight"
    for file in sorted((case.folder / "llm").iterdir()):
        if file.suffix == ".bin":
            state = torch.load(file, weights_only=True)
        elif file.suffix == ".safetensors":
            state = load_file(file)
        else:
            continue
        if name in state:
            return state[name].float()
    raise AssertionError("no embedding in the LLM folder")


def test_tokenizer_cases(case: Case) -> None:
    record = case.records["tokenizer"]
    assert case.tokenizer.pad == record["pad"]
    for item in record["cases"]:
        assert case.tokenizer.encode(item["text"]) == item["ids"], item["text"]
        assert case.tokenizer.encode(item["text"], bos=True) == item["ids_bos"], item["text"]


def test_training_batches(case: Case, batch: str) -> None:
    """Lengths, labels and (through the embedding rows) ids of every published forward batch."""
    record = case.records[batch]
    processor, rows, rngs = samples(case, batch, record)
    labels, embeds = case.tensor(f"{batch}.labels"), case.tensor(f"{batch}.inputs_embeds")
    table = embedding(case)
    for row, (sample, rng) in enumerate(zip(rows, rngs, strict=True)):
        example = processor.encode_train(sample, rng)
        got = fused(example, case.image_tokens, example.labels, IGNORE_INDEX)
        assert len(got) == record["lengths"][row]
        assert got + [IGNORE_INDEX] * (labels.shape[1] - len(got)) == labels[row].tolist()
        ids = fused(example, case.image_tokens, example.ids, MEDIA_TOKEN)
        text = [i for i, v in enumerate(ids) if v != MEDIA_TOKEN]
        torch.testing.assert_close(embeds[row, text], table[torch.tensor([ids[i] for i in text])], rtol=0, atol=1e-6)
    assert sum(processor.encode_train(s, r).num_targets for s, r in zip(rows, rngs, strict=True)) == sum(
        record["supervised_tokens"]
    )


def test_pad_piece_in_answer_stays_supervised(case: Case) -> None:
    """The published code masked a literal pad piece; here it is a target (the only difference)."""
    record = case.records.get("fault_pad")
    if record is None:
        assert not case.has("fault_pad.ids")
        return
    processor = case.processor(record)
    ids, mask, targets = (case.tensor(f"fault_pad.{n}") for n in ("ids", "attention_mask", "targets"))
    for row, text in enumerate(record["texts"]):
        sample = Sample((message("user", Image(case.pixels)), message("assistant", text)))
        example = processor.encode_train(sample, random.Random(0))
        ours = [label for label in example.labels if label != IGNORE_INDEX]
        real = mask[row].bool()
        assert ours == ids[row][real].tolist()
        published = targets[row][real].tolist()
        assert [p if p != IGNORE_INDEX else record["pad_token_id"] for p in published] == ours


def test_training_run_labels(case: Case) -> None:
    """Labels of each step of the published runner's trace."""
    trace = case.records.get("training", {}).get("trace", [])
    merged = case.folder / "framework" / "config_merge.json"
    assert bool(trace) == case.has("train.step0.labels")
    limit = _find(json.loads(merged.read_text()), "max_txt_len") if merged.is_file() else 0
    for step, item in enumerate(trace):
        processor = case.processor(
            {"max_txt_len": limit} if limit else {}, prompt_path=str(case.folder / "alignment.txt")
        )
        wrap = case.config["constructor"]["prompt_template"]
        line = next(p for p in processor.template.prompts if wrap.format(p) == item["prompt"])
        want = case.tensor(f"train.step{step}.labels")
        for row, answer in enumerate(item["answer"]):
            sample = Sample((message("user", Image(case.pixels)), message("assistant", answer)))
            example = processor.encode_train(sample, Fixed(line))
            got = fused(example, case.image_tokens, example.labels, IGNORE_INDEX)
            assert got + [IGNORE_INDEX] * (want.shape[1] - len(got)) == want[row].tolist()


def _find(tree: object, key: str) -> int:
    """The last value of ``key`` in nested dictionaries."""
    found = []
    if isinstance(tree, dict):
        found = [v for k, v in tree.items() if k == key] + [_find(v, key) for v in tree.values()]
    return next((f for f in reversed(found) if f), 0)


def test_chat_prompts_and_segments(case: Case) -> None:
    chat = case.records["chat"]
    processor = case.processor({})
    history: list[Message] = []
    for k, turn in enumerate(chat["turns"]):
        pictures = [Image(case.pixels)] if k == 0 else []
        history.append(message("user", *pictures, turn["question"]))
        segments = processor.template.chat_segments(history)
        assert "".join(s.text if s.medium is None else IMAGE_PLACEHOLDER for s in segments) == turn["prompt"]
        example = processor.encode_chat(history)
        want: list[int] = []
        for n, ids in enumerate(turn["segment_ids"]):
            want += ([MEDIA_TOKEN] if n else []) + ids
        assert example.ids == want
        assert processor.encode_prompt(turn["prompt"], [case.pixels]).ids == want
        history.append(message("assistant", turn["answer_after_cleanup"]))
        assert case.tokenizer.decode(turn["ids_with_leading_bos"]) == turn["decoded"]
        assert processor.template.clean(turn["decoded"]) == turn["answer_after_cleanup"]
    assert sorted(processor.stop_ids) == sorted(chat["stop_ids"])


def test_several_pictures_in_a_chat(case: Case) -> None:
    record = case.records["chat"].get("two_images")
    if record is None:
        assert not case.has("chat.two_images.embs")
        return
    processor = case.processor({})
    config = processor.template.config
    last = record["prompt"].rsplit("</Img> ", 1)[1].removesuffix(processor.template.open_turn).removesuffix(config.sep)
    messages = [message("user", Image(case.pixels)), message("user", Image(case.pixels), last)]
    segments = processor.template.chat_segments(messages)
    assert "".join(s.text if s.medium is None else IMAGE_PLACEHOLDER for s in segments) == record["prompt"]
    example = processor.encode_chat(messages)
    assert len(fused(example, case.image_tokens, example.ids, 0)) == record["length"]
    assert len(example.media) == 2


def test_batch_prompts(case: Case) -> None:
    """Prompts of the published ``generate``: lengths against its left-padded mask."""
    processor = case.processor({})
    mask = case.tensor("batchgen.attention_mask")
    for row, text in enumerate(case.records["batchgen"]["texts"]):
        example = processor.encode_prompt(text, [case.pixels])
        assert len(fused(example, case.image_tokens, example.ids, 0)) == int(mask[row].sum())
    for ids, answer in zip(case.tensor("batchgen.ids").tolist(), case.records["batchgen"]["answers"], strict=True):
        assert processor.template.clean_batch(case.tokenizer.decode(ids)) == answer


def test_picture_transform_is_bit_equal(case: Case) -> None:
    for name in ("prep.eval", "prep.eval_other"):
        if not case.has(name):
            assert name == "prep.eval_other"
            continue
        want = case.tensor(name)
        recipe = ImageRecipe(replace(ImageRecipe.Config(), size=want.shape[-1]))
        assert torch.equal(recipe(case.folder / "image.png"), want)


def test_blip_caption(case: Case) -> None:
    record = case.records.get("blip_caption", {"in": [], "out": [], "max_words": 50})
    clean = BlipCaption(BlipCaption.Config(max_words=record["max_words"]))
    assert [clean(text) for text in record["in"]] == record["out"]
