"""Writes the measured tables into docs/benchmarks.md: ``python -m benchmarks.readme``, at the end of ``make bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
SEEDS = (0, 1, 2)


def read(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cores(result: dict[str, Any]) -> str:
    """The machine of a result in a few words."""
    name = result["machine"]["cpu"].replace("(R)", "").removesuffix(" Processor")
    return f"{result['machine']['cores']} CPU cores ({name})"


def quickstart_table() -> str:
    """Accuracies of three seeds."""
    runs = [read(f"quickstart_seed{seed}") for seed in SEEDS]
    rows = {
        "right image": [r["aligned"]["overall"] for r in runs],
        "colour-kind pairs never seen together": [r["aligned"]["unseen_pairs"] for r in runs],
        "three objects": [r["aligned"]["three_objects"] for r in runs],
        "wrong image": [r["wrong_image"]["overall"] for r in runs],
        "no image": [r["no_image"]["overall"] for r in runs],
        "before alignment": [r["unaligned"]["overall"] for r in runs],
        "always the most frequent answer": [r["majority"]["overall"] for r in runs],
    }
    lines = ["| exact match of the answer | " + " | ".join(f"seed {s}" for s in SEEDS) + " |", "|---" * 4 + "|"]
    lines += [f"| {name} | " + " | ".join(f"{100 * v:.1f} %" for v in values) + " |" for name, values in rows.items()]
    first = runs[0]
    lines += [
        "",
        f"{first['aligned']['questions']} questions on held-out images of one and two objects, "
        f"{first['aligned']['unseen_pairs_questions']} on unseen pairs; "
        f"{max(r['seconds']['total'] for r in runs):.0f} s at most for everything, "
        f"on {cores(first)}.",
    ]
    return "\n".join(lines)


def benchmark_table() -> str:
    """Training step and generation against transformers."""
    step, text = read("train_step_cpu"), read("generate_cpu")
    memory = step["step_memory_mb"]
    ratio = step["ratio_to_transformers_fp32"]
    lines = [
        f"| against transformers' BLIP-2 with a LLaMA, same weights, {cores(step)} | speed |",
        "|---|---|",
        f"| training step, float32 | {ratio['vlm fp32']:.2f}x |",
        f"| training step, bfloat16 against float32 (transformers' own bfloat16: {ratio['transformers bf16']:.2f}x) "
        f"| {ratio['vlm bf16']:.2f}x |",
        f"| memory that a float32 step adds to the model: {memory['transformers fp32']:.0f} MiB against "
        f"{memory['vlm fp32']:.0f} MiB | {memory['transformers fp32'] / memory['vlm fp32']:.1f}x less |",
        f"| greedy generation, float32 | {text['ratio']:.2f}x |",
    ]
    return "\n".join(lines)


def data_table() -> str:
    """Data loading against two usual ways, and padding."""
    found = read("data_loader_cpu")
    counts = list(found["workers"])
    lines = [
        f"| samples per second of a shard of 640 x 480 JPEGs, {cores(found)} | "
        + " | ".join(f"{n} worker{'s' if n != '1' else ''}" for n in counts)
        + " |",
        "|---" * (1 + len(counts)) + "|",
    ]
    sides = {
        "MiniGPT-4's way (webdataset, PIL, torchvision; ids in the main process)": "pil",
        "transformers' BlipImageProcessor and LlamaTokenizer": "transformers",
        "this library, the same pixels as MiniGPT-4": "vlm exact",
        "this library, `image: {decode: fast}`": "vlm fast",
    }
    for text, name in sides.items():
        cells = []
        for n in counts:
            side = found["workers"][n]
            cells.append(f"{side['samples_per_second'][name]:.0f} ({side['ratio_to_pil'][name]:.2f}x)")
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    waste = found["padding_percent"]
    lines += [
        "",
        f"Padding of a LLaVA-like mixture of lengths: {waste['longest']:.0f} % of the positions in plain batches, "
        f"{waste['grouped']:.1f} % with `group_by_length`, {waste['packed']:.1f} % with `packing`.",
    ]
    return "\n".join(lines)


TABLES = {"quickstart-table": quickstart_table, "benchmark-table": benchmark_table, "data-table": data_table}


def main() -> None:
    """Replace the tables."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
        text = f"{head}\n{table()}\n{tail}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
