"""Memory of merging: ``python -m benchmarks.merge_memory [--width 2048] [--layers 14]``.

Writes a language model of random size with a delta, merges it in a process of its own, and compares the growth of
resident memory with the largest file that was written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import write

CASE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "visualcla" / "open"
RANK = 8
WRAPPED = "base_model.model."


def make_files(root: Path, width: int, layers: int, vocab: int) -> None:
    """A base LLM in one float16 file and a float32 delta of it."""
    inner = width * 11 // 4
    shapes = {"model.embed_tokens": (vocab, width), "lm_head": (vocab, width)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.self_attn.{n}_proj": (width, width) for n in "qkvo"}
        shapes |= {f"model.layers.{i}.mlp.{n}_proj": (inner, width) for n in ("gate", "up")}
        shapes[f"model.layers.{i}.mlp.down_proj"] = (width, inner)
    text, delta = root / "text", root / "delta"
    text.mkdir()
    torch.save(
        {f"{k}.weight": torch.full(s, 0.02, dtype=torch.float16) for k, s in shapes.items()}, text / "pytorch_model.bin"
    )
    (text / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab, "hidden_size": width}))
    shutil.copytree(CASE / "lora_model", delta)
    held = {f"text_model.{k}.weight": torch.full((vocab + 4, width), 0.01) for k in list(shapes)[:2]}
    for name, (rows, columns) in list(shapes.items())[2:]:
        held[f"text_model.{name}.lora_A.weight"] = torch.full((RANK, columns), 0.01)
        held[f"text_model.{name}.lora_B.weight"] = torch.full((rows, RANK), 0.01)
    whole = torch.load(CASE / "lora_model" / "adapter_model.bin", weights_only=True)
    held |= {k.removeprefix(WRAPPED): t for k, t in whole.items() if "visual_resampler" in k or "projection" in k}
    torch.save({f"{WRAPPED}{name}": t for name, t in held.items()}, delta / "adapter_model.bin")
    config = json.loads((delta / "adapter_config.json").read_text()) | {"r": RANK}
    (delta / "adapter_config.json").write_text(json.dumps(config))
    (delta / "added_tokens.json").write_text(json.dumps({"[PAD]": vocab - 1}))


def resident(what: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def merge(root: Path, dtype: str, shard_bytes: int) -> dict[str, float]:
    """Merge in this process, after a small merge that loads everything; numbers in MiB."""
    from vlm.models.precision import parse_dtype
    from vlm.systems.visualcla.merge import merge_visualcla

    merge_visualcla(CASE / "text_model", CASE / "vision_model", [CASE / "lora_model"], root / "small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    files = merge_visualcla(
        root / "text",
        CASE / "vision_model",
        [root / "delta"],
        root / "out",
        dtype=parse_dtype(dtype),
        shard_bytes=shard_bytes,
    )
    growth, largest = resident("VmHWM") - before, max(f.stat().st_size for f in files)
    return {"growth_mib": growth >> 20, "largest_file_mib": largest >> 20, "ratio": round(growth / largest, 3)}


def main() -> None:
    """Measure and write ``benchmarks/results/merge_memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--vocab", type=int, default=16000)
    parser.add_argument("--dtype", default="fp16", choices=["fp16", "fp32"])
    parser.add_argument("--shard-mb", type=int, default=4000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(merge(asked.child, asked.dtype, asked.shard_mb * 10**6)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), asked.width, asked.layers, asked.vocab)
        command = [sys.executable, "-m", "benchmarks.merge_memory", *sys.argv[1:], "--child", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sizes = {name: getattr(asked, name) for name in ("width", "layers", "vocab", "dtype", "shard_mb")}
    print("written:", write("merge_memory", {"what": "peak of resident memory of a merge", **sizes, **found}))


if __name__ == "__main__":
    main()
