"""Hateful Memes: is an image together with the text on it hateful?"""

from __future__ import annotations

from collections.abc import Iterator

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item


@register_benchmark("hateful_memes")
@register_benchmark("hm")
class HatefulMemes(StandardBenchmark):
    """Hateful Memes; ``hm`` in published configurations."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"id", "img", "text", "label"}``."""
        for number, line in enumerate(files.json_lines("{split}.jsonl"), start=1):
            if "label" not in line:
                raise DataError(f"{files.annotations}: line {number} has no label", fix="use a split with labels (dev)")
            if str(line["label"]) not in ("0", "1"):
                raise DataError(
                    f"{files.annotations}: line {number}: label {line['label']!r}", fix="expected is 0 or 1"
                )
            truth = "yes" if str(line["label"]) == "1" else "no"
            yield Item(str(line["id"]), line["text"], (files.image(line["img"]),), truth, {}, ("yes", "no"))


def whole_word(output: str, item: Item) -> str | None:
    """The whole answer, if it is yes or no in any case."""
    word = output.lower().strip()
    return word if word in ("yes", "no") else None


def first_word(output: str, item: Item) -> str | None:
    """Yes or no as the first word."""
    words = output.lower().replace(",", " ").replace(".", " ").split()
    return words[0] if words and words[0] in ("yes", "no") else None
