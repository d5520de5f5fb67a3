"""What is fuzzed: each target makes a damaged input from a generator, gives it to the library, and says what happened.

The library may accept the input or refuse it with a :class:`UserError`; anything else it raises is a finding.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save

from vlm.checkpoint.load import load_file, load_model
from vlm.cli.main import main
from vlm.common.errors import UserError
from vlm.common.paths import asset
from vlm.common.registry import resolve
from vlm.config.load import load_config
from vlm.config.stored import effective
from vlm.processors.image.decode import decode
from vlm.processors.image.recipe import ImageRecipe
from vlm.testing import tiny_model

from .mutate import ODD, bent, damaged, text_of

RUN = """
model: {arch: tiny, model_type: minigpt4, max_txt_len: 64, weights: []}
datasets:
  mine:
    format: table
    batch_size: 4
    build_info: {ann_path: records.jsonl, image_path: images, user: "{question}", assistant: "{answer}"}
run: {task: image_text_pretrain, max_steps: 3, init_lr: 1e-3, num_workers: 0, seed: 1, output_dir: out, device: cpu}
"""
OPTIONS = [
    "run.max_steps=5", "run.init_lr=1e-4", "run.seed=3", "model.max_txt_len=32", "model.llm.lora.r=4",
    "datasets.mine.batch_size=2", "datasets.mine.build_info.user='{question}'", "run.trackers=[jsonl]",
    "model.image.size=64", "model.bridge=[{name: linear}]", "run.resume=never", "model.generation.temperature=0.5",
]  # fmt: skip
RECORDS: list[dict[str, Any]] = [
    {"id": f"r{k}", "image": f"{k % 3}.png", "question": "What is it?", "answer": "a boat", "type": "what", "n": k}
    for k in range(6)
]
TALKS: list[dict[str, Any]] = [
    {
        "id": f"t{k}",
        "image": f"{k % 3}.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A boat."},
            {"from": "human", "value": "And now?"},
            {"from": "gpt", "value": "Still a boat."},
        ],
    }
    for k in range(4)
]
Outcome = str


def judged(use: Callable[[], Any]) -> Outcome:
    """``accepted`` or ``refused``; whatever else ``use`` raises goes on."""
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            code = use()
    except UserError as error:
        text = str(error)
        assert text.strip() and "Traceback" not in text, f"an empty or raw message: {text!r}"
        return "refused"
    assert "Traceback" not in quiet.getvalue(), quiet.getvalue()[-2000:]
    assert not isinstance(code, int) or code in (0, 2), f"exit code {code}"
    return "refused" if code == 2 else "accepted"


@contextlib.contextmanager
def folder() -> Any:
    """A new folder with three images, as the working folder."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        (Path(name) / "images").mkdir()
        for k in range(3):
            (Path(name) / "images" / f"{k}.png").write_bytes(pictures()[0])
        yield Path(name)


def fuzz_yaml(rng: random.Random) -> Outcome:
    """A configuration with damaged text, or with odd values in its tree."""
    with folder() as here:
        (here / "records.jsonl").write_text(lines(RECORDS))
        if rng.random() < 0.5:
            data = damaged(RUN.encode(), rng)
        else:
            tree = bent(yaml.safe_load(RUN), rng)
            try:
                data = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
            except (yaml.YAMLError, RecursionError, ValueError):
                data = json.dumps(tree).encode()
        (here / "run.yaml").write_bytes(data)
        return judged(lambda: effective(load_config(here / "run.yaml", check="all")))


def fuzz_options(rng: random.Random) -> Outcome:
    """``--options`` with damaged names and values."""
    with folder() as here:
        (here / "records.jsonl").write_text(lines(RECORDS))
        (here / "run.yaml").write_text(RUN)
        options = [text_of(option, rng) for option in rng.sample(OPTIONS, rng.randint(1, 3))]
        return judged(lambda: effective(load_config(here / "run.yaml", options, check="all")))


def fuzz_records(rng: random.Random) -> Outcome:
    """Annotation files of several kinds with damaged bytes or odd values, checked as training reads them."""
    with folder() as here:
        suffix = rng.choice(["jsonl", "json", "csv", "tsv", "parquet", "talk.json", "talk.jsonl"])
        rows = TALKS if "talk" in suffix else RECORDS
        rows = [bent(row, rng) if rng.random() < 0.5 else row for row in rows]
        data = encoded(rows, suffix.split(".")[-1], rng)
        if rng.random() < 0.5:
            data = damaged(data, rng)
        (here / f"records.{suffix}").write_bytes(data)
        tree = yaml.safe_load(RUN)
        entry = tree["datasets"]["mine"]
        entry["build_info"]["ann_path"] = f"records.{suffix}"
        if "talk" in suffix:
            entry["format"] = "conversation_json"
            entry["build_info"] = {"ann_path": f"records.{suffix}", "image_path": "images"}
        (here / "run.yaml").write_text(yaml.safe_dump(tree))
        return judged(lambda: main(["data", "check", "run.yaml", "--pixels"]))


def fuzz_images(rng: random.Random) -> Outcome:
    """Image files of every format with damaged bytes."""
    data = damaged(rng.choice(pictures()), rng)
    recipe = ImageRecipe(ImageRecipe.Config(size=32))
    return judged(lambda: (decode(data, name="mutant"), recipe(data, "mutant"))[:0])


def fuzz_weights(rng: random.Random) -> Outcome:
    """Weight files of each container, and the small files of an LLM folder."""
    kind = rng.choice(["safetensors", "pth", "legacy", "folder", "header"])
    with folder() as here:
        if kind == "folder":
            shutil.copytree(asset("tiny/llm"), here / "llm")
            file = rng.choice(sorted(f for f in (here / "llm").iterdir() if f.is_file()))
            if file.suffix == ".json" and rng.random() < 0.6:
                file.write_text(json.dumps(bent(json.loads(file.read_text()), rng)))
            else:
                file.write_bytes(damaged(file.read_bytes(), rng))
            options = [f"model.llama_model={here / 'llm'}"]
            return judged(lambda: load_model(load_config("tiny/minigpt4", options), device="cpu") and None)
        path = here / {"safetensors": "w.safetensors", "header": "w.safetensors"}.get(kind, "w.pth")
        path.write_bytes(bent_header(rng) if kind == "header" else damaged(weights()[kind], rng))
        model = tiny_model()
        loader = resolve("checkpoint_format", "state_dict")("bridge.1")
        return judged(lambda: load_file(model, loader, path) and None)


TARGETS = {
    "yaml": fuzz_yaml,
    "options": fuzz_options,
    "records": fuzz_records,
    "images": fuzz_images,
    "weights": fuzz_weights,
}


def lines(rows: list[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def encoded(rows: list[Any], suffix: str, rng: random.Random) -> bytes:
    """Records as a file of a kind; rows that the kind cannot hold are written as they were."""
    if suffix == "jsonl":
        return lines(rows).encode()
    if suffix == "json":
        return json.dumps(rows if rng.random() < 0.7 else {str(k): row for k, row in enumerate(rows)}).encode()
    flat = [row for row in rows if isinstance(row, dict)] or RECORDS
    names = list(dict.fromkeys(str(name) for row in flat for name in row))
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        try:
            table = pa.Table.from_pylist(flat)
            pq.write_table(table, buffer)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
            pq.write_table(pa.Table.from_pylist(RECORDS), buffer)
        return buffer.getvalue()
    join = "," if suffix == "csv" else "\t"
    cells = [names, *([str(row.get(name, "")) for name in names] for row in flat)]
    return "".join(join.join(row) + "\n" for row in cells).encode("utf-8", "surrogatepass")


@cache
def pictures() -> list[bytes]:
    """A small image in every format that PIL writes here."""
    rgb = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    grey, palette = rgb.convert("L"), rgb.convert("P")
    plain = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "DDS", "PCX", "SGI"]
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [(rgb, kind, {}) for kind in plain]
    made += [(rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {}), (grey, "PNG", {})]
    made += [(rgb.convert("RGBA"), "PNG", {}), (palette, "PNG", {"transparency": 3}), (palette, "GIF", {})]
    made += [(grey.convert("I;16"), "PNG", {}), (rgb, "TIFF", {"compression": "tiff_lzw"})]
    made += [(palette, "GIF", {"save_all": True, "append_images": [palette] * 4})]
    result = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **options)
        except (OSError, KeyError, ValueError):  # this build of PIL cannot write it
            continue
        result.append(buffer.getvalue())
    return result


@cache
def weights() -> dict[str, bytes]:
    """The last bridge of the tiny model in each container."""
    state = {k: v.clone() for k, v in tiny_model().bridge[1].state_dict().items()}
    result = {"safetensors": save(state)}
    for kind in ("pth", "legacy"):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=kind == "pth")
        result[kind] = buffer.getvalue()
    return result


def bent_header(rng: random.Random) -> bytes:
    """A safetensors file whose header says something odd."""
    data = weights()["safetensors"]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.5:
        name = rng.choice(list(header))
        key, value = rng.choice([
            ("dtype", rng.choice(["F64", "I8", "BOOL", "F8_E4M3", "X", "BF16"])),
            ("shape", rng.choice([[2**40], [-1], [0], [], [2**31, 2**31], ["a"], [1.5]])),
            ("data_offsets", rng.choice([[0, 2**50], [5, 3], [-1, 4], [0, 0], [0]])),
        ])  # fmt: skip
        header[name] = {**header[name], key: value} if isinstance(header[name], dict) else rng.choice(ODD)
    else:
        header = bent(header, rng)
    text = json.dumps(header).encode()
    return rng.choice([len(text), len(text) - 1, 2**60]).to_bytes(8, "little") + text + data[8 + size :]
