"""MSVD-QA and MSRVTT-QA: questions about short videos with one word as the answer."""

from __future__ import annotations

from collections.abc import Iterator

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item

TYPES = ("what", "who", "how", "when", "where")
"""First words of questions by which the papers report."""


@register_benchmark("msvd_qa")
class MsvdQa(StandardBenchmark):
    """MSVD-QA: one word about a short video."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Records ``{"id", "video_id", "question", "answer"}``; videos are named ``vid1.avi``."""
        return _items(files, "vid")


@register_benchmark("msrvtt_qa")
class MsrvttQa(StandardBenchmark):
    """MSRVTT-QA: one word about a web video."""

    yaml = "msrvtt_qa"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Records ``{"id", "video_id", "question", "answer"}``; videos are named ``video1.mp4``."""
        return _items(files, "video")


def _items(files: Files, prefix: str) -> Iterator[Item]:
    for record in files.json("{split}_qa.json"):
        video = files.video(f"{prefix}{record['video_id']}", ".avi", ".mp4")
        word = record["question"].split(" ")[0].lower()
        fields = {"type": word if word in TYPES else "other", "video": str(record["video_id"])}
        yield Item(str(record["id"]), record["question"], (video,), record["answer"], fields)
