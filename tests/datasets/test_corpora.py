"""Every shipped corpus of records: a few of them in the published layout, and the samples they become."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm.common.errors import ConfigError
from vlm.common.types import Input, Sample, Text, Video
from vlm.config.api import load_config
from vlm.config.composition import corpora, corpus_file
from vlm.config.tree import parse_file
from vlm.datasets.formats.table.templates import POOLS, read_pool
from vlm.datasets.loading.sources import Source, build_source

CAPTION, DESCRIBE, GROUND, REASON, TRUE, ENTAIL = (
    read_pool(name)
    for name in ("short_caption.txt", "describe.txt", "detailed_grounding.txt", "reason.txt", "true_or_false.txt",
                 "entailment.txt")
)  # fmt: skip
VQA = ("[vqa] {}", "[vqa] Based on the image, respond to this question with a short answer: {}")
TF = ["", "|true, false"]
TURNS = [{"from": "human", "value": "What is\nit?\n<image>"}, {"from": "gpt", "value": "A bus.\nRed."},
         {"from": "human", "value": "Whose?"}, {"from": "gpt", "value": "Mine."}]  # fmt: skip
LLAVA = [{"id": "000000000009", "conversations": TURNS}]
ONE = ["user: [i/COCO_train2014_000000000009.jpg] What isit?\nassistant: A bus.\nRed."]
ALL = [ONE[0] + "\nuser: Whose?\nassistant: Mine."]
DIAL = [{"image": "9.jpg", "conversations": TURNS}]
DIALOGUE = "user: [i/9.jpg] What isit?\nassistant: A bus.\nRed.\nuser: Whose?\nassistant: Mine."
OVERLAPPING = "user: [i/9.jpg] What isit?\nassistant: A bus.\nRed.\nuser: A bus.Red.\nassistant: Whose?"
ANSWERS = {"image": "train2014/a.jpg", "question": "How many?", "question_id": 5}
NLVR2 = [{"sentence": "The left one is red.", "label": "True", "images": ["a.png", "b.png"]}]


def asked(media: str, texts: list[str], answer: str, inputs: list[str] = [""]) -> set[str]:  # noqa: B006
    """All forms of a sample of one question."""
    head = f"user: {media} " if media else "user: "
    return {f"{head}{t}{' ' + i if i else ''}\nassistant: {answer}" for t in texts for i in inputs}


def vqa(media: str, question: str, *answers: str) -> set[str]:
    return set().union(*(asked(media, [v.format(question) for v in VQA], a) for a in answers))


INSTRUCTION = {"instruction": "Name a planet.", "input": "near us", "output": "Mars."}
CASES: dict[str, tuple[str, Any, set[str]]] = {
    # corpus: file name, its contents (a list of records for .jsonl and .csv), all forms of the first sample
    "cc_sbu_align": (
        "filter_cap.json",
        {"annotations": [{"image_id": "2", "caption": "A boat."}]},
        {"user: [i/image/2.jpg]\nassistant: A boat."},
    ),
    "coco_caption": (
        "k.json",
        [
            {"image": "val2014/COCO_val2014_2.jpg", "caption": "No.", "image_id": "coco_2"},
            {"image": "train2014/COCO_train2014_1.jpg", "caption": "A Bus (red).", "image_id": "coco_1"},
        ],
        asked("[i/COCO_train2014_1.jpg]", [f"[caption] {c}" for c in CAPTION], "a bus red"),
    ),
    "textcaps_caption": (
        "t.json",
        {"dataset_name": "textcaps", "data": [{"image_id": "ab", "caption_str": "A sign: STOP"}]},
        asked("[i/ab.jpg]", [f"[caption] {c}" for c in CAPTION], "a sign stop"),
    ),
    "coco_vqa": (
        "v.json",
        [{**ANSWERS, "answer": ["2", "Two", "2"]}],
        vqa("[i/train2014/a.jpg]", "how many?", "2", "two"),
    ),
    "ok_vqa": ("v.json", [{**ANSWERS, "answer": ["x"]}], vqa("[i/train2014/a.jpg]", "how many?", "x")),
    "aok_vqa": (
        "v.json",
        [{**ANSWERS, "direct_answers": ["x", "y"]}],
        vqa("[i/train2014/a.jpg]", "how many?", "x", "y"),
    ),
    "gqa": ("g.json", [{"image": "1.jpg", "question": "Is it?", "answer": "Yes"}], vqa("[i/1.jpg]", "is it?", "yes")),
    "ocrvqa": (
        "dataset.json",
        {
            "0": {"imageURL": "http://x/b.jpg", "questions": ["No?"], "answers": ["no"], "split": 2},
            "007": {"imageURL": "http://x/a.gif", "questions": ["Who?", "B?"], "answers": ["I.", "c"], "split": 1},
        },
        vqa("[i/007.gif]", "who?", "i"),
    ),
    "flickr_grounded_caption": (
        "g.json",
        [{"image_id": 12, "grounded_caption": "<p>A man</p> {<1><2><3><4>}"}],
        asked("[i/12.jpg]", [f"[grounding] {g}" for g in GROUND], "<p>A man</p> {<1><2><3><4>}"),
    ),
    "flickr_CaptionToPhrase": (
        "c.json",
        [{"image_id": 12, "caption": "A man.", "output": "<p>A man</p> {<1><2><3><4>}"}],
        asked("[i/12.jpg]", ["[detection] A man."], "<p>A man</p> {<1><2><3><4>}"),
    ),
    "flickr_ObjectToPhrase": (
        "p.json",
        [{"image_id": 12, "phrase": "a man", "bbox": "{<1><2><3><4>}"}],
        asked("[i/12.jpg]", ["[detection] a man"], "<p>a man</p> {<1><2><3><4>}"),
    ),
    "unnatural_instruction": (
        "u.json",
        [{"instances": [{"instruction_with_input": "Say: A", "constraints": "None.", "output": "A!"}]}],
        asked("", ["say a none"], "a"),
    ),
    "llava_conversation": ("l.json", LLAVA, set(ALL)),
    "multitask_conversation": ("l.json", LLAVA, set(ALL)),
    "llava_detail": ("l.json", LLAVA, set(ONE)),
    "llava_reason": ("l.json", LLAVA, set(ONE)),
    "tiny_dialogues": (
        "l.json",
        DIAL,
        {"user: [i/9.jpg] What is\nit?\nassistant: A bus.\nRed.\nuser: Whose?\nassistant: Mine."},
    ),
    "tiny_questions": (
        "q.jsonl",
        [{"image": "1.png", "question": "A?", "answer": "b"}],
        asked("[i/1.png]", ["A?"], "b"),
    ),
    "my_table": ("q.csv", [{"image": "1.png", "question": "A?", "answer": "b"}], asked("[i/1.png]", ["A?"], "b")),
    "mmgpt_vqa": (
        "v.json",
        [{**ANSWERS, "answer": ["two", "2", "2"]}],
        asked("[i/train2014/a.jpg]", ["How many?"], "2", ["", "|two, 2"]),
    ),
    "mmgpt_okvqa": ("v.json", [{**ANSWERS, "answer": ["x", "x"]}], asked("[i/train2014/a.jpg]", ["How many?"], "x")),
    "mmgpt_aokvqa": (
        "v.json",
        [{**ANSWERS, "choices": ["a", "b"], "correct_choice_idx": 1, "rationales": ["One.", "Two."]}],
        asked("[i/train2014/a.jpg]", [f"How many? {r}" for r in REASON], "The answer is b. Because One. Two."),
    ),
    "mmgpt_llava": ("l.json", DIAL, {"user: [i/9.jpg] What isit?\nassistant: A bus.\nRed."}),
    "mmgpt_llava_dial": (
        "l.json",
        DIAL,
        {DIALOGUE},
    ),
    "mmgpt_coco_dial": (
        "l.json",
        DIAL,
        {DIALOGUE},
    ),
    "mmgpt_minigpt4": (
        "f.json",
        {"annotations": [{"image_id": "7", "caption": "A boat."}]},
        asked("[i/7.jpg]", DESCRIBE, "A boat."),
    ),
    "mmgpt_coco_caption": (
        "c.json",
        [{"image": "v/1.jpg", "caption": ["a", "b"]}],
        asked("[i/v/1.jpg]", DESCRIBE, "a") | asked("[i/v/1.jpg]", DESCRIBE, "b"),
    ),
    "mmgpt_ocr_vqa": (
        "o.json",
        [{"filename": "1.jpg", "questions": ["Who?", "What?"], "answers": ["I", "it"]}],
        asked("[i/1.jpg]", ["Who?"], "I") | asked("[i/1.jpg]", ["What?"], "it"),
    ),
    "mmgpt_text_ocr": (
        "t.json",
        {"data": [{"question": "Word?", "image_id": "ab", "answers": ["stop", "step"]}]},
        asked("[i/ab.jpg]", ["Word?"], "stop", ["", "|stop, step"]),
    ),
    "mmgpt_gqa": (
        "g.json",
        {"02": {"question": "Blue?", "imageId": "24", "answer": "yes", "fullAnswer": "Yes, blue."}},
        asked("[i/24.jpg]", ["Blue?"], "Yes, blue."),
    ),
    "mmgpt_clevr": (
        "c.json",
        {"info": {}, "questions": [{"image_filename": "C_0.png", "split": "train", "question": "How?", "answer": "2"}]},
        asked("[i/train/C_0.png]", ["How?"], "2"),
    ),
    "mmgpt_nlvrv1": (
        "dev.json",
        [{"sentence": "It is.", "label": "true", "identifier": "10-0", "directory": "3"}],
        set().union(
            *(asked(f"[i/dev/images/3/dev-10-0-{k}.png]", [f"It is. {t}" for t in TRUE], "true", TF) for k in range(6))
        ),
    ),
    "mmgpt_nlvrv2": (
        "n.json",
        NLVR2,
        asked("[i/a.png] [i/b.png]", [f"The left one is red. {t}" for t in TRUE], "True", TF),
    ),
    "mmgpt_snlive": (
        "s.jsonl",
        [{"Flickr30K_ID": "47", "sentence1": "x", "sentence2": "A man.", "gold_label": "neutral"}],
        asked("[i/47.jpg]", [f"A man. {e}" for e in ENTAIL], "neutral", ["", "|entailment, neutral, contradiction"]),
    ),
    "mmgpt_dolly": (
        "d.jsonl",
        [{"instruction": "Name.", "context": "near us", "response": "Mars.", "category": "qa"}],
        asked("", ["Name."], "Mars.", ["|near us"]),
    ),
    "mmgpt_alpaca_gpt4": ("a.json", [INSTRUCTION], asked("", ["Name a planet."], "Mars.", ["|near us"])),
    "mmgpt_baize": (
        "b.json",
        [{"topic": "t", "input": "Hi.\n[|Human|] Why?\n[|AI|] So.\nYes.\n[|Human|] And?\n[|AI|] No.\n[|Human|] "}],
        {"user: Why?\nassistant: So.\nYes.\nuser: And?\nassistant: No."},
    ),
    "open_vqa_images": (
        "o.jsonl",
        [{"question": "Where?", "answer": ["station"], "index": 1, "image": "images/a.jpg", "class": "Place"}],
        asked("[i/images/a.jpg]", ["Where?"], "station"),
    ),
    "open_vqa_videos": (
        "o.jsonl",
        [{"question": "Down?", "answer": ["yes"], "index": 1, "video": "images/9.mp4", "class": "Action(Y/N)"}],
        asked("<i/images/9.mp4>", ["Down?"], "yes"),
    ),
    "msvd_qa": (
        "m.json",
        [{"answer": "a", "id": 0, "question": "Who?", "video_id": 1}],
        asked("<i/vid1.avi>", ["Who?"], "a"),
    ),
    "msrvtt_qa": (
        "m.json",
        [{"answer": "a", "id": 0, "question": "Who?", "video_id": 9}],
        asked("<i/video9.mp4>", ["Who?"], "a"),
    ),
    "next_qa": (
        "n.csv",
        [{"video": "4010", "frame_count": "369", "question": "why", "answer": "fun", "qid": "6", "type": "CW"}],
        asked("<i/4010.mp4>", ["why"], "fun"),
    ),
    "alpaca_zh": ("a.json", [{**INSTRUCTION, "instruction": "你好"}], asked("", ["你好"], "Mars.", ["|near us"])),
    "llava_zh": (
        "q.json",
        [{"id": "1", "image": "C_1.jpg", "instruction": "什么颜色？", "type": "conv", "question_id": 0}],
        {"user: [i/C_1.jpg] 什么颜色？"},
    ),
    "owleval_zh": (
        "q.json",
        [{"image": "1.jpg", "question_id": 1, "question": "有趣？", "type": "ocr"}],
        {"user: [i/1.jpg] 有趣？"},
    ),
}
FORMS: dict[tuple[str, str], set[str]] = {
    ("mmgpt_llava_dial", "published"): {OVERLAPPING},
    ("mmgpt_coco_dial", "published"): {OVERLAPPING},
    ("mmgpt_baize", "published"): {"user: Why?\nassistant: So.Yes.\nuser: And?\nassistant: No."},
    ("mmgpt_nlvrv2", "published"): asked("[i/a.png+i/b.png]", [f"The left one is red. {t}" for t in TRUE], "True", TF)
    | asked("[i/b.png+i/a.png]", [f"The right one is red. {t}" for t in TRUE], "True", TF),
    ("mmgpt_aokvqa", "official"): asked(
        "[i/train2017/000000000012.jpg]", [f"How many? {r}" for r in REASON], "The answer is b. Because One."
    ),
}  # fmt: skip
OTHER_RECORDS = {
    "official": [{"image_id": 12, "question": "How many?", "choices": ["a", "b"], "correct_choice_idx": 1,
                  "rationales": ["One."]}]
}  # fmt: skip


def write(file: Path, data: Any) -> None:
    if file.suffix == ".csv":
        head, rows = list(data[0]), [list(r.values()) for r in data]
        file.write_text("\n".join(",".join(map(str, r)) for r in [head, *rows]))
    elif file.suffix == ".jsonl" or file.name == "dev.json":
        file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in data))
    else:
        file.write_text(json.dumps(data))


def source(tmp_path: Path, corpus: str, kind: str = "default") -> Source:
    """The corpus over its few records; images are looked for in ``i`` but need not be there."""
    name, data, _ = CASES[corpus]
    write(tmp_path / name, OTHER_RECORDS.get(kind, data))
    shipped = parse_file(corpus_file(corpus)).data
    wanted = shipped["build_info"]
    info = {"storage": "i"} if "storage" in wanted else {"ann_path": str(tmp_path / name)}
    if "image_path" in wanted:
        info["image_path"] = "i"
    if wanted.get("missing_images") == "drop":
        info["missing_images"] = "quarantine"
    cfg = load_config({"model": {"arch": "minigpt4", "model_type": "tiny"},
                       "datasets": {corpus: {"type": kind, "build_info": info}}}, check="none")  # fmt: skip
    return build_source(corpus, cfg.datasets[corpus], 32)


def shown(sample: Sample) -> str:
    def one(part: Any) -> str:
        if isinstance(part, Text):
            return ("|" if isinstance(part, Input) else "") + part.text
        said = "+".join(part.source) if isinstance(part.source, tuple) else part.source
        return f"<{said}>" if isinstance(part, Video) else f"[{said}]"

    return "\n".join(f"{m.role}: " + " ".join(map(one, m.parts)) for m in sample.messages)


def forms(found: Source) -> set[str]:
    """Every form of the first sample that comes up in many draws, its texts cleaned as for training."""
    from vlm.datasets.loading.sampler import Ref
    from vlm.datasets.loading.sources import read_sample

    return {
        shown(read_sample(found, Ref(epoch, 0), seed=0))
        for epoch in range(1500 if hasattr(found.dataset, "draw") else 1)
    }


def test_every_corpus_of_records_is_here() -> None:
    shipped = {n: parse_file(corpus_file(n)).data for n in corpora()}
    ours = {
        n for n, d in shipped.items() if d["format"] in ("table", "transcript", "conversation_json", "caption_folder")
    }
    assert ours == set(CASES)
    kinds = {(n, kind) for n in ours for kind in shipped[n].get("types", {})}
    assert kinds == set(FORMS)


@pytest.mark.parametrize("corpus", CASES)
def test_samples_of_a_corpus(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if corpus == "cc_sbu_align":
        (tmp_path / "i").mkdir()
        write(tmp_path / "i" / CASES[corpus][0], CASES[corpus][1])
    assert forms(source(tmp_path, corpus)) == CASES[corpus][2]


@pytest.mark.parametrize(("corpus", "kind"), FORMS)
def test_samples_of_another_form(corpus: str, kind: str, tmp_path: Path) -> None:
    assert forms(source(tmp_path, corpus, kind)) == FORMS[corpus, kind]


def test_pools_are_of_one_sentence_per_line_without_repetition() -> None:
    for file in POOLS.iterdir():
        lines = file.read_text().splitlines()
        assert len(lines) == len(set(lines)) >= 4
        assert all(line.strip() for line in lines), file


def test_visual_answers_are_drawn_as_often_as_given(tmp_path: Path) -> None:
    found = source(tmp_path, "coco_vqa")
    answers = [found.dataset.draw(0, random.Random(k)).messages[1].text for k in range(900)]
    assert abs(answers.count("2") - 600) < 60


def test_own_data_in_the_run_file_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "A?", "answer": "b"}\n')
    paths = ["hf://owner/name", str(tmp_path / "mine.jsonl")]
    entry = {"format": "table", "build_info": {"ann_path": paths, "user": ["Q: {question}", "{question}"]}}
    model = {"arch": "minigpt4", "model_type": "tiny"}
    config = load_config({"model": model, "datasets": {"mine": entry}}, check="all").datasets["mine"].format.config
    assert (config.ann_path, config.assistant) == (paths, "{answer}")
    entry["build_info"] = {"ann_path": paths[1:], "user": "Q: {question}"}
    cfg = load_config({"model": model, "datasets": {"mine": entry}}, check="all")
    assert forms(build_source("mine", cfg.datasets["mine"], 32)) == {"user: Q: A?\nassistant: b"}
    entry["build_info"] = {"ann_path": "/no/file.jsonl", "feilds": {}, "answer_choice": "best"}
    with pytest.raises(
        ConfigError, match="(?s)unknown key 'feilds'; did you mean 'fields'.*'best'.*first.*no such file"
    ):
        load_config({"model": model, "datasets": {"mine": entry}}, check="all")


def test_the_examples_of_the_guide_are_valid() -> None:
    guide = Path(__file__).parents[2] / "dataset" / "README_formats.md"
    blocks = re.findall(r"```yaml\n(.*?)```", guide.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        text = "model: {arch: minigpt4, model_type: tiny}\n" + block
        assert load_config(yaml.safe_load(text), check="none").datasets
