"""Memory of an export: ``python -m benchmarks.export_memory [--width 1024] [--to hf]``.

Writes a LLaVA of random size in shards, exports it in a process of its own, and compares what resident memory grows by
with the largest shard that is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import write
from benchmarks.import_memory import make_folder
from benchmarks.merge_memory import resident


def export(folder: Path, form: str, shard_bytes: int) -> dict[str, float]:
    """Export the folder in this process, after a small one that loads every module; numbers in MiB."""
    from vlm.inference.hub.export import HubExport

    for name in ("small", "large"):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        HubExport(HubExport.Config(form=form, shard_bytes=shard_bytes)).write(folder / name, folder / f"{name}_out")
    files = list((folder / "large_out").glob("model*.safetensors"))
    growth, largest = resident("VmHWM") - before, max(f.stat().st_size for f in files)
    whole = sum(f.stat().st_size for f in files)
    mib = {"growth_mib": growth >> 20, "model_mib": whole >> 20, "shard_mib": largest >> 20}
    return mib | {"ratio": round(growth / largest, 3)}


def main() -> None:
    """Measure and write ``benchmarks/results/export_memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=16000)
    parser.add_argument("--shard-mb", type=int, default=150)
    parser.add_argument("--form", default="")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shard_bytes = asked.shard_mb * 10**6
    if asked.child:
        print(json.dumps(export(asked.child, asked.form, shard_bytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(root / "small", 32, 2, 300, 0, shard_bytes)
        make_folder(root / "large", asked.width, asked.layers, asked.vocab, 0, shard_bytes)
        command = [sys.executable, "-m", "benchmarks.export_memory", "--child", folder, "--form", asked.form]
        command += ["--shard-mb", str(asked.shard_mb)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    sizes = {name: getattr(asked, name) for name in ("width", "layers", "vocab", "shard_mb", "form")}
    what = "growth of resident memory when a composition is exported to a folder for transformers"
    print("written:", write("export_memory", {"what": what, **sizes, **found}))


if __name__ == "__main__":
    main()
