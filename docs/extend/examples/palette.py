"""A benchmark that reads files of its own: what is particular to it, as functions that ``palette.yaml`` names."""

from collections.abc import Iterator

from vlm import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item


@register_benchmark("palette")
class Palette(StandardBenchmark):
    """Names of colors."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """One question per line; ``{split}`` is filled in."""
        for number, line in enumerate(files.json_lines("{split}.jsonl")):
            image, fields = files.image(line["image"]), {"type": "grey" if line["answer"] == "white" else "color"}
            yield Item(str(number), line["question"], (image,), line["answer"], fields)


def first_word(output: str, item: Item) -> str | None:
    """What is scored; None: nothing can be read from the answer."""
    words = output.lower().replace(".", " ").split()
    return words[0] if words else None
