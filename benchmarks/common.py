"""What every benchmark needs: the sizes, the baseline with the same weights, the machine, alternating medians."""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a MiniGPT-4 composition; the defaults are the CPU middle size."""

    image_size: int = 224
    patch_size: int = 14
    vision_dim: int = 512
    vision_depth: int = 6
    vision_heads: int = 8
    vision_hidden: int = 2048
    queries: int = 32
    qformer_dim: int = 256
    qformer_layers: int = 4
    qformer_heads: int = 4
    llm_dim: int = 512
    llm_layers: int = 6
    llm_heads: int = 8
    llm_hidden: int = 1376
    vocab: int = 32000


SMALL = Sizes(
    image_size=56,
    vision_dim=64,
    vision_depth=2,
    vision_heads=2,
    vision_hidden=128,
    queries=4,
    qformer_dim=32,
    qformer_layers=2,
    qformer_heads=2,
    llm_dim=64,
    llm_layers=2,
    llm_heads=2,
    llm_hidden=128,
    vocab=512,
)
SEVEN_B = Sizes(
    vision_dim=1408,
    vision_depth=39,
    vision_heads=16,
    vision_hidden=6144,
    qformer_dim=768,
    qformer_layers=12,
    qformer_heads=12,
    llm_dim=4096,
    llm_layers=32,
    llm_heads=32,
    llm_hidden=11008,
)


def llama_config(s: Sizes) -> dict[str, Any]:
    """The text model's config.json, the same for both sides."""
    return {
        "model_type": "llama", "vocab_size": s.vocab, "hidden_size": s.llm_dim, "intermediate_size": s.llm_hidden,
        "num_hidden_layers": s.llm_layers, "num_attention_heads": s.llm_heads, "num_key_value_heads": s.llm_heads,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False,
    }  # fmt: skip


def baseline(s: Sizes, seed: int = 0) -> Any:
    """transformers' BLIP-2 with a LLaMA text model; only ``language_projection`` trains."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config={
            "hidden_size": s.vision_dim, "intermediate_size": s.vision_hidden, "num_hidden_layers": s.vision_depth,
            "num_attention_heads": s.vision_heads, "image_size": s.image_size, "patch_size": s.patch_size,
            "initializer_range": 0.02,
        },
        qformer_config={
            "hidden_size": s.qformer_dim, "num_hidden_layers": s.qformer_layers, "num_attention_heads": s.qformer_heads,
            "intermediate_size": 4 * s.qformer_dim, "encoder_hidden_size": s.vision_dim, "cross_attention_frequency": 2,
        },
        text_config=llama_config(s), num_query_tokens=s.queries, image_token_index=s.vocab - 1,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_(0, 0.02)
    model.requires_grad_(False)
    model.language_projection.requires_grad_(True)
    return model.eval()


@dataclass
class TextRow:
    """One row: prompt before the image, text after it, and the supervised answer (ids)."""

    before: list[int]
    after: list[int]
    answer: list[int]


def make_rows(count: int, vocab: int, seed: int, low: int = 8, high: int = 60) -> list[TextRow]:
    """Random texts of ``low``..``high`` tokens in all, about half of them the supervised answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        total = rng.randint(low, high)
        answer = max(1, total // 2)
        ids = [rng.randrange(3, vocab - 1) for _ in range(total)]
        rows.append(
            TextRow(
                [1, *ids[: (total - answer) // 2]], ids[(total - answer) // 2 : total - answer], ids[total - answer :]
            )
        )
    return rows


def baseline_inputs(rows: list[TextRow], s: Sizes) -> dict[str, torch.Tensor]:
    """Right-padded tensors for the baseline: the image is ``queries`` placeholder ids."""
    sequences = [r.before + [s.vocab - 1] * s.queries + r.after + r.answer for r in rows]
    width = max(map(len, sequences))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, sequence) in enumerate(zip(rows, sequences)):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
        labels[i, len(sequence) - len(row.answer) : len(sequence)] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alternate(
    sides: dict[str, Callable[[], None]], rounds: int, sync: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each side, measured in turns within one run (one warm-up round is thrown away)."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, step in sides.items():
            gc.collect()
            sync()
            start = time.perf_counter()
            step()
            sync()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def resident() -> float:
    """MiB of this process in memory, mapped pages of files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def forget_peak() -> None:
    """The peak of resident memory starts again."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> float:
    """MiB of this process in memory at most, since the start or :func:`forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def median(values: list[float]) -> float:
    """Median, rounded for the record."""
    return round(statistics.median(values), 5)


def machine() -> dict[str, Any]:
    """Hardware and versions, stored with every result."""
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    info = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info  # fmt: skip


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result with the machine, the commit and the date."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    path = RESULTS / f"{name}.json"
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = {**result, "machine": machine(), "commit": commit, "date": time.strftime("%Y-%m-%d"), "command": command}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
