"""Memory of importing a Hugging Face folder: ``python -m benchmarks.import_memory [--width 1024] [--experts 0]``.

Writes a LLaVA of random size in shards, loads it in a process of its own, and compares what resident memory grows by,
beyond the model itself, with the largest shard.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.common import write
from benchmarks.merge_memory import resident
from tests.golden.installed import llava
from vlm.checkpoint.stream import write_index


def make_folder(folder: Path, width: int, layers: int, vocab: int, experts: int, shard_bytes: int) -> None:
    """A LLaVA with an LLM of this size, in float32 shards."""
    from transformers import LlamaConfig, Qwen2MoeConfig

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8}
    text = LlamaConfig(**sizes, intermediate_size=width * 11 // 4)
    if experts:
        text = Qwen2MoeConfig(**sizes, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=width // 2)
    llava.build(folder, text, vocab=vocab)
    whole = folder / "model.safetensors"
    with safe_open(whole, framework="pt") as file:
        groups: list[dict[str, torch.Tensor]] = [{}]
        for name in file.keys():  # noqa: SIM118 (it is not a mapping)
            tensor = file.get_tensor(name)
            if groups[-1] and sum(t.nbytes for t in groups[-1].values()) + tensor.nbytes > shard_bytes:
                groups.append({})
            groups[-1][name] = tensor
    for number, group in enumerate(groups):
        save_file(group, folder / f"model-{number}.safetensors", {"format": "pt"})
    where = {name: f"model-{number}.safetensors" for number, group in enumerate(groups) for name in group}
    write_index(folder / "model.safetensors.index.json", whole.stat().st_size, where)
    whole.unlink()


def load(folder: Path) -> dict[str, float]:
    """Load the folder in this process, after a small one that loads every module; numbers in MiB."""
    from vlm.inference.engine import Engine

    Engine.load(folder / "small", "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    engine = Engine.load(folder / "large", "cpu")
    model = sum(p.nbytes for p in engine.model.state_dict().values())
    growth, largest = resident("VmHWM") - before, max(f.stat().st_size for f in (folder / "large").glob("model-*"))
    extra = growth - model
    mib = {"growth_mib": growth >> 20, "model_mib": model >> 20, "extra_mib": extra >> 20, "shard_mib": largest >> 20}
    return mib | {"ratio": round(extra / largest, 3)}


def main() -> None:
    """Measure and write ``benchmarks/results/import_memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=16000)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--shard-mb", type=int, default=150)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(load(asked.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shard_bytes = asked.shard_mb * 10**6
        make_folder(root / "small", 32, 2, 300, asked.experts, shard_bytes)
        make_folder(root / "large", asked.width, asked.layers, asked.vocab, asked.experts, shard_bytes)
        command = [sys.executable, "-m", "benchmarks.import_memory", "--child", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sizes = {name: getattr(asked, name) for name in ("width", "layers", "vocab", "experts", "shard_mb")}
    what = "growth of resident memory beyond the model, when a folder is loaded"
    name = "import_memory_experts" if asked.experts else "import_memory"
    print("written:", write(name, {"what": what, **sizes, **found}))


if __name__ == "__main__":
    main()
