"""A task of lmms-eval in files of its own: colours of small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

COLORS = ("red", "green", "blue", "white", "black")


def write_task(folder: Path, name: str = "colors", count: int = 5, **changes: object) -> Path:
    """Write ``<name>.yaml``, its records and their pictures; ``changes``: keys of the YAML (None: left out)."""
    folder.mkdir(exist_ok=True)
    records = []
    for k in range(count):
        color = COLORS[k % len(COLORS)]
        Image.new("RGB", (24 + k, 24), color).save(folder / f"{k}.png")
        records.append(
            {"picture": str(folder / f"{k}.png"), "question": f"Which color is picture {k}?", "answer": color, "n": k}
        )
    (folder / f"{name}.json").write_text(json.dumps(records))
    content: dict[str, object] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.json"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "picture",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 6, "until": ["###"], "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return file


def choice(**changes: object) -> dict[str, object]:
    """The keys that make it multiple choice."""
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    options = {"doc_to_choice": list(COLORS), "generation_kwargs": None, "metric_list": [metric]}
    return {"output_type": "multiple_choice", **options, **changes}
