from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.config.api import load_config
from vlm.datasets.formats.boxes import box_text, corners_of
from vlm.datasets.formats.plain_pickle import read_plain_pickle
from vlm.datasets.formats.referring import Referring
from vlm.datasets.formats.regions import Regions
from vlm.datasets.loading.sampler import Ref
from vlm.datasets.loading.sources import build_source, read_sample
from vlm.processors.caption_cleaning import BlipCaption

REF = {
    "ref_id": 7,
    "ann_id": 70,
    "image_id": 581857,
    "split": "train",
    "sentences": [{"raw": "The Lady, with a blue shirt!"}, {"raw": "lady"}],
}
BOX = {"id": 70, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 71.1]}
IMAGE = {"id": 581857, "width": 640, "height": 427}
REGION = {"region_id": 1, "image_id": 9, "phrase": "A clock", "x": 421, "y": 91, "width": 79, "height": 130}


@pytest.fixture
def refs(tmp_path: Path) -> Callable[..., Referring]:
    """A RefCOCO folder of given records; keyword arguments go to the format."""

    def make(
        refs: Any = (REF,), boxes: Any = (BOX,), images: Any = (IMAGE,), name: str = "refcoco", **options: Any
    ) -> Referring:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "refs(unc).p").write_bytes(pickle.dumps(list(refs), protocol=0))
        (folder / "instances.json").write_text(json.dumps({"annotations": list(boxes), "images": list(images)}))
        return Referring(Referring.Config(str(tmp_path), "/coco", name, **options))

    return make


@pytest.fixture
def genome(tmp_path: Path) -> Callable[..., Regions]:
    """A Visual Genome folder of given regions."""

    def make(*regions: dict[str, Any], image: dict[str, Any] | None = None, **options: Any) -> Regions:
        url = "https://cs.example.edu/people/x/VG_100K_2/9.jpg"
        image = image or {"image_id": 9, "url": url, "width": 800, "height": 600}
        (tmp_path / "region_descriptions.json").write_text(json.dumps([{"id": 9, "regions": list(regions)}]))
        (tmp_path / "image_data.json").write_text(json.dumps([image]))
        return Regions(Regions.Config(str(tmp_path), **options))

    return make


def told(sample: Any) -> tuple[str, str, str]:
    return sample.messages[0].media[0].source, sample.messages[0].text, sample.messages[1].text


def test_from_a_phrase_to_its_box(refs: Callable[..., Referring]) -> None:
    data = refs()
    image, question, answer = told(data[0])
    assert image == "/coco/COCO_train2014_000000581857.jpg"
    assert question == "[refer] The Lady, with a blue shirt!"
    assert answer == "{<16><70><37><86>}"
    assert data[0].id == "7" and len(data) == 1


def test_from_a_box_to_its_phrase(refs: Callable[..., Referring]) -> None:
    _, question, answer = told(refs(direction="identify")[0])
    assert question == "[identify] {<16><70><37><86>}"
    assert answer == "The Lady, with a blue shirt!"


def test_only_the_phrase_is_cleaned(refs: Callable[..., Referring]) -> None:
    data = refs(pool=["[refer] Where: {} ?"])
    data.clean = BlipCaption(BlipCaption.Config())
    assert told(data[0])[1] == "[refer] Where: the lady, with a blue shirt ?"


def test_sentence_and_question_are_drawn(refs: Callable[..., Referring]) -> None:
    data = refs()
    drawn = {told(data.draw(0, random.Random(seed)))[1] for seed in range(200)}
    assert len(drawn) == 2 * 7
    assert all(q.startswith("[refer] ") for q in drawn)
    assert data.draw(0, random.Random(3)) == data.draw(0, random.Random(3))


def test_only_the_wanted_split(refs: Callable[..., Referring]) -> None:
    data = refs([REF, {**REF, "ref_id": 8, "split": "testA"}], split="testA")
    assert [data[i].id for i in range(len(data))] == ["8"]
    with pytest.raises(DataError, match=r"no split 'tset'\n  fix: set split to one of testA, train"):
        refs([REF, {**REF, "split": "testA"}], split="tset")


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([float("nan"), 1, 2, 3], "finite"),
        ([1, 2, 3], "not .x, y, width, height."),
        ("1 2 3 4", "not .x, y, width, height."),
        ([True, 2, 3, 4], "not .x, y, width, height."),
        ([-5, 0, 20, 20], "outside the image"),
        ([5, 5, 0, 20], "no area"),
        ([5, 5, 20, -2], "no area"),
        ([600, 5, 60, 20], "leaves the image, which is 640 x 427"),
        ([640, 5, 0.5, 20], "leaves the image"),
    ],
)
def test_unusable_boxes(refs: Callable[..., Referring], box: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"reference 7: box .*{said}"):
        refs(boxes=[{**BOX, "bbox": box}])[0]


def test_a_box_may_touch_the_border() -> None:
    size = (300.0, 200.0)
    assert box_text(corners_of([0, 0, 300.4, 200.9], size, "x"), size) == "{<0><0><100><100>}"
    assert box_text(corners_of([-0.4, 3, 30, 55.1], size, "x"), size) == "{<0><1><9><29>}"
    with pytest.raises(DataError, match="leaves the image"):
        corners_of([0, 0, 300.4, 200.9], size, "x", slack=0)


def test_missing_entries(refs: Callable[..., Referring]) -> None:
    with pytest.raises(DataError, match="instances.json has no entry 581857 under images"):
        refs(images=[])[0]
    with pytest.raises(DataError, match="instances.json has no entry 70 under annotations"):
        refs(boxes=[])[0]
    with pytest.raises(DataError, match="width and height of the image are None and 427"):
        refs(images=[{"id": 581857, "height": 427}])[0]
    with pytest.raises(DataError, match="sentences must be a list with at least one"):
        refs([{**REF, "sentences": []}])[0]
    with pytest.raises(DataError, match="the phrase is ' '"):
        refs([{**REF, "sentences": [{"raw": " "}]}])[0]
    with pytest.raises(DataError, match="image_id 'x' does not fit image_pattern"):
        refs([{**REF, "image_id": "x"}], images=[{**IMAGE, "id": "x"}])[0]


def test_files_that_are_not_there(refs: Callable[..., Referring], tmp_path: Path) -> None:
    refs()
    with pytest.raises(DataError, match=r"refs\(umd\).p \(reference files there: refs\(unc\).p\)"):
        Referring(Referring.Config(str(tmp_path), "", splitBy="umd"))
    with pytest.raises(DataError, match="no file .*refcocog"):
        Referring(Referring.Config(str(tmp_path), "", "refcocog"))


def test_a_question_needs_one_place(refs: Callable[..., Referring]) -> None:
    with pytest.raises(DataError, match="'where is it' needs exactly one {}"):
        refs(pool=["where is it"])


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/evil"),))


def test_a_pickle_with_a_global_is_refused(tmp_path: Path) -> None:
    for name, value in (("evil", Evil()), ("class", [Path]), ("set", {1, 2})):
        file = tmp_path / name
        file.write_bytes(pickle.dumps([value], protocol=2))
        with pytest.raises(DataError, match=r"is refused: it names \w+"):
            read_plain_pickle(file, "referring")
    (tmp_path / "cut").write_bytes(pickle.dumps([REF])[:-9])
    with pytest.raises(DataError, match="is refused"):
        read_plain_pickle(tmp_path / "cut", "referring")
    (tmp_path / "old").write_bytes(b"(lp0\nS'lady'\np1\naI5\naL7L\na.")
    assert read_plain_pickle(tmp_path / "old", "referring") == ["lady", 5, 7]


def test_regions_of_visual_genome(genome: Callable[..., Regions], tmp_path: Path) -> None:
    data = genome(REGION, {**REGION, "region_id": 2, "width": 128, "height": 128})
    assert len(data) == 1
    image, question, answer = told(data[0])
    assert image == str(tmp_path / "VG_100K_2" / "9.jpg")
    assert (question, answer) == ("[refer] A clock", "{<52><15><62><36>}")
    assert len({told(data.draw(0, random.Random(s)))[1] for s in range(60)}) == 7
    data = genome(REGION, direction="identify")
    assert told(data[0])[1:] == ("[identify] {<52><15><62><36>}", "A clock")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": float("nan")}, "finite"),
        ({"width": None}, "finite"),
        ({"height": 0}, "no area"),
        ({"x": 790}, "leaves the image, which is 800 x 600"),
        ({"phrase": " "}, "the phrase is ' '"),
        ({"phrase": None}, "the phrase is None"),
        ({"image_id": 4}, "image_data.json has no entry 4"),
    ],
)
def test_unusable_regions(genome: Callable[..., Regions], change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"region 1: .*{said}"):
        genome({**REGION, **change})[0]


def test_no_small_region(genome: Callable[..., Regions]) -> None:
    with pytest.raises(DataError, match="no region of less than 100 square pixels"):
        genome(REGION, max_area=100)


@pytest.mark.parametrize("name", ["refcoco", "refcocop", "refcocog", "invrefcoco", "invrefcocop", "invrefcocog"])
def test_the_shipped_corpora(name: str) -> None:
    entry = corpus(name, {"ann_path": "/refs", "image_path": "/coco"})
    options = entry.format.config
    assert entry.format.name == "referring"
    assert options.direction == ("identify" if name.startswith("inv") else "refer")
    assert options.dataset == name.removeprefix("inv").replace("cocop", "coco+")
    assert options.splitBy == ("umd" if name.endswith("g") else "unc")


def test_the_shipped_corpus_of_regions() -> None:
    entry = corpus("refvg", {"data_dir": "/vg"})
    assert (entry.format.name, entry.format.config.max_area) == ("regions", 16384)


def corpus(name: str, build_info: dict[str, str]) -> Any:
    model = {"arch": "minigpt_v2", "model_type": "pretrain", "llama_model": "llm"}
    config = {"model": model, "datasets": {name: {"batch_size": 6, "build_info": build_info}}}
    return load_config(config, check="none").datasets[name]


def test_the_corpus_text_processor_reaches_the_phrase(refs: Callable[..., Referring], tmp_path: Path) -> None:
    refs()
    entry = corpus("refcoco", {"ann_path": str(tmp_path), "image_path": "/coco"})
    entry.text_processor = {"train": {"name": "blip_caption"}}
    source = build_source("refcoco", entry, 448)
    question = read_sample(source, Ref(0, 0), seed=1).messages[0].text
    assert question.lower().endswith(question.split("] ")[1]) and "!" not in question
