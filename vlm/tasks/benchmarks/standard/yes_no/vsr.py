"""Visual Spatial Reasoning: is a statement about where things are true of the image?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.items import Files, Item, Items

HUB = "cambridgeltl/vsr_zeroshot"
"""What a published configuration names instead of a file."""
WORDS = {"true": "true", "yes": "true", "false": "false", "no": "false"}


@register_benchmark("vsr")
class Vsr(StandardBenchmark):
    """VSR: sixty-six spatial relations."""

    @classmethod
    def open(cls, annotations: str, media: str, options: StandardOptions) -> Items:
        """See :meth:`StandardBenchmark.open`."""
        if annotations.startswith("cambridgeltl/") and not Path(annotations).exists():
            raise DataError(
                f"eval_file_path of vsr is {annotations}, a dataset on the Hugging Face hub, and no file here",
                fix=f"download test.jsonl of {HUB} and give its path",
            )
        return super().open(annotations, media, options)

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"image", "caption", "label", "relation"}``; an item's id is its line, from 0."""
        for number, line in enumerate(files.json_lines("{split}.jsonl")):
            label = str(line["label"])
            if label not in ("0", "1"):
                raise DataError(f"{files.annotations}: line {number + 1}: label {label}", fix="expected is 0 or 1")
            truth = "true" if label == "1" else "false"
            fields = {"type": line.get("relation")}
            yield Item(str(number), line["caption"], (files.image(line["image"]),), truth, fields, ("true", "false"))


def lower(output: str, item: Item) -> str | None:
    """The whole answer in lower case, if it is true or false."""
    return output.lower() if output.lower() in ("true", "false") else None


def first_word(output: str, item: Item) -> str | None:
    """True or yes, false or no, as the first word."""
    words = output.lower().replace(",", " ").replace(".", " ").split()
    return WORDS.get(words[0]) if words else None
