"""Writes the measured tables into the documents: ``python -m benchmarks.readme``, at the end of ``make bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

DOCS = Path(__file__).resolve().parents[1] / "docs"
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
    ]
    lines += ["", *generation_rows(text, "middle size")]
    if (RESULTS / "generate_cpu-1b.json").is_file():  # takes 16 GiB, which not every machine has
        lines += ["", *generation_rows(read("generate_cpu-1b"), "LLM of 1.1 billion parameters")]
    return "\n".join(lines)


def generation_rows(result: dict[str, Any], size: str) -> list[str]:
    """Greedy generation against transformers in float32, images and prompts included, and without them."""
    batches = result["batch"]
    lines = [f"| greedy generation against transformers in float32, {size}, {cores(result)} | "]
    lines[-1] += " | ".join(f"batch {batch}" for batch in batches) + " |"
    lines += ["|---" * (1 + len(batches)) + "|"]
    names = {
        "vlm": "float32",
        "vlm bf16": "LLM in bf16",
        "vlm int8": "LLM in int8",
        "vlm int8, images too": "LLM, vision encoder and bridge in int8",
    }
    for key, part in (("ratio", ""), ("ratio_of_further_tokens", ": tokens after the first")):
        measured = [found.get(key, {}) for found in batches.values()]
        for name in (name for name in names if all(name in ratios for ratios in measured)):
            cells = [f"{ratios[name]:.2f}x" for ratios in measured]
            lines.append(f"| {names[name]}{part} | " + " | ".join(cells) + " |")
    return lines


def serving_table() -> str:
    """Many clients against one at a time, and what was seen before."""
    runs = {"embedded model": read("serving_quickstart"), "middle size": read("serving_cpu")}
    first = next(iter(runs.values()))
    lines = [f"| {cores(first)}, float32 | " + " | ".join(runs) + " |", "|---" * (1 + len(runs)) + "|"]

    def row(what: str, value: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {what} | " + " | ".join(value(run) for run in runs.values()) + " |")

    def per_second(run: dict[str, Any], key: str) -> str:
        return f"{run[key]['requests_per_second']:.2f} / {run[key]['tokens_per_second']:.0f}"

    def milliseconds(key: str, what: str) -> Callable[[dict[str, Any]], str]:
        return lambda run: f"{run[key][what]['p50']:.0f} / {run[key][what]['p95']:.0f}"

    row("one at a time: requests/s, tokens/s", lambda run: per_second(run, "one_at_a_time"))
    row(f"{first['together']['clients']} clients: requests/s, tokens/s", lambda run: per_second(run, "together"))
    row("times as many tokens", lambda run: f"{run['ratio']['tokens_per_second']:.2f}x")
    row("to the first token, p50 / p95 ms", milliseconds("together", "first_token_ms"))
    row("per further token, p50 / p95 ms", milliseconds("together", "per_token_ms"))
    row("the same at half that load: first token", milliseconds("at_half_load", "first_token_ms"))
    row("at half that load: further tokens", milliseconds("at_half_load", "per_token_ms"))
    seen = lambda run, key: run["seen_before"]["first_token_ms"][key]  # noqa: E731
    row("first / second question about an image, ms", lambda r: f"{seen(r, 'first'):.0f} / {seen(r, 'second'):.0f}")
    turn = lambda run: run["seen_before"]["positions_of_the_first_turn"]  # noqa: E731
    row(
        "a long first turn / the next one, ms (positions of the first)",
        lambda r: f"{seen(r, 'long'):.0f} / {seen(r, 'next_turn'):.0f} ({turn(r)})",
    )
    row("memory after a tenth / all of the memory test, MiB", _memory)
    lines += [
        "",
        f"{' and '.join(str(run['requests']) for run in runs.values())} requests with an image each, "
        "answers of 8 to 128 tokens, Poisson arrivals, torch threads on both sides: "
        f"{' and '.join(str(run['machine']['threads']) for run in runs.values())}; "
        f"{first['memory'][-1]['requests']} requests in the memory test of the embedded model; "
        f"{sum(run['together']['errors'] for run in runs.values())} failed.",
    ]
    return "\n".join(lines)


def evaluate_table() -> str:
    """``vlm eval`` against lmms-eval with the same model."""
    found = read("evaluate_cpu")
    rates = found["questions_per_second"]
    lines = [f"| {found['questions']:,} questions, embedded model, {cores(found)} | questions/s |", "|---|---|"]
    lines += [f"| {name} | {rate:.1f} |" for name, rate in rates.items()]
    different = ", ".join(map(str, found["different_answers"]))
    lines += [
        "",
        f"Answers that differ from those of `vlm eval`: {different}. Batch size of `vlm eval`: {found['batch_size']}.",
    ]
    return "\n".join(lines)


def _memory(run: dict[str, Any]) -> str:
    readings = [reading["mib"] for reading in run["memory"]]
    return "not measured" if not readings else f"{readings[0]:.0f} / {readings[-1]:.0f}"


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


def scoring_table() -> str:
    """Scoring answers, without a model."""
    found = read("scoring")
    images, of, told = found["captions"]["images"], found["captions"]["references"], found["vqa_accuracy"]
    part = found["meteor_exact_stem"]
    lines = [
        f"| scoring by one process, {cores(found)} | seconds |",
        "|---|---|",
        f"| VQA accuracy of {told['answers']:,} answers, {told['references']} references each | "
        f"{told['first_cpu_seconds']:.1f} |",
    ]
    for text, name in (("CIDEr-D", "cider"), ("BLEU-1 to 4", "bleu"), ("ROUGE-L", "rouge")):
        seconds = found[name]["first_cpu_seconds"]
        lines.append(f"| {text} of {images:,} captions, {of} references each, tokens included | {seconds:.1f} |")
    seconds = part["first_cpu_seconds"]
    return "\n".join([*lines, f"| METEOR (exact, stem) of {part['images']:,} captions | {seconds:.1f} |"])


TABLES = {
    "benchmarks.md": {
        "quickstart-table": quickstart_table,
        "benchmark-table": benchmark_table,
        "load-table": serving_table,
        "data-table": data_table,
        "evaluate-table": evaluate_table,
        "scoring-table": scoring_table,
    },
    "guides/serve.md": {"load-table": serving_table},
    "guides/lmms_eval.md": {"evaluate-table": evaluate_table},
}


def main() -> None:
    """Replace the tables."""
    for page, tables in TABLES.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        for name, table in tables.items():
            start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
            head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
            text = f"{head}\n{table()}\n{tail}"
        (DOCS / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
