from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.common.types import Image, Sample
from vlm.config.types import DatasetEntry, Part
from vlm.datasets.formats.web_shards import WebShards
from vlm.datasets.inspect.scan import Opened
from vlm.datasets.inspect.shards import entry_yaml, write_web_shards
from vlm.datasets.loading.sources import Source


def opened(kind: str, build_info: dict[str, Any], name: str = "mine", **options: Any) -> Opened:
    cls = resolve("dataset", kind)
    entry = DatasetEntry(name=name, format=Part(kind, cls.Config(**build_info), build_info), batch_size=2, **options)
    return Opened(name, entry, Source(name, cls(entry.format.config)))


def with_bytes(sample: Sample) -> Sample:
    """The sample with its image files as bytes."""
    messages = tuple(
        replace(m, parts=tuple(Image(Path(p.source).read_bytes()) if isinstance(p, Image) else p for p in m.parts))
        for m in sample.messages
    )
    return replace(sample, messages=messages)


def read_back(folder: Path) -> list[Sample]:
    data = WebShards(WebShards.Config(str(folder), text_roles=[]))
    return [data.decode(raw) for raw in data.records(None)]


def dialogues(folder: Path, image_of: Callable[..., bytes], count: int = 7) -> Opened:
    records = []
    for k in range(count):
        (folder / f"{k}.png").write_bytes(image_of(k))
        turns = [
            {"from": "human", "value": f'<image>\n<image>\n第{k}张图 "here"?'},
            {"from": "gpt", "value": f"No {k}.\n"},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "是的"},
        ]
        records.append({"id": f"a/{k}.x", "image": [f"{k}.png", "0.png"], "conversations": turns})
    records.append({"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})
    (folder / "d.json").write_text(json.dumps(records))
    return opened("conversation_json", {"ann_path": str(folder / "d.json"), "image_path": str(folder)})


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_back_the_same_samples(tmp_path: Path, image_of: Callable[..., bytes], workers: int) -> None:
    data = dialogues(tmp_path, image_of)
    done = write_web_shards(data, tmp_path / "out", per_shard=3, workers=workers)
    assert {k: v["samples"] for k, v in done["shards"].items()} == {"00000.tar": 3, "00001.tar": 3, "00002.tar": 2}
    assert (done["samples"], done["complete"]) == (8, True)
    assert data.source is not None
    assert read_back(tmp_path / "out" / "mine") == [with_bytes(data.source.dataset[i]) for i in range(8)]


def test_captions_and_streams_too(
    tmp_path: Path, caption_folder: Callable[..., Path], shards: Callable[..., Path]
) -> None:
    folder = opened("caption_folder", {"storage": str(caption_folder(4)), "image_ext": ".png"})
    write_web_shards(folder, tmp_path / "out")
    assert folder.source is not None
    assert read_back(tmp_path / "out" / "mine") == [with_bytes(folder.source.dataset[i]) for i in range(4)]
    stream = opened("web_shards", {"storage": str(shards((3, 2)))}, name="stream")
    write_web_shards(stream, tmp_path / "out", per_shard=2)
    assert stream.source is not None
    old = stream.source.dataset
    assert read_back(tmp_path / "out" / "stream") == [old.decode(raw) for raw in old.records(None)]


def test_the_same_bytes_every_time(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    data = dialogues(tmp_path, image_of)
    for name, workers in (("a", 0), ("b", 2)):
        write_web_shards(data, tmp_path / name, per_shard=3, workers=workers)
    one, two = (sorted((tmp_path / n / "mine").glob("*.tar")) for n in "ab")
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


def test_an_interrupted_command_goes_on(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    data, out = dialogues(tmp_path, image_of), tmp_path / "out" / "mine"
    write_web_shards(data, tmp_path / "out", per_shard=3)
    kept = (out / "00000.tar").stat().st_mtime_ns
    whole = (out / "00001.tar").read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["shards"]["00002.tar"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "00001.tar").unlink()
    (out / "00001.99.part").write_bytes(b"half")
    done = write_web_shards(data, tmp_path / "out", per_shard=3)
    assert (out / "00000.tar").stat().st_mtime_ns == kept
    assert (out / "00001.tar").read_bytes() == whole
    assert done["samples"] == 8 and done["complete"]
    assert not list(out.glob("*.part"))


def test_shards_of_other_data_are_not_mixed(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    data = dialogues(tmp_path, image_of)
    write_web_shards(data, tmp_path / "out", per_shard=3)
    with pytest.raises(DataError, match="holds shards of other data: per_shard is 3 there, 4 here"):
        write_web_shards(data, tmp_path / "out", per_shard=4)
    fewer = dialogues(tmp_path, image_of, count=4)
    with pytest.raises(DataError, match="records is 8 there, 5 here"):
        write_web_shards(fewer, tmp_path / "out", per_shard=3)
    (tmp_path / "out" / "mine" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is not JSON"):
        write_web_shards(data, tmp_path / "out", per_shard=3)
    (tmp_path / "out" / "mine" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds shards but no manifest.json"):
        write_web_shards(data, tmp_path / "out", per_shard=3)


def test_bad_records_are_left_out_and_counted(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    data = dialogues(tmp_path, image_of)
    for k in (3, 5):
        (tmp_path / f"{k}.png").unlink()
    done = write_web_shards(data, tmp_path / "out", per_shard=3)
    assert sum(s["bad"] for s in done["shards"].values()) == 2
    assert [s.id for s in read_back(tmp_path / "out" / "mine")] == ["a/0.x", "a/1.x", "a/2.x", "a/4.x", "a/6.x", "text"]
    lines = (tmp_path / "out" / "mine" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["3", "5"]
    (tmp_path / "6.png").unlink()
    with pytest.raises(DataError, match="3 of 8 records could not be used"):
        write_web_shards(data, tmp_path / "more", per_shard=3)
    (tmp_path / "d.json").write_text(
        json.dumps(
            [
                {
                    "id": "1",
                    "image": "no.png",
                    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
                }
            ]
        )
    )
    alone = opened("conversation_json", {"ann_path": str(tmp_path / "d.json"), "image_path": str(tmp_path)})
    with pytest.raises(DataError, match="no record could be written"):
        write_web_shards(alone, tmp_path / "none")


def test_a_format_that_cleans_fields_is_stored_clean(tmp_path: Path, image_of: Callable[..., bytes]) -> None:
    folder = tmp_path / "refcoco"
    folder.mkdir()
    refs = [{"ref_id": 1, "ann_id": 2, "image_id": 3, "split": "train", "sentences": [{"raw": "The Boat!"}]}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    images, boxes = [{"id": 3, "width": 6, "height": 5}], [{"id": 2, "bbox": [0, 0, 3, 5]}]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    (tmp_path / "COCO_train2014_000000000003.jpg").write_bytes(image_of(1, "JPEG"))
    data = opened("referring", {"ann_path": str(tmp_path), "image_path": str(tmp_path)})
    assert data.source is not None
    data.source.dataset.clean = str.upper
    write_web_shards(data, tmp_path / "out")
    (sample,) = read_back(tmp_path / "out" / "mine")
    assert (sample.messages[0].text, sample.messages[1].text) == ("[refer] THE BOAT!", "{<0><0><50><100>}")


def test_the_entry_that_reads_them(tmp_path: Path) -> None:
    data = opened("web_shards", {"storage": "file:///x.tar"}, sample_ratio=14.0)
    data.entry.text_processor = {"train": {"name": "blip_caption"}}
    text = entry_yaml(data, tmp_path)
    assert f'storage: "{tmp_path}/mine", text_roles: ["assistant"]' in text
    assert "sample_ratio: 14" in text and 'text_processor: {"train": {"name": "blip_caption"}}' in text
