"""Flickr30k: captions of photographs of people and what they do."""

from __future__ import annotations

from collections.abc import Iterator

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.text import lines_of, read_text
from vlm.datasets.base import MAX_TEXT
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.captions.shared import caption_scores as caption_scores
from vlm.tasks.benchmarks.standard.captions.shared import captioned, image_of, karpathy
from vlm.tasks.benchmarks.standard.captions.shared import meteor_score as meteor_score
from vlm.tasks.benchmarks.standard.captions.shared import result_file as result_file
from vlm.tasks.benchmarks.standard.items import Files, Item

FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


@register_benchmark("flickr30k")
class Flickr30k(StandardBenchmark):
    """Flickr30k: captions of photographs of people and what they do."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Karpathy's file, or the token file ``NAME.jpg#0 TAB caption`` with a list of the split's images."""
        file = files.find("dataset_flickr30k.json", "results_20130124.token", "results*.token")
        if file.suffix == ".json":
            files.used.pop()
            yield from karpathy(files.json(file.name), files, folders=FOLDERS)
            return
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(lines_of(read_text(file, max_bytes=MAX_TEXT)), start=1):
            name, tab, caption = line.partition("\t")
            if not tab:
                raise DataError(f"{file}:{number}: no tab", fix="expected is NAME.jpg#0, a tab, and the caption")
            captions.setdefault(name.partition("#")[0], []).append(caption)
        for name in _chosen(captions, files):
            yield captioned(name.partition(".")[0], image_of(files, name, *FOLDERS), captions[name])


def _chosen(captions: dict[str, list[str]], files: Files) -> list[str]:
    """The images of the split, as ``{split}.txt`` lists them; all without one for the split ``all``."""
    if files.split == "all":
        return list(captions)
    listed = files.find("{split}.txt", "flickr30k_{split}.txt")
    stems = {line.strip().partition(".")[0] for line in lines_of(read_text(listed)) if line.strip()}
    unknown = stems - {name.partition(".")[0] for name in captions}
    if unknown:
        raise DataError(f"{listed}: {len(unknown)} images without a caption, e.g. {min(unknown)}")
    return [name for name in captions if name.partition(".")[0] in stems]
