"""Captions: original layouts, the numbers of pycocoevalcap and of CHAIR's script, and files that do not fit."""

import json
from pathlib import Path

import pytest
from PIL import Image as Images

from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.testing import tiny_engine

RECORDED = Path(__file__).parents[1] / "scoring" / "recorded" / "captions.json"
CHAIR = Path(__file__).with_name("recorded") / "chair.json"
TEXTS = {
    1: ["A dog runs.", "A brown dog."],
    2: ["Two cats sleep.", "Cats on a bed."],
    3: ["A red bus.", "The bus waits."],
}
SAID = {1: "a dog runs on grass", 2: "two dogs", 3: "a red bus waits"}


def benchmark(name: str) -> type[StandardBenchmark]:
    return resolve("benchmark", name)


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def coco(path: Path, texts: dict[int, list[str]], **more: dict[int, str]) -> Path:
    images = [{"id": k, "file_name": f"COCO_val2014_{k:012d}.jpg", **{f: v[k] for f, v in more.items()}} for k in texts]
    notes = [
        {"id": n, "image_id": k, "caption": c}
        for n, (k, c) in enumerate((k, c) for k, own in texts.items() for c in own)
    ]
    return write(path, {"images": images, "annotations": notes})


def answered(path: Path, said: dict) -> str:
    return str(write(path, [{"image_id": k, "caption": v} for k, v in said.items()]))


def items(name: str, path: Path, split: str = "", media: Path | None = None) -> list[Item]:
    cls = benchmark(name)
    return cls.items(Files(path, media, split or cls.spec().splits[0]))


@pytest.mark.parametrize("protocol", ["official", "lmms"])
def test_results_in_cocos_form_score_as_pycocoevalcap_scores_them(tmp_path: Path, protocol: str) -> None:
    data = json.loads(RECORDED.read_text(encoding="utf-8"))
    coco(tmp_path / "captions_val2014.json", {image["id"]: image["references"] for image in data["images"]})
    file = answered(tmp_path / "results.json", {image["id"]: image["candidate"] for image in data["images"]})
    options = StandardOptions(split="val2014", protocol=protocol)
    found = score_file(benchmark("coco_caption_eval"), str(tmp_path), "", [file], options).scores
    values, metrics = data["values"], found["metrics"]
    assert found["primary"] == "cider" and found["count"] == 60
    for name in ("cider", "rouge_l", "meteor_exact_stem"):
        assert metrics[name] == pytest.approx(values[name], abs=1e-9)
    assert [metrics[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(values["bleu"], abs=1e-9)
    assert found["intervals"]["bleu_4"][0] < metrics["bleu_4"] < found["intervals"]["bleu_4"][1]


def test_karpathys_file_and_its_lists_give_the_images_of_a_split(tmp_path: Path) -> None:
    images = [
        {
            "filepath": "val2014", "filename": f"COCO_val2014_{k:012d}.jpg", "cocoid": k,
            "split": "train" if k == 3 else "test", "sentences": [{"raw": c, "tokens": []} for c in own],
        }
        for k, own in TEXTS.items()
    ]  # fmt: skip
    write(tmp_path / "a" / "dataset_coco.json", {"images": images})
    (tmp_path / "a" / "val2014").mkdir()
    (tmp_path / "a" / "val2014" / "COCO_val2014_000000000001.jpg").touch()
    found = items("coco_caption_eval", tmp_path / "a")
    assert [item.id for item in found] == ["1", "2"] and found[0].references == tuple(TEXTS[1])
    assert found[0].media[0].source.endswith("/a/val2014/COCO_val2014_000000000001.jpg")
    listed = [{"image": f"val2014/COCO_val2014_{k:012d}.jpg", "caption": own} for k, own in TEXTS.items()]
    write(tmp_path / "b" / "coco_karpathy_test.json", listed)
    assert [item.id for item in items("coco_caption_eval", tmp_path / "b")] == ["1", "2", "3"]
    cls = benchmark("coco_caption_eval")
    asked = cls.prompt(cls.spec().protocol("lmms"), found[0])
    own = cls.prompt(cls.spec().protocol("lmms"), Item("1", "", ()))
    assert asked == "Describe the image briefly." and own == "Provide a one-sentence caption for the provided image."
    with pytest.raises(DataError, match="no image of split val; it has test, train|no image of split val"):
        items("coco_caption_eval", tmp_path / "a", "val")


def test_nocaps_scores_each_domain_alone(tmp_path: Path) -> None:
    domains = {1: "in-domain", 2: "near-domain", 3: "in-domain"}
    coco(tmp_path / "nocaps_val_4500_captions.json", TEXTS, domain=domains)
    file = answered(tmp_path / "results.json", SAID)
    found = score_file(benchmark("nocaps"), str(tmp_path), "", [file], StandardOptions())
    metrics = found.scores["metrics"]
    assert set(metrics) >= {"cider", "cider_in_domain", "cider_near_domain"} and "cider_out_domain" not in metrics
    assert metrics["cider_near_domain"] == 0.0  # one image: no word is rarer than another
    alone = {k: TEXTS[k] for k in (1, 3)}
    other = coco(tmp_path / "in" / "nocaps_val_4500_captions.json", alone, domain={1: "in-domain", 3: "in-domain"})
    file = answered(tmp_path / "in.json", {k: SAID[k] for k in alone})
    again = score_file(benchmark("nocaps"), str(other.parent), "", [file], StandardOptions())
    assert metrics["cider_in_domain"] == again.scores["metrics"]["cider"]


def test_a_test_split_without_captions_gives_the_servers_file_and_no_score(tmp_path: Path) -> None:
    write(tmp_path / "nocaps_test_image_info.json", {"images": [{"id": k, "file_name": f"{k}.jpg"} for k in TEXTS]})
    file = answered(tmp_path / "results.json", SAID)
    found = score_file(benchmark("nocaps"), str(tmp_path), "", [file], StandardOptions(split="test"))
    assert found.scores["metrics"] == {} and found.scores["count"] == 3
    rows = json.loads(found.files["captions_results.json"])
    assert rows[1] == {"image_id": 2, "caption": "two dogs"} and len(rows) == 3


def test_flickr_by_karpathys_file_or_by_tokens_and_a_list(tmp_path: Path) -> None:
    images = [
        {"filename": f"{k}.jpg", "imgid": k - 1, "split": "test", "sentences": [{"raw": c} for c in own]}
        for k, own in TEXTS.items()
    ]
    write(tmp_path / "a" / "dataset_flickr30k.json", {"images": images})
    (tmp_path / "b").mkdir()
    lines = [f"{k}.jpg#{n}\t{c}" for k, own in TEXTS.items() for n, c in enumerate(own)]
    (tmp_path / "b" / "results_20130124.token").write_text("\n".join(lines) + "\n")
    (tmp_path / "b" / "test.txt").write_text("3\n1\n")
    whole, some = items("flickr30k", tmp_path / "a"), items("flickr30k", tmp_path / "b")
    assert [item.id for item in whole] == ["1", "2", "3"] and [item.id for item in some] == ["1", "3"]
    assert whole[2].references == some[1].references == tuple(TEXTS[3])
    assert len(items("flickr30k", tmp_path / "b", "all")) == 3
    (tmp_path / "b" / "test.txt").write_text("9\n")
    with pytest.raises(DataError, match=r"test\.txt: 1 images without a caption, e\.g\. 9"):
        items("flickr30k", tmp_path / "b")


def test_textcaps_has_a_record_per_caption(tmp_path: Path) -> None:
    data = [{"image_id": f"0a{k}", "caption_str": c, "reference_strs": own} for k, own in TEXTS.items() for c in own]
    write(tmp_path / "TextCaps_0.1_val.json", {"dataset_type": "val", "data": data})
    file = answered(tmp_path / "results.json", {f"0a{k}": text for k, text in SAID.items()})
    found = score_file(benchmark("textcaps"), str(tmp_path), "", [file], StandardOptions())
    assert found.scores["count"] == 3
    assert json.loads(found.files["captions_results.json"])[0]["image_id"] == "0a1"


@pytest.mark.parametrize("name", ["nocaps", "flickr30k", "textcaps"])
def test_every_layout_scores_as_pycocoevalcap_scores(tmp_path: Path, name: str) -> None:
    data = json.loads(RECORDED.read_text(encoding="utf-8"))
    texts = {image["id"]: image["references"] for image in data["images"]}
    if name == "nocaps":
        coco(tmp_path / "nocaps_val_4500_captions.json", texts, domain=dict.fromkeys(texts, "out-domain"))
    elif name == "flickr30k":
        lines = [f"{k}.jpg#{n}\t{' '.join(c.split())}" for k, own in texts.items() for n, c in enumerate(own)]
        (tmp_path / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (tmp_path / "test.txt").write_text("\n".join(map(str, texts)))
    else:
        rows = [{"image_id": str(k), "caption_str": c} for k, own in texts.items() for c in own]
        write(tmp_path / "TextCaps_0.1_val.json", {"data": rows})
    file = answered(tmp_path / "said.json", {image["id"]: image["candidate"] for image in data["images"]})
    metrics = score_file(benchmark(name), str(tmp_path), "", [file], StandardOptions()).scores["metrics"]
    assert metrics["cider"] == pytest.approx(data["values"]["cider"], abs=1e-9)
    assert metrics["bleu_4"] == pytest.approx(data["values"]["bleu"][3], abs=1e-9)
    assert metrics.get("cider_out_domain", metrics["cider"]) == metrics["cider"]


def test_an_empty_caption_is_an_error_and_not_a_bad_caption(tmp_path: Path) -> None:
    coco(tmp_path / "captions_val2014.json", TEXTS)
    file = answered(tmp_path / "results.json", SAID | {2: " "})
    options = {"split": "val2014", "protocol": "official"}
    found = score_file(benchmark("coco_caption_eval"), str(tmp_path), "", [file], StandardOptions(**options))
    assert (found.scores["count"], found.scores["errors"]) == (2, 1)
    worse = score_file(
        benchmark("coco_caption_eval"), str(tmp_path), "", [file], StandardOptions(**options, empty="wrong")
    )
    assert worse.scores["count"] == 3 and worse.scores["metrics"]["rouge_l"] < found.scores["metrics"]["rouge_l"]


def chair(folder: Path, synonyms: bool) -> tuple[Path, dict]:
    data = json.loads(CHAIR.read_text(encoding="utf-8"))
    images = [{"id": int(k), "file_name": f"{k}.jpg"} for k in data["objects"]]
    categories = [{"id": int(k), "name": name} for k, name in data["categories"].items()]
    notes = [{"image_id": int(k), "category_id": c} for k, own in data["objects"].items() for c in own]
    write(folder / "instances_val2014.json", {"images": images, "annotations": notes, "categories": categories})
    coco(folder / "captions_val2014.json", {int(k): own for k, own in data["captions"].items()})
    if synonyms:
        (folder / "synonyms.txt").write_text("\n".join(data["synonyms"]) + "\n")
    return folder, data


def test_chair_is_that_of_its_script_with_the_same_synonyms(tmp_path: Path) -> None:
    folder, data = chair(tmp_path / "chair", synonyms=True)
    file = answered(tmp_path / "answers.json", data["answers"])
    found = score_file(benchmark("chair"), str(folder), "", [file], StandardOptions(split="val2014")).scores
    assert found["metrics"]["chair_i"] == data["chair_i"] and found["metrics"]["chair_s"] == data["chair_s"]
    assert found["primary"] == "chair_i" and 0 < found["metrics"]["recall"] < 1


def test_chair_without_the_published_list_uses_words_of_our_own(tmp_path: Path) -> None:
    folder, _ = chair(tmp_path / "chair", synonyms=False)
    (folder / "image_ids.txt").write_text("100\n101")
    found = items("chair", folder)
    assert [item.id for item in found] == ["100", "101"]
    cls = benchmark("chair")
    true = " and ".join(f"a {name}" for name in found[0].references) or "nothing"
    result = cls.score(found, [[Answer(true), Answer("a bus, two buses and a nonsense")]], StandardOptions())
    metrics = {m.label: m for m in result.metrics}
    assert metrics["chair_i"].rows[:, 0].tolist() == [0, 2 if "bus" not in found[1].references else 0]
    assert metrics["chair_i"].rows[1, 1] == 2
    (folder / "image_ids.txt").write_text("7")
    with pytest.raises(DataError, match=r"image_ids\.txt: 1 images without annotations, e\.g\. 7"):
        items("chair", folder)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (
            lambda d: d["annotations"].append({"id": 9, "image_id": 77, "caption": "x"}),
            "val2014",
            r"caption of image 77",
        ),
        (lambda d: d["images"].append(d["images"][0]), "val2014", "id 1 occurs twice"),
        (lambda d: d.pop("images"), "val2014", "not the annotations of COCO captions"),
        (lambda d: None, "val2017", r"none of captions_val2017\.json"),
        (lambda d: None, "test", r"none of dataset_coco\.json"),
        (lambda d: None, "valid", "valid"),
    ],
)
def test_files_that_do_not_fit_give_one_message(tmp_path: Path, change, split: str, message: str) -> None:
    file = coco(tmp_path / "captions_val2014.json", TEXTS)
    data = json.loads(file.read_text())
    change(data)
    write(file, data)
    with pytest.raises(DataError, match=message) as found:
        items("coco_caption_eval", tmp_path, split)
    assert str(found.value).count("\n") <= 1  # the fix


def test_a_file_of_another_split_and_answers_to_other_images_are_named(tmp_path: Path) -> None:
    file = coco(tmp_path / "captions_val2014.json", TEXTS)
    with pytest.raises(DataError, match=r"not of split test\s+fix: ask for split val2014"):
        items("coco_caption_eval", file)
    said = answered(tmp_path / "results.json", {1: "a dog", 2: "a cat", 8: "a bus"})
    with pytest.raises(DataError, match=r"1 of 3 questions have no answer.*\(e\.g\. 3\).*1 answers have no question"):
        score_file(benchmark("coco_caption_eval"), str(file), "", [said], StandardOptions(split="val2014"))


def test_an_engine_describes_images(tmp_path: Path) -> None:
    engine = tiny_engine(Path(__file__).parents[2] / "golden/minigpt4/open/llm", vocab_size=512)
    file = coco(tmp_path / "captions_val2014.json", TEXTS)
    for k in (1, 3):
        Images.new("RGB", (8, 8), (k * 40, 0, 0)).save(tmp_path / f"COCO_val2014_{k:012d}.jpg")
    cls, options = benchmark("coco_caption_eval"), StandardOptions(max_new_tokens=4, split="val2014")
    found = cls().run(engine, Questions(cls.open(str(file), "", options), max_bad_share=0.5), options)
    assert (found.scores["count"], found.scores["errors"]) == (2, 1)
    assert "COCO_val2014_000000000002.jpg" in str(found.predictions[1].error)
    assert found.scores["metrics"]["cider"] >= 0 and len(json.loads(found.files["captions_results.json"])) == 2
