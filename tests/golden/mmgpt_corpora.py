"""Recorded samples of the published Multimodal-GPT corpora as samples of our ``mmgpt_*`` corpora.

A published sample holds random choices: a request from a pool, whether options are offered, one of several
answers. :func:`recorded_sample` looks for the draw of our corpus that gives the recorded one; the sentence from a
pool is taken from the record, because our pools have their own wording. Everything else must be equal.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vlm.common.types import Input, Message, Sample, Text
from vlm.config.composition import corpus_file
from vlm.config.parts import read_options
from vlm.config.schema import Report
from vlm.config.tree import parse_file

DRAWN = "\0"
DRAWS = 400
Turn = tuple[str, str, str]
"""Question, input and answer of a turn."""


def recorded(case: Path) -> list[dict[str, Any]]:
    """The recorded samples of a case folder: ``dataset, index, instruction, answer, input_ids, labels``."""
    return json.loads((case / "datasets_expected.json").read_text())["samples"]


@cache
def published_corpus(case: Path, name: str) -> Any:
    """The dataset ``name`` of a case folder by our corpus file, in its published form where it has one."""
    said = json.loads((case / "datasets_expected.json").read_text())["configs"][name]
    file = corpus_file(f"mmgpt_{said['type']}")
    assert file is not None, f"no corpus mmgpt_{said['type']}"
    corpus = parse_file(file).data
    form = corpus.get("types", {}).get("published", {}).get("build_info", {})
    paths = said.get("ann_paths") or [said["ann_path"]]
    options = {**corpus["build_info"], **form, "ann_path": [str(case / "datasets" / p) for p in paths]}
    if "vis_root" in said:
        options["image_path"] = str(case / "datasets" / said["vis_root"])
    user = options.get("user", "")
    options["pools"] = {k: [DRAWN] if f"{{{k}}}" in user else v for k, v in options.get("pools", {}).items()}
    if not options["pools"]:
        del options["pools"]
    report = Report()
    part = read_options("dataset", corpus["format"], options, (), (), report)
    report.raise_if_any(name)
    from vlm.common.registry import resolve

    return resolve("dataset", corpus["format"])(part.config)


def recorded_turns(record: dict[str, Any]) -> list[Turn]:
    """Question, input and answer of each turn of a recorded sample."""
    asked, answers = record["instruction"], record["answer"]
    pairs = zip(asked, answers, strict=True) if isinstance(asked, list) else [(asked, answers)]
    return [(_section(a, "Instruction"), _section(a, "Input"), answer) for a, answer in pairs]


def recorded_sample(case: Path, record: dict[str, Any]) -> Sample:
    """Our sample with the recorded random choices. AssertionError when no draw gives it."""
    data = published_corpus(case, record["dataset"])
    wanted = recorded_turns(record)
    tried: list[list[Turn]] = []
    for seed in range(DRAWS if hasattr(data, "draw") else 1):
        sample = data.draw(record["index"], random.Random(seed)) if hasattr(data, "draw") else data[record["index"]]
        with_sentence = _with_sentence(sample, wanted)
        if turns(with_sentence) == wanted:
            return with_sentence
        tried.append(turns(sample))
    raise AssertionError(f"{record['dataset']} {record['index']}: recorded {wanted}, no draw gives it: {tried[:3]}")


def turns(sample: Sample) -> list[Turn]:
    """Question, input and answer of each turn of a sample."""
    spoken = [m for m in sample.messages if m.role != "system"]
    assert [m.role for m in spoken] == ["user", "assistant"] * (len(spoken) // 2)
    return [(*_asked(user), answer.text) for user, answer in zip(spoken[::2], spoken[1::2], strict=True)]


def _asked(user: Message) -> tuple[str, str]:
    texts = [p for p in user.parts if isinstance(p, Text)]
    material = [p.text for p in texts if isinstance(p, Input)]
    question = [p.text for p in texts if not isinstance(p, Input)]
    assert len(question) == 1
    assert len(material) <= 1
    return question[0], "".join(material)


def _with_sentence(sample: Sample, wanted: list[Turn]) -> Sample:
    """The recorded sentence where one was drawn, if what stands around it agrees."""
    before, mark, after = _asked(sample.messages[0])[0].partition(DRAWN)
    question = wanted[0][0]
    if not mark or not (question.startswith(before) and question.endswith(after)):
        return sample
    sentence = question[len(before) : len(question) - len(after)]
    assert sentence.strip()
    assert before.endswith(" ") or not before
    parts = [
        replace(p, text=p.text.replace(DRAWN, sentence)) if type(p) is Text else p for p in sample.messages[0].parts
    ]
    return replace(sample, messages=(Message("user", tuple(parts)), *sample.messages[1:]))


def _section(text: str, name: str) -> str:
    """What stands under ``### name:`` in a recorded prompt."""
    _, found, rest = text.partition(f"### {name}:\n")
    return rest.split("\n\n### ")[0] if found else ""
