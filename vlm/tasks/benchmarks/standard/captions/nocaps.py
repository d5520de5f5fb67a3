"""nocaps: captions of images with objects that COCO's captions do not name."""

from __future__ import annotations

from collections.abc import Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.captions.shared import caption_scores, coco_items, compare
from vlm.tasks.benchmarks.standard.captions.shared import meteor_score as meteor_score
from vlm.tasks.benchmarks.standard.captions.shared import result_file as result_file
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.scoring.statistics import Metric, per_item

DOMAINS = ("in-domain", "near-domain", "out-domain")


@register_benchmark("nocaps")
class NoCaps(StandardBenchmark):
    """nocaps: captions of objects that COCO's captions do not name."""

    @staticmethod
    def read(files: Files) -> list[Item]:
        """The file of the split; that of the test split has images only."""
        data = files.json("nocaps_{split}_4500_captions.json", "nocaps_{split}_image_info.json")
        return coco_items(data, files, (files.split,), domain="domain")


def domain_scores(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """All metrics over all images, and CIDEr-D of each domain, which is scored alone as if there were no other."""
    result = caption_scores(items, answers)
    for domain in DOMAINS if result else ():
        places = [k for k, item in enumerate(items) if item.fields.get("domain") == domain]
        if places:
            chosen = [items[k] for k in places]
            alone = compare(chosen, [answers[k] for k in places]).cider()
            label = f"cider_{domain.replace('-', '_')}"
            result.append(per_item(label, [item.id for item in chosen], alone, unit="number"))
    return result
