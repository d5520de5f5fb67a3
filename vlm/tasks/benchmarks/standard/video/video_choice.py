"""Multiple choice about videos in MVBench's layout: a JSON file for each task."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Video
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest
from vlm.tasks.benchmarks.standard.rules import LETTERS
from vlm.tasks.scoring.statistics import Metric, per_item
from vlm.tasks.scoring.vqa import spaced, unpunctuated

log = logging.getLogger(__name__)

FOLDERS = {
    "star/Charades_segment": ("action_sequence", "action_prediction", "object_interaction"),
    "star/Charades_v1_480": ("action_sequence", "action_prediction", "object_interaction"),
    "ssv2_video": ("action_antonym",),
    "Moments_in_Time_Raw/videos": ("fine_grained_action",),
    "FunQA_test/test": ("unexpected_action",),
    "clevrer/video_validation": (
        "object_existence", "moving_direction", "moving_count", "moving_attribute", "counterfactual_inference",
    ),
    "perception/videos": ("object_shuffle", "action_count", "state_change", "character_order"),
    "sta/sta_video_segment": ("action_localization",),
    "sta/sta_video": ("action_localization",),
    "scene_qa/video": ("scene_transition",),
    "nturgbd": ("fine_grained_pose",),
    "vlnqa": ("egocentric_navigation",),
    "tvqa/video_fps3_hq_segment": ("episodic_reasoning",),
    "tvqa/frames_fps3_hq": ("episodic_reasoning",),
}  # fmt: skip
"""Folder of MVBench's videos -> the tasks that use it; cut videos come first."""
OPTION = re.compile(r"([A-E])\.\s*.+\Z", re.IGNORECASE)
SINGLE = re.compile(r"\b([A-E])\b", re.IGNORECASE)


@register_benchmark("video_choice")
@register_benchmark("mvbench")
class VideoChoice(StandardBenchmark):
    """MVBench, and any multiple choice about videos in its layout."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Records ``{"video", "question", "candidates", "answer"}``; the id is ``task_number``, counted from 0."""
        folder = files.annotations
        names = [""] if folder.is_file() else sorted(f.name for f in folder.glob("*.json"))
        for pattern in names or ["*.json"]:
            records = files.json(pattern)
            task = files.used[-1].stem
            if any("start" in record for record in records):
                log.warning("%s: the times start and end are not read; use the cut videos of this task", task)
            for number, record in enumerate(records):
                yield _item(files, task, f"{task}_{number}", record)


def _item(files: Files, task: str, name: str, record: Mapping[str, Any]) -> Item:
    choices = tuple(str(c) for c in record["candidates"])
    answer = str(record["answer"])
    if answer not in choices:
        raise DataError(
            f"{files.used[-1]}: {name}: the answer {answer!r} is not among the candidates", fix="correct the record"
        )
    folders = [task, *(folder for folder, tasks in FOLDERS.items() if task in tasks)]
    video = Video(str(files.folder() / nearest(files, str(record["video"]), folders)))
    reference = LETTERS[choices.index(answer)]
    return Item(name, str(record["question"]), (video,), reference, {"type": task}, choices)


def bracketed(item: Item) -> str:
    """The choices, one on each line: ``(A) a dog``."""
    return "".join(f"({LETTERS[k]}) {choice}\n" for k, choice in enumerate(item.choices))


def official_prompt(item: Item) -> str:
    """The system's sentence, question and choices."""
    return (
        "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that "
        f"accurately addresses the question.\nQuestion: {item.question}\nOptions:\n{bracketed(item)}"
        "Only give the best option."
    )


def lmms_prompt(item: Item) -> str:
    """Question and choices."""
    return f"Question:{item.question}\nOption:\n{bracketed(item)}Only give the best option.\n"


def first_word(output: str, item: Item) -> str:
    """The first word of the first line, in lower case."""
    return output.strip().split("\n")[0].lower().split(" ")[0]


def any_letter(output: str, item: Item) -> str | None:
    """A to E: that of an answer such as ``A. a dog``, or else the first one that is a word; None: there is none."""
    option = OPTION.match(output.strip())
    found = option or SINGLE.search(without_punctuation(output))
    return found.group(1).upper() if found else None


def without_punctuation(text: str) -> str:
    """A text on one line in lower case, as lmms-eval compares it."""
    return unpunctuated(spaced(text)).strip("'").strip('"').strip().lower()


def contained(items: Sequence[Item], answers: Sequence[str]) -> Metric:
    """The share of first words that are in the option in brackets, such as ``(a)``, or have it in them, by task."""
    options = [f"({item.references.lower()})" for item in items]
    pairs = zip(answers, options, strict=True)
    values = [bool(a) and (a.replace(".", "") in o or o in a) for a, o in pairs]
    return per_item("accuracy", [i.id for i in items], values, groups=[i.fields["type"] for i in items])
