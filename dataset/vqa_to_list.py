"""Official question and annotation files of VQAv2 or OK-VQA -> the list that coco_vqa and ok_vqa read.

    python dataset/vqa_to_list.py --questions v2_OpenEnded_mscoco_train2014_questions.json \\
        --annotations v2_mscoco_train2014_annotations.json --split train2014 vqa_train.json

Each record of the list is {"question_id", "image": "train2014/COCO_train2014_000000000009.jpg", "question",
"answer": [every person's answer]}. A question without annotation ends the conversion: the two files do not belong
together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def load(file: Path, key: str) -> list[dict[str, Any]]:
    """The list under ``key``. Raises SystemExit when there is no such file or list."""
    if not file.is_file():
        raise SystemExit(f"error: no file {file}")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"error: {file} is not JSON ({error})") from None
    found = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(found, list):
        raise SystemExit(f"error: {file} has no list {key!r}")
    return found


def joined(questions: list[dict[str, Any]], notes: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """Questions with all their answers. Raises SystemExit for a question without annotation."""
    answers = {n["question_id"]: [a["answer"] for a in n["answers"]] for n in notes}
    lost = [q["question_id"] for q in questions if q["question_id"] not in answers]
    if lost:
        raise SystemExit(f"error: {len(lost)} of {len(questions)} questions have no annotation, the first is {lost[0]}")
    return [
        {
            "question_id": q["question_id"],
            "image": f"{split}/COCO_{split}_{int(q['image_id']):012d}.jpg",
            "question": q["question"],
            "answer": answers[q["question_id"]],
        }
        for q in questions
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="file with the list questions")
    parser.add_argument("--annotations", type=Path, required=True, help="file with the list annotations")
    parser.add_argument("--split", required=True, choices=["train2014", "val2014"], help="COCO folder of the images")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    args = parser.parse_args(argv)
    found = joined(load(args.questions, "questions"), load(args.annotations, "annotations"), args.split)
    part = args.out.with_name(args.out.name + ".part")
    part.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    part.replace(args.out)
    sys.stdout.write(f"{args.out}: {len(found)} questions\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
