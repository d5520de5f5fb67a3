"""``vlm data detect``: every layout, written as the tools write it, gives the entry and the samples that it should."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from vlm.cli.main import main
from vlm.common.errors import DataError, UserError
from vlm.common.types import Input, Sample, Text
from vlm.datasets.detect import find, roots
from vlm.datasets.detect.catalogue import catalogue_of, detect_all
from vlm.datasets.detect.find import Detected, detect
from vlm.datasets.detect.layouts import known
from vlm.datasets.formats.table import head as text_head

Write = Callable[[str, Any], Path]


def png(width: int = 4, height: int = 3) -> bytes:
    out = io.BytesIO()
    PILImage.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder in a folder of a folder, so that the search for images stays in those of the test."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    return inner


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file: a list as JSON or (by its name) JSON Lines or Parquet, bytes and texts as they are."""

    def go(name: str, content: Any) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes | str):
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        elif file.suffix == ".parquet":
            pa = pytest.importorskip("pyarrow")
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(content), file)
        elif file.suffix == ".jsonl":
            file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content))
        else:
            file.write_text(json.dumps(content, ensure_ascii=False, indent=2))
        return file

    return go


def told(sample: Sample) -> list[list[str]]:
    """Role and parts of the messages: texts, ``[input ...]``, and media as ``<kind name>``."""
    return [[m.role, *map(part, m.parts)] for m in sample.messages]


def part(found: Any) -> str:
    if isinstance(found, Text):
        return f"[input {found.text}]" if isinstance(found, Input) else found.text
    source = found.source
    return f"<{type(found).__name__.lower()} {'bytes' if isinstance(source, bytes) else Path(source).name}>"


def turns(*values: str, keys: tuple[str, str] = ("from", "value"), who: tuple[str, str] = ("human", "gpt")) -> list:
    return [{keys[0]: who[k % 2], keys[1]: v} for k, v in enumerate(values)]


def messages(*values: Any) -> list:
    return turns(*values, keys=("role", "content"), who=("user", "assistant"))


IMAGE = {"bytes": png(), "path": None}
URL = "data:image/png;base64," + base64.b64encode(png()).decode()

LAYOUTS: dict[str, tuple[str, list, dict, list]] = {
    # name: (file, records, build_info without paths, messages of the first record)
    "llava": (
        "llava_v1_5_mix665k.json",
        [
            {
                "id": "000000033471",
                "image": "coco/train2017/000000033471.jpg",
                "conversations": turns("<image>\nWhat are the colors of the bus?", "White and red.", "Moving?", "No."),
            },
            {"id": "wgByO4Y_0", "model": "", "conversations": turns("Hello", "Hi there.")},
            {"id": "1", "image": "gqa/images/1.jpg", "conversations": turns("What is it?\n<image>", "A bus.")},
        ],
        {},
        [
            ["user", "<image 000000033471.jpg>", "What are the colors of the bus?"],
            ["assistant", "White and red."],
            ["user", "Moving?"],
            ["assistant", "No."],
        ],
    ),
    "interleaved": (
        "internvl.jsonl",
        [
            {
                "id": 0,
                "image": ["images/1.jpg", "images/2.jpg"],
                "width_list": [4, 4],
                "height_list": [3, 3],
                "conversations": turns("Image-1: <image>\nImage-2: <image>\nWhich is red?", "Both."),
            }
        ],
        {"image_first": False},
        [
            ["user", "Image-1: ", "<image 1.jpg>", "Image-2: ", "<image 2.jpg>", "Which is red?"],
            ["assistant", "Both."],
        ],
    ),
    "sharegpt": (
        "mllm_sharegpt.json",
        [
            {
                "conversations": turns("<image>Who are they?", "Kane and Gretzka.", "And <image>?", "Muller."),
                "system": "Be brief.",
                "images": ["mllm_demo_data/1.jpg", "mllm_demo_data/2.jpg"],
            }
        ],
        {"image_first": False, "system": "{system}"},
        [
            ["system", "Be brief."],
            ["user", "<image 1.jpg>", "Who are they?"],
            ["assistant", "Kane and Gretzka."],
            ["user", "And ", "<image 2.jpg>", "?"],
            ["assistant", "Muller."],
        ],
    ),
    "tagged": (
        "qwen_vl.json",
        [
            {
                "id": "identity_0",
                "conversations": turns(
                    "Picture 1: <img>a/1.jpg</img>\nWhat is it?", "A dog.", "Sure?", "Yes.", who=("user", "assistant")
                ),
            },
            {"id": "identity_1", "conversations": turns("Hi", "Ho", who=("user", "assistant"))},
        ],
        {"image_tag": "<img>{}</img>", "image_first": False},
        [
            ["user", "Picture 1: ", "<image 1.jpg>", "What is it?"],
            ["assistant", "A dog."],
            ["user", "Sure?"],
            ["assistant", "Yes."],
        ],
    ),
    "messages": (
        "swift.jsonl",
        [
            {
                "messages": [
                    {"role": "system", "content": "You are helpful."},
                    *messages("<image>What is in the image, <video>and in the video?", "An elephant, and a dog."),
                ],
                "images": ["/xxx/x.jpg"],
                "videos": ["/xxx/x.mp4"],
            },
            {"messages": messages("Where?", "There."), "rejected_response": "Here."},
        ],
        {"fields": {"conversations": "messages"}, "image_first": False},
        [
            ["system", "You are helpful."],
            ["user", "<image x.jpg>", "What is in the image, ", "<video x.mp4>", "and in the video?"],
            ["assistant", "An elephant, and a dog."],
        ],
    ),
    "openai": (
        "openai.jsonl",
        [
            {
                "messages": [
                    {"role": "system", "content": "You are brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is this? "},
                            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
                ]
            },
            {"messages": messages("Hi", "Ho")},
        ],
        {"fields": {"conversations": "messages"}, "image_first": False},
        [["system", "You are brief."], ["user", "What is this? ", "<image bytes>"], ["assistant", "Red."]],
    ),
    "cauldron": (
        "train-00000-of-00001.parquet",
        [
            {
                "images": [IMAGE],
                "texts": [
                    {"user": "What color?", "assistant": "Red.", "source": "VQAv2"},
                    {"user": "Sure?", "assistant": "Yes.", "source": "VQAv2"},
                ],
            }
        ],
        {"fields": {"conversations": "texts"}, "image_first": False},
        [["user", "<image bytes>", "What color?"], ["assistant", "Red."], ["user", "Sure?"], ["assistant", "Yes."]],
    ),
    "alpaca": (
        "alpaca_mllm.json",
        [
            {
                "instruction": "<image>Translate.",
                "input": "Hund",
                "output": "dog",
                "system": "You translate.",
                "history": [["Hi", "Hello"]],
                "images": ["a/1.jpg"],
            },
            {"instruction": "Hi", "input": "", "output": "Ho", "system": "", "history": [], "images": []},
        ],
        {
            "fields": {"question": "instruction", "answer": "output"},
            "input": "{input}",
            "history": "history",
            "system": "{system}",
        },
        [
            ["system", "You translate."],
            ["user", "Hi"],
            ["assistant", "Hello"],
            ["user", "<image 1.jpg>", "Translate.", "[input Hund]"],
            ["assistant", "dog"],
        ],
    ),
    "query_response": (
        "query.jsonl",
        [
            {
                "system": "S",
                "query": "<image>55555",
                "response": "66666",
                "images": ["image_path"],
                "history": [["11", "22"]],
            },
            {"query": "eeeee", "response": "fffff"},
        ],
        {"fields": {"question": "query", "answer": "response"}, "history": "history", "system": "{system}"},
        [
            ["system", "S"],
            ["user", "11"],
            ["assistant", "22"],
            ["user", "<image image_path>", "55555"],
            ["assistant", "66666"],
        ],
    ),
    "transcript": (
        "baize.json",
        [{"topic": "x", "input": "The conversation.\n[|Human|] Why?\n[|AI|] So.\n[|Human|] "}],
        {"field": "input"},
        [["user", "Why?"], ["assistant", "So."]],
    ),
    "questions_answers": (
        "vqa.csv",
        "file,question,answer\n1.jpg,What?,A dog\n2.jpg,Why?,No\n",  # type: ignore[dict-item]
        {"fields": {"image": "file"}},
        [["user", "<image 1.jpg>", "What?"], ["assistant", "A dog"]],
    ),
    "captions": (
        "captions.tsv",
        "image\tcaption\n1.jpg\ta red dog\n2.jpg\ta blue cat\n",  # type: ignore[dict-item]
        {"fields": {"answer": "caption"}, "user": ""},
        [["user", "<image 1.jpg>"], ["assistant", "a red dog"]],
    ),
    "questions": (
        "questions.json",
        [{"image": "1.jpg", "question_id": 1, "question": "What?", "type": "ocr"}],
        {"assistant": None},
        [["user", "<image 1.jpg>", "What?"]],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_its_entry_and_its_samples(name: str, write: Write) -> None:
    file, records, build_info, wanted = LAYOUTS[name]
    found = detect(write(file, records))
    layout = next(layout for layout in known().layouts if layout.name == name)
    assert found.title == layout.title
    assert (found.entry.format, found.entry.section) == (layout.format, layout.section)
    given = {k: v for k, v in found.entry.build_info.items() if k not in ("ann_path", "image_path")}
    assert given == build_info
    assert told(found.read.samples[0]) == wanted
    assert not found.read.faults
    assert not [text for text in found.open if "images" not in text and "image is" not in text]


def test_all_layouts_of_records_are_tested() -> None:
    rest = {layout.name for layout in known().layouts if layout.container == "rows"} - set(LAYOUTS)
    assert not rest


def tar(*records: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for k, record in enumerate(records):
            for extension, data in record.items():
                info = tarfile.TarInfo(f"{k:09d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("record", "name", "options"),
    [
        ({"jpg": png(), "json": b'{"caption": "a dog", "url": "u"}', "txt": b"a dog"}, "captioned_shards", {}),
        ({"png": png(), "txt": b"a dog"}, "captioned_shards", {}),
        ({"jpg": png(), "json": b'{"TEXT": "a dog"}'}, "text_shards", {"caption_key": "TEXT"}),
    ],
)
def test_shards(record: dict[str, bytes], name: str, options: dict, write: Write) -> None:
    file = write("shards/00000.tar", tar(record))
    write("shards/00000_stats.json", {"count": 1})
    for path in (file, file.parent):
        found = detect(path)
        assert found.title == next(layout.title for layout in known().layouts if layout.name == name)
        assert found.entry.build_info == {"storage": str(path), **options}
        assert told(found.read.samples[0]) == [["user", "<image bytes>"], ["assistant", "a dog"]]


def test_shards_of_conversations_and_folders(write: Write, tmp_path: Path) -> None:
    told_ = {
        "id": "7",
        "messages": [{"role": "user", "parts": [{"image": "0.png"}]}, {"role": "assistant", "parts": [{"text": "x"}]}],
    }
    file = write("s.tar", tar({"sample.json": json.dumps(told_).encode(), "0.png": png()}))
    assert told(detect(file).read.samples[0]) == [["user", "<image bytes>"], ["assistant", "x"]]
    write("cc/filter_cap.json", {"annotations": [{"image_id": "1", "caption": "a dog"}]})
    write("cc/image/1.jpg", png())
    assert detect(tmp_path / "cc").entry.format == "caption_folder"
    write("pics/00000/000000000.jpg", png())
    write("pics/00000/000000000.txt", "a dog")
    write("pics/00000/000000000.json", {"caption": "a dog", "key": "000000000"})
    found = detect(tmp_path / "pics")
    assert told(found.read.samples[0]) == [["user", "<image 000000000.jpg>"], ["assistant", "a dog"]]


def test_saved_datasets_and_folders_of_parts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"images": [{"bytes": png(), "path": "a.png"}], "messages": messages("<image>What?", "Red.")}]
    features = datasets.Features(
        {
            "images": datasets.Sequence(datasets.Image()),
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "several"))
    for part in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        saved.to_parquet(str(tmp_path / "hub" / f"{part}.parquet"))
    arrow = next((tmp_path / "one").glob("*.arrow"))
    for path, location in {
        tmp_path / "one": "one",
        tmp_path / "several": "several/train",
        tmp_path / "hub": "hub/data/train-0000*.parquet",
        arrow: f"one/{arrow.name}",
    }.items():
        found = detect(path)
        assert told(found.read.samples[0]) == [["user", "<image bytes>", "What?"], ["assistant", "Red."]]
        assert found.entry.build_info["ann_path"] == str(tmp_path / location)
        assert found.entry.build_info["fields"] == {"conversations": "messages"}
        assert not found.open


def test_parts_of_content_as_arrow_stores_them(write: Write) -> None:
    """Every part has every key; the images are in a column of their own (llava-instruct-mix-vsft)."""
    content = [
        {"index": None, "text": "What is it?", "type": "text"},
        {"index": 0, "text": None, "type": "image"},
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"index": None, "text": "Red.", "type": "text"}]},
            ],
            "images": [IMAGE],
        }
    ]
    found = detect(write("vsft.parquet", rows))
    assert told(found.read.samples[0]) == [["user", "What is it?", "<image bytes>"], ["assistant", "Red."]]
    assert found.title.startswith("messages whose content is a list")


INFO = {
    "mllm_demo": {
        "file_name": "mllm_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "named": {
        "file_name": "named.txt",
        "columns": {"prompt": "q", "response": "a", "system": "s", "history": "h", "images": "pics"},
    },
    "tagged": {
        "file_name": "tagged.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {"role_tag": "who", "content_tag": "words", "user_tag": "me", "assistant_tag": "bot"},
        "num_samples": 5,
    },
    "plain": {"file_name": "alpaca_en_demo.json"},
    "dpo": {"file_name": "plain.json", "ranking": True},
    "gone": {"file_name": "gone.json"},
    "pokemon": {
        "hf_hub_url": "llamafactory/pokemon-gpt4o-captions",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
        "subset": "en",
    },
}


def test_dataset_info(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write("mllm_demo.json", [{"messages": messages("Who?", "Kane."), "images": ["mllm_demo_data/1.jpg"]}])
    write("mllm_demo_data/1.jpg", png())
    write(
        "named.txt",
        json.dumps([{"q": "Q", "a": "A", "s": "S", "h": [], "pics": ["mllm_demo_data/1.jpg"], "input": "no"}]),
    )
    write("tagged.json", [{"talk": turns("Hi", "Ho", keys=("who", "words"), who=("me", "bot"))}])
    write("alpaca_en_demo.json", [{"instruction": "I", "input": "J", "output": "O"}])
    info = write("dataset_info.json", INFO)
    found = dict(detect_all(catalogue_of(info), "", ()))  # type: ignore[arg-type]
    samples = {n: told(r.read.samples[0]) for n, r in found.items() if isinstance(r, Detected) and r.read.samples}
    assert samples == {
        "mllm_demo": [["user", "<image 1.jpg>", "Who?"], ["assistant", "Kane."]],
        "named": [["system", "S"], ["user", "<image 1.jpg>", "Q"], ["assistant", "A"]],
        "tagged": [["user", "Hi"], ["assistant", "Ho"]],
        "plain": [["user", "I", "[input J]"], ["assistant", "O"]],
    }
    assert found["mllm_demo"].entry.build_info == {
        "ann_path": str(tmp_path / "mllm_demo.json"),
        "fields": {"conversations": "messages", "image": "images", "role": "role", "content": "content"},
        "speakers": {"user": "user", "assistant": "assistant"},
        "image_first": False,
        "image_path": str(tmp_path),
    }
    assert ("not read", "num_samples") in found["tagged"].facts
    assert "pairs of better and worse answers" in str(found["dpo"])
    assert "no file" in str(found["gone"])
    address = "hf://llamafactory/pokemon-gpt4o-captions?config=en"
    assert found["pokemon"].entry.build_info["ann_path"] == address
    assert main(["data", "detect", str(tmp_path), "--only", "named", "tagged"]) == 0
    out = capsys.readouterr().out
    assert "dataset_info.json of LLaMA-Factory, 7 datasets" in out
    assert "pokemon" not in out
    assert main(["data", "detect", str(info), "--only", "other"]) == 2


def test_meta_file_of_several_annotation_files(write: Write, tmp_path: Path) -> None:
    write("ann/a.jsonl", [{"id": 0, "image": "1.png", "width": 4, "conversations": turns("<image>\nWhat?", "Red.")}])
    write("pics/1.png", png())
    meta = write("meta.json", {"mine": {"root": "pics", "annotation": "ann/a.jsonl", "data_augment": False}})
    [(name, found)] = detect_all(catalogue_of(meta), "", ())  # type: ignore[arg-type]
    assert isinstance(found, Detected)
    assert (name, found.entry.name, found.entry.build_info["image_path"]) == ("mine", "mine", str(tmp_path / "pics"))


def test_the_images_are_looked_for_near_the_file(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    records = [{"image": f"coco/{k}.png", "conversations": turns("<image>\nWhat?", "Red.")} for k in range(4)]
    file = write("ann/mine.json", records)
    assert main(["data", "detect", str(file)]) == 1
    out = capsys.readouterr().out
    assert "none of 4 images was found in" in out
    assert "image_path: ???" in out
    assert "coco/0.png, missing>" in out
    for k in range(4):
        write(f"data/images/coco/{k}.png", png(6, 5))
    assert main(["data", "detect", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"image_path: {tmp_path}/data/images\n" in out
    assert f"user: <image {tmp_path}/data/images/coco/0.png, 6x5> 'What?'" in out
    (tmp_path / "data/images/coco/3.png").unlink()
    assert main(["data", "detect", str(file)]) == 1
    assert "1 of 4 images are missing (coco: 1); the first is coco/3.png" in capsys.readouterr().out
    assert main(["data", "detect", str(file), "--images", str(tmp_path)]) == 1
    assert f"none of 4 images was found in {tmp_path}; " in capsys.readouterr().out
    assert main(["data", "detect", str(file), "--images", "nowhere"]) == 2


def test_images_without_the_folders_of_their_paths(write: Write, tmp_path: Path) -> None:
    file = write("mine.json", [{"image": "sam/images/7.png", "conversations": turns("<image>\nWhat?", "Red.")}])
    write("flat/7.png", png())
    found = detect(file)
    assert found.open == [
        f"no image is where the records say (sam/images/7.png), but files of these names are in {tmp_path}/flat: set "
        f'build_info.image_path: {tmp_path}/flat and image_pattern: "{{image.name}}"'
    ]


def test_the_search_for_images_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(30):
        (tmp_path / f"{k}" / "a").mkdir(parents=True)
    monkeypatch.setattr(roots, "MOST_FOLDERS", 12)
    assert len(list(roots.candidates(tmp_path / "0"))) == 12


def test_tool_turns_and_grounding_are_left_out_by_name(write: Write, capsys: pytest.CaptureFixture) -> None:
    tools = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "Sun."},
    ]
    records = [
        {"conversations": turns("Hi", "Ho"), "tools": "[]"},
        {"conversations": tools},
        {"conversations": turns("Hi", "Ho"), "objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}},
        {"conversations": turns("Hi", "Ho"), "tools": '[{"name": "weather"}]'},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "loss": False}]},
    ]
    file = write("tools.json", records)
    found = detect(file)
    assert found.entry.build_info["refused"] == "drop"
    assert found.entry.build_info["refuse"] == ["objects", "tools"]
    assert [told(s) for s in found.read.samples] == [[["user", "Hi"], ["assistant", "Ho"]]]
    assert ("left out", "4 of 5 records (refused: drop)") in found.facts
    assert "objects (refused: boxes for <ref-object> and <bbox> in the text)" in dict(found.facts)["not read"]
    with pytest.raises(DataError, match="none of 1 records can be used: 1 x the column objects has a value"):
        detect(write("objects.json", records[2:3]))


def test_one_bad_record_does_not_end_it(write: Write) -> None:
    good = {"conversations": turns("Hi", "Ho")}
    records = [good, {"conversations": []}, 7, {"conversations": turns("<image>", "x")}, good]
    found = detect(write("bad.json", records))
    assert len(found.read.samples) == 2
    assert "3 of 5 records" in dict(found.facts)["unusable"]
    assert "1 x 1 <image> placeholders but 0 images" in dict(found.facts)["unusable"]


def test_layouts_that_fit_equally_and_mixtures(write: Write, capsys: pytest.CaptureFixture) -> None:
    both = write("both.json", [{"conversations": turns("a", "b"), "messages": messages("c", "d")}])
    assert main(["data", "detect", str(both)]) == 1
    out = capsys.readouterr().out
    assert "fits 2 layouts equally well" in out
    assert "add --as sharegpt or --as messages" in out
    assert told(detect(both, wanted="messages").read.samples[0])[0] == ["user", "c"]
    with pytest.raises(UserError, match="unknown layout 'messges'"):
        detect(both, wanted="messges")
    mixed = write("mixed.json", [*[{"conversations": turns("a", "b")}] * 3, {"instruction": "x", "output": "y"}])
    found = detect(mixed)
    assert found.title.startswith("ShareGPT")
    assert "1 of 4 records have another layout, alpaca" in found.open[0]


def test_an_unknown_layout_names_its_fields_and_the_nearest(write: Write) -> None:
    file = write("odd.json", [{"conversations": [{"speaker": "human", "value": "x"}], "source": "s"}])
    with pytest.raises(
        DataError, match="fields are conversations, source.*\n *nearest: .*missing: conversations.*from"
    ):
        detect(file)


def test_remote_images_and_columns_of_another_kind(write: Write) -> None:
    with pytest.raises(DataError, match="none of 1 records can be used: 1 x http://a/b.jpg is a URL\n  fix: download"):
        detect(write("url.json", [{"image_url": "http://a/b.jpg", "question": "Q", "answer": "A"}]))
    with pytest.raises(DataError, match="nearest: questions_answers .*; missing: values of the right kind"):
        detect(write("pairs.json", [{"prompt": messages("Q"), "completion": [{"role": "assistant", "content": "A"}]}]))
    with pytest.raises(DataError, match="fields are b, m\n  fix"):
        detect(write("odd.json", [{"m": 1, "b": 2}]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pkl", b"\x80\x04\x95\x0b", "a pickle; it could run code"),
        ("a.json", b"\x80\x04\x95\x0b", "a pickle; it could run code"),
        ("a.zip", b"PK\x03\x04aaaa", "a zip archive"),
        ("a.json.gz", b"\x1f\x8b\x08", "compressed with gzip"),
        ("a.json", b" \n", "is empty"),
        ("a.json", b"[]", "no records"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'[{"a": ', "not JSON"),
        ("a.jsonl", '{"a": "\u4f60"}\n'.encode("gbk"), "GBK or Latin-1"),
        ("a.json", "[{}]".encode("utf-16"), "UTF-16"),
        ("a.txt", b"hello world", "not a file of records"),
        ("a.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
        ("a.tar", b"\0" * 257 + b"ustar" + b"x" * 300, "no record can be read"),
        ("a.json", b"[1, 2]", "expected a list of objects"),
    ],
)
def test_bad_files_have_one_message(name: str, content: bytes, words: str, write: Write) -> None:
    with pytest.raises(DataError, match=words):
        detect(write(name, content))


def test_of_a_large_file_only_the_beginning_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_head, "PART", 80_000)
    record = {"conversations": turns("Hi \u4f60", "Ho " * 50)}
    for name, content in {
        "list.json": json.dumps([record] * 1000, ensure_ascii=False),
        "indented.json": json.dumps([record] * 1000, indent=1),
        "object.json": json.dumps({"info": {}, "data": [record] * 1000}),
        "lines.jsonl": "".join(json.dumps(record, ensure_ascii=False) + "\n" for _ in range(1000)),
        "cut.json": json.dumps([record] * 1000)[:150_000],
    }.items():
        found = detect(write(name, content))
        assert len(found.read.samples) == (find.HEAD if name != "indented.json" else found.read.count)
        assert found.looked == f"the first {find.HEAD} records" or name == "indented.json"
        assert told(found.read.samples[0])[0] == ["user", "Hi \u4f60"]
    monkeypatch.setattr(text_head, "MOST", 90_000)
    with pytest.raises(DataError, match="no list of objects begins in its first"):
        detect(write("one.json", json.dumps([{"conversations": turns("Hi", "Ho " * 50_000)}])))


def test_lines_under_the_name_of_a_list(write: Write) -> None:
    lines = "".join(json.dumps({"conversations": turns("Hi", "Ho")}) + "\n" for _ in range(2))
    assert detect(write("lines.json", lines)).entry.build_info["file_type"] == "jsonl"
    assert (
        "file_type" not in detect(write("one.json", {"data": [{"conversations": turns("Hi", "Ho")}]})).entry.build_info
    )


def test_dialogues_in_cells_and_as_lists_side_by_side(write: Write) -> None:
    cell = json.dumps(messages("<image>What?", "Red.")).replace('"', '""')
    found = detect(write("cells.csv", f'image,messages\n1.jpg,"{cell}"\n'))
    assert told(found.read.samples[0]) == [["user", "<image 1.jpg>", "What?"], ["assistant", "Red."]]
    side = {"role": ["user", "assistant"], "content": ["What?", "Red."]}
    assert told(detect(write("side.jsonl", [{"messages": side}])).read.samples[0])[1] == ["assistant", "Red."]


def test_a_block_with_base64(write: Write) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    asked = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    found = detect(write("blocks.jsonl", [{"messages": messages(asked, "Red.")}]))
    assert told(found.read.samples[0]) == [["user", "<image bytes>", "What?"], ["assistant", "Red."]]


def test_an_image_inside_a_text_is_told(write: Write) -> None:
    places = turns("Is <image> red?", "Yes.")
    found = detect(write("mid.json", [{"image": "1.jpg", "conversations": places}]))
    assert "1 of 1 records have an image inside a text" in dict(found.facts)["places"]
    assert told(found.read.samples[0])[0] == ["user", "<image 1.jpg>", "Is  red?"]


def test_the_file_that_describes_it_is_named(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write("dataset_info.json", {"odd": {"file_name": "odd.json", "columns": {"prompt": "q", "response": "a"}}})
    file = write("odd.json", [{"q": "Q", "a": "A"}])
    assert main(["data", "detect", str(file)]) == 2
    assert f"vlm data detect {tmp_path} --only odd" in capsys.readouterr().out
    assert main(["data", "detect", str(tmp_path), "--only", "odd"]) == 0
    assert main(["data", "detect", "hf://owner/name"]) == 2


@pytest.mark.parametrize(("column", "layout"), [("img", "LLaVA"), ("Image", "LLaVA"), ("image_paths", "dialogues of")])
def test_images_in_columns_of_other_names(column: str, layout: str, write: Write) -> None:
    value = ["1.jpg"] if column.endswith("s") else "1.jpg"
    found = detect(write("a.json", [{column: value, "conversations": turns("<image>\nWhat?", "Red.")}]))
    assert found.title.startswith(layout)
    assert told(found.read.samples[0])[0] == ["user", "<image 1.jpg>", "What?"]


def test_too_many_unusable_records_are_to_be_decided(write: Write) -> None:
    good, bad = {"conversations": turns("Hi", "Ho")}, {"conversations": turns("Hi", "")}
    found = detect(write("bad.json", [good, bad, bad, bad]))
    assert found.open == ["a run stops where more than 1% of the records are unusable: remove them"]


def test_a_name_of_a_shipped_corpus_is_not_taken(write: Write) -> None:
    assert detect(write("llava_detail.json", [{"conversations": turns("Hi", "Ho")}])).entry.name == "my_llava_detail"
