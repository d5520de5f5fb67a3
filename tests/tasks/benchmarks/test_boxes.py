"""RefCOCO from its JSON files: three protocols against recorded numbers, splits, stored answers, faults."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from vlm.common.errors import DataError
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.boxes.refcoco import RefCoco, RefCocoG, RefCocoPlus
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.tasks.scoring.statistics import difference

RECORDED = json.loads((Path(__file__).parent / "recorded" / "refcoco.json").read_text())
RECORD = {"img_id": "COCO_train2014_000000000009_3", "sents": "red cup", "bbox": [10, 20, 30, 40]}
RECORD |= {"height": 100, "width": 200}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco" / "refcoco_val.json").write_text(json.dumps(RECORDED["records"]))
    return tmp_path


def scored(folder: Path, protocol: str, answers: list[str], split: str = "val"):
    options = StandardOptions(protocol=protocol, split=split)
    items = RefCoco.open(str(folder), "", options).items
    return RefCoco.score(items, [[Answer(a) for a in answers]], options)


def test_published_numbers(folder: Path) -> None:
    found = scored(folder, "published", RECORDED["answers"])
    assert found.scores["metrics"]["accuracy"] * 100 == RECORDED["published"]["printed"]
    assert found.scores["unread"] == 11 and found.scores["errors"] == 0
    assert json.loads(found.files["val.json"]) == {
        name: kept for name, kept in RECORDED["published"]["file"].items() if kept
    }


def test_a_published_result_file_gives_the_published_number(folder: Path) -> None:
    file = folder / "['refcoco']_val.json"
    file.write_text(json.dumps(RECORDED["published"]["file"]))
    options = StandardOptions(protocol="published", split="val")
    found = score_file(RefCoco, str(folder), "", [str(file)], options)
    assert found.scores["metrics"]["accuracy"] * 100 == RECORDED["published"]["printed"]
    file.write_text(json.dumps(RECORDED["published"]["file"] | {"COCO_train2014_000000009999_1": ["{<1><2><3><4>}"]}))
    with pytest.raises(DataError, match="1 answers have no question .e.g. COCO_train2014_000000009999_1#0"):
        score_file(RefCoco, str(folder), "", [str(file)], options)


def test_official_numbers(folder: Path) -> None:
    found = scored(folder, "official", RECORDED["answers"])
    values = [value or 0.0 for value in RECORDED["official"]["iou"]]
    iou = next(m for m in found.metrics if m.label == "iou")
    assert iou.rows[:, 0] == pytest.approx(values, abs=1e-12)
    assert found.scores["metrics"]["accuracy"] == RECORDED["official"]["right"] / len(values)
    assert found.scores["unread"] == RECORDED["official"]["iou"].count(None)


def test_lmms_numbers(folder: Path) -> None:
    found = scored(folder, "lmms", RECORDED["answers"]).scores["metrics"]
    said = RECORDED["lmms"]["values"]
    assert list(found)[0] == "accuracy at 0.5"
    assert found["iou"] == pytest.approx(said["IoU"], abs=1e-15) and found["center"] == said["Center_ACC"]
    for threshold in ("0.1", "0.3", "0.5", "0.7", "0.9"):
        assert found[f"accuracy at {threshold}"] == said[f"ACC@{threshold}"]


def test_all_splits_have_a_score_each_and_one_can_be_chosen(folder: Path) -> None:
    other = [RECORD, RECORD | {"sents": "cup"}]
    (folder / "refcoco" / "refcoco_testB.json").write_text(json.dumps(other))
    answers = [*RECORDED["answers"], "{<5><20><20><60>}", "{<50><50><90><90>}"]
    found = scored(folder, "published", answers, "")
    groups = found.scores["by_group"]["accuracy"]
    assert groups["testB"] == {"value": 0.5, "count": 2} and groups["val"]["count"] == 19
    assert sorted(found.files) == ["testB.json", "val.json"]
    assert scored(folder, "published", answers[-2:], "testB").scores["metrics"]["accuracy"] == 0.5
    again = difference(found.metrics[0], scored(folder, "published", answers, "").metrics[0], draws=20)
    assert again.first == again.second


def test_prompts_and_images_are_those_of_the_scripts(folder: Path) -> None:
    opened = RefCoco.open(str(folder), str(folder), StandardOptions(split="val"))
    assert opened.prompts[0] == "[refer] give me the location of left cup"
    assert opened.items[0].media[0].source == str(folder / "COCO_train2014_000000001000.jpg")
    asked = RefCoco.open(str(folder), "", StandardOptions(protocol="lmms", split="val")).prompts[0]
    assert asked.startswith("Bounding box coordinates are specified in the format (top-left x, top-left y, ")
    assert asked.endswith("bounding box coordinate of the region this sentence describes: left cup")


def test_the_files_of_the_toolkit_are_read_where_there_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "refcocog").mkdir()
    references = [
        {
            "ref_id": k,
            "ann_id": 70 + k,
            "image_id": 9,
            "split": split,
            "file_name": f"COCO_train2014_000000000009_{k}.jpg",
        }
        | {"sentences": [{"raw": f"The cup {n}.", "sent": f"the cup {n}"} for n in range(2)]}
        for k, split in enumerate(["train", "val", "test", "test"])
    ]
    file = tmp_path / "refcocog" / "refs(umd).p"
    file.write_bytes(pickle.dumps(references, protocol=2))
    tree = {"images": [{"id": 9, "width": 200, "height": 100}]}
    tree["annotations"] = [{"id": 70 + k, "image_id": 9, "bbox": [10 * k, 20, 30, 40]} for k in range(4)]
    (tmp_path / "refcocog" / "instances.json").write_text(json.dumps(tree))
    items = RefCocoG.open(str(tmp_path), "", StandardOptions()).items
    assert [i.fields["type"] for i in items] == ["val", "val", *["test"] * 4]
    assert items[5].id == "COCO_train2014_000000000009_3#1" and items[5].question == "the cup 1"
    assert list(items[5].references.values()) == [30, 20, 60, 60]
    assert len(RefCocoG.open(str(tmp_path), "", StandardOptions(split="test")).items) == 4
    (first, _) = RefCocoG.open(str(tmp_path), "", StandardOptions(split="train")).items
    assert first.id.endswith("_0#0") and RefCocoG.function("example_answer")(first) == "[0.00, 0.20, 0.15, 0.60]"
    file.write_bytes(pickle.dumps([references[0] | {"split": "val", "ann_id": 5}], protocol=2))
    with pytest.raises(DataError, match=r"refs.umd..p: reference 0: refcocog/instances.json has no object 5"):
        RefCocoG.open(str(tmp_path), "", StandardOptions(split="val"))
    with pytest.raises(DataError, match="no reference of the split 'test'"):
        RefCocoG.open(str(tmp_path), "", StandardOptions(split="test"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, r"_val.json: COCO_train2014_000000000009_3: box .* finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "has no area"),
        ({"bbox": [150, 20, 80, 40]}, "leaves the image, which is 200 x 100"),
        ({"bbox": [1, 2, 3]}, "box .* is not .x, y, width, height."),
        ({"width": None}, "width and height of the image are None and 100"),
        ({"bbox": [10, 20, 30, 41], "sents": "cup"}, "COCO_train2014_000000000009_3 has two different boxes"),
        ({"sents": ["cup", "mug"]}, r"sents is \['cup', 'mug'\], expected one phrase"),
    ],
)
def test_a_box_that_is_none_is_one_message(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "refcoco_val.json").write_text(json.dumps([RECORD, RECORD | change]))
    with pytest.raises(DataError, match=message):
        RefCoco.open(str(tmp_path), "", StandardOptions(split="val"))


def test_other_splits_and_folders_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="split of RefCOCOg"):
        RefCocoG.open(str(folder), "", StandardOptions(split="testA"))
    with pytest.raises(DataError, match=r"none of refcoco\+/refcoco\+_val.json, refcoco\+_val.json is there"):
        RefCocoPlus.open(str(folder), "", StandardOptions())
    with pytest.raises(DataError, match="none of refcoco/refcoco_testA.json, refcoco_testA.json"):
        RefCoco.open(str(folder), "", StandardOptions(split="testA"))
