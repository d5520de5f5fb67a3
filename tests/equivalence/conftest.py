"""Runs of the tiny published composition, and a small model for many questions."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator

import pytest
import torch

from vlm.inference.engine import Engine

from .batching_subjects import SUBJECTS
from .tiny import DATA, Tiny


@pytest.fixture
def tiny(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tiny(tmp_path)
    torch.set_num_threads(threads)


@pytest.fixture
def three(tiny):
    """Two map-style datasets and a stream of shards."""
    source = DATA / "data" / "cc_sbu_align"
    shutil.copytree(source, tiny.folder / "second")
    notes = json.loads((source / "filter_cap.json").read_text())["annotations"]
    with tarfile.open(tiny.folder / "0.tar", "w") as tar:
        for name, caption in [(a["image_id"], a["caption"]) for a in notes] * 3:
            key = f"{len(tar.getmembers()):03d}"
            image = (source / "image" / f"{name}.jpg").read_bytes()
            for ext, data in (("jpg", image), ("json", json.dumps({"caption": caption[:60]}).encode())):
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    second = {"format": "caption_folder", "build_info": {"storage": str(tiny.folder / "second")}, "sample_ratio": 2}
    shards = {"format": "web_shards", "build_info": {"storage": str(tiny.folder / "0.tar"), "shuffle": 4}}
    more = f"datasets:\n  second: {json.dumps(second)}\n  shards: {json.dumps(shards)}\n"
    tiny.config.write_text(tiny.config.read_text().replace("datasets:\n", more, 1))
    return tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with a LLaMA of random weights, one for each module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SUBJECTS["llama"].make(tmp_path_factory.mktemp("model"))
    torch.set_num_threads(threads)
