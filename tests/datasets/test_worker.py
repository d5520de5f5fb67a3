from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm.common.types import Example
from vlm.datasets.formats.caption_folder import CaptionFolder
from vlm.datasets.loading.sampler import Job, Ref
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.worker import EncodedSample, SampleReader, WorkerResult
from vlm.processors.processor import Processor


@pytest.fixture
def source(caption_folder: Callable[..., Path]) -> Source:
    root = caption_folder(6, bad=(2,))
    return Source("folder", CaptionFolder(CaptionFolder.Config(storage=str(root), image_ext=".png")), 3)


def names(result: WorkerResult) -> list[str]:
    return [s.example.id for s in result.samples]


def test_a_job_always_gives_the_same_samples(source: Source, processor: Processor) -> None:
    job = Job(tuple(enumerate([Ref(0, 0), Ref(0, 5)])))
    one, two = (SampleReader([source], processor, seed=3)[job] for _ in range(2))
    assert [s.example.ids for s in one.samples] == [s.example.ids for s in two.samples]
    assert names(one) == ["0", "5"]
    assert (one.good, one.bad, one.error) == ({"folder": 2}, [], None)


def test_a_bad_record_is_replaced_by_another_or_left_out(source: Source, processor: Processor) -> None:
    job = Job(tuple(enumerate([Ref(0, 2), Ref(0, 4)])))
    replaced = SampleReader([source], processor, seed=3)[job]
    other, kept = names(replaced)
    assert other != "2" and kept == "4"
    assert names(SampleReader([source], processor, seed=3)[job]) == [other, kept]
    assert [(b.source, b.key) for b in replaced.bad] == [("folder", "2")]
    left_out = SampleReader([source], processor, seed=3, replace_bad=False)
    assert names(left_out[job]) == ["4"]
    assert names(left_out[Job(((0, Ref(0, 2)),))]) == []


def test_a_chunk_travels_whole(processor: Processor) -> None:
    """Media of several shapes and types, videos and samples without any."""
    media = [torch.rand(1, 3, 4, 4), torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4), torch.rand(2, 3, 4, 4)]
    given = [media[:2], [], [media[2], media[0] + 1]]
    items = [EncodedSample((0, 1, k), Example([k], [k], list(m), str(k)), k) for k, m in enumerate(given)]
    found = pickle.loads(pickle.dumps(WorkerResult(items))).owned()
    assert [(i.key, i.example.ids, i.example.id, i.tokens) for i in found] == [
        ((0, 1, k), [k], str(k), k) for k in range(3)
    ]
    for item, wanted in zip(found, given, strict=True):
        assert [m.dtype for m in item.example.media] == [m.dtype for m in wanted]
        assert all(torch.equal(a, b) for a, b in zip(item.example.media, wanted, strict=True))


CHILD = """
import os, signal, subprocess, sys
from itertools import islice
from pathlib import Path
from tests_support import make
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
loader = make()
for step, batch in enumerate(islice(loader, 30)):
    if step == 3:
        subprocess.run([sys.executable, "-c", "import os, signal; os.killpg(0, signal.SIGTERM)"])
print(len(got), step)
"""

SUPPORT = """
from vlm.datasets.formats.caption_folder import CaptionFolder
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.sources import Source
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.processor import Processor
from vlm.processors.templates.roles import Plain
from vlm.processors.tokenizer.tokenizer import Tokenizer

def make():
    data = CaptionFolder(CaptionFolder.Config(storage={root!r}, image_ext=".png"))
    recipe = ImageRecipe(ImageRecipe.Config(size=4))
    processor = Processor(Tokenizer.from_folder({llm!r}), Plain(Plain.Config()), recipe)
    return TrainLoader([Source("folder", data, 2)], processor, seed=0, num_workers=2)
"""


@pytest.mark.slow
def test_workers_outlive_a_stop_signal_to_the_group(tmp_path: Path, caption_folder: Callable[..., Path]) -> None:
    """The main process decides when to stop: it may still want batches, or time to save."""
    llm = Path(__file__).parents[1] / "golden" / "minigpt4" / "open" / "llm"
    (tmp_path / "tests_support.py").write_text(SUPPORT.format(root=str(caption_folder(8)), llm=str(llm)))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        out, _ = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0
    assert out.split() == ["1", "29"]
