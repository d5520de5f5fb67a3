"""Weight files that are something else, that declare what they do not have, or whose numbers cannot be used."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlm.checkpoint.restricted_unpickler import plain, read_without_code
from vlm.checkpoint.safe import read_file, read_json, read_tensors, shapes, shards
from vlm.checkpoint.stream import TensorReader
from vlm.checkpoint.strict import NamedTensors, check_numbers, copy_strictly
from vlm.cli.main import main
from vlm.common.errors import UserError, WeightsError
from vlm.common.file_kind import mistaken
from vlm.models.llm.hf import HFCausalLM, read_config
from vlm.processors.tokenizer.tokenizer import Tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123456\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.ones(3))
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


OTHERS: dict[str, tuple[bytes, str]] = {
    "lfs": (POINTER, r"a Git LFS pointer \(for a file of 123,456 bytes\)\n  fix: run `git lfs pull`"),
    "annex": (b"../../.git/annex/objects/x", "a git-annex pointer"),
    "html": (b"\n<!DOCTYPE html><html>Not found</html>", "an HTML page"),
    "html_bom": (b"\xef\xbb\xbf<HTML lang=en>", "an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "json_error": (b'{"error": "Repository not found"}', "a JSON error message: 'Repository not found'"),
    "json": (b'{"hidden_size": 16}', "JSON text that begins with"),
    "yaml": (b"model:\n  arch: tiny\n", "a text file that begins with 'model:'"),
    "utf8": ("Gewichte für Bäume".encode(), "a text file that begins with 'Gewichte für Bäume'"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(40), r"a GGUF file[\s\S]*fix: use the weights that it was converted from"),
    "ggml": (b"tjgg\3\0\0\0", "a GGML file"),
    "onnx": (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "flax": (b"\x82\xa5model\xc0\xa1b\xc0", "a MessagePack file"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file"),
    "png": (PNG, "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(9), "a JPEG image"),
    "webp": (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP image"),
    "pdf": (b"%PDF-1.7", "a PDF document"),
    "gzip": (b"\x1f\x8b\x08" + bytes(9), "a gzip archive[\\s\\S]*fix: unpack it"),
    "tar": (b"model.bin" + bytes(248) + b"ustar\0", "a tar archive"),
    "zip": (zipped(**{"m/model.safetensors": b"x"}), "a zip archive with m/model.safetensors[\\s\\S]*fix: unpack it"),
    "npz": (npz(), r"NumPy arrays \(weights.npy\)"),
    "npy": (b"\x93NUMPY\1\0", "a NumPy array"),
    "zeros": (bytes(9000), r"filled with zeros \(9,000 bytes\)"),
    "empty": (b"", "an empty file"),
    "unknown": (b"\xfe\xfdjunk\0\1", r"of an unknown kind \(its first bytes are fe fd 6a"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_something_else_under_a_weights_name(tmp_path: Path, name: str, end: str) -> None:
    content, said = OTHERS[name]
    file = tmp_path / f"model{end}"
    file.write_bytes(content)
    for read in (read_tensors, shapes, read_without_code):
        with pytest.raises(WeightsError, match=rf"model{end}: not a weight file but {said}") as caught:
            read(file)
        assert "trust" not in str(caught.value)


def test_the_command_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(PNG)
    assert main(["weights", "show", str(tmp_path / "x.pth")]) == 2
    assert "not a weight file but a PNG image" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_plain_pickles_are_not_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": print}, protocol))
    with pytest.raises(
        WeightsError, match=r"a pickle that torch.save did not write; reading it would run code[\s\S]*trust"
    ):
        read_tensors(tmp_path / "x.pth")


def test_names_do_not_decide(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    save_file({"w": torch.ones(2, 3)}, tmp_path / "b.bin")
    torch.save({"w": torch.ones(2, 3).t()}, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    for file, shape in (("a.safetensors", (2, 3)), ("b.bin", (2, 3)), ("c.bin", (3, 2))):
        assert read_tensors(tmp_path / file)["w"].shape == shape
        assert shapes(tmp_path / file) == {"w": shape}


@pytest.mark.parametrize("name", ["lfs", "html", "json_error", "png"])
def test_the_small_files_of_a_folder(tmp_path: Path, name: str) -> None:
    """config.json, index and tokenizer say what they are as well."""
    content, said = OTHERS[name]
    reading: dict[str, Callable[[], object]] = {
        "config.json": lambda: read_config(HFCausalLM.Config(path=str(tmp_path))),
        "tokenizer.json": lambda: Tokenizer.from_folder(tmp_path),
        "tokenizer.model": lambda: Tokenizer.from_folder(tmp_path),
    }
    for file, read in reading.items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{file} is {said.partition('[')[0].split(chr(92) + 'n')[0]}"):
            read()
    if name != "json_error":
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        with pytest.raises(WeightsError, match="index.json is a"):
            shards(tmp_path)
    (tmp_path / "good.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "good.json") == {"a": 1}
    assert mistaken(tmp_path / "good.json") == ""


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "a/../../b", 3, "x\0y"])
def test_an_index_names_files_of_its_folder(tmp_path: Path, name: object) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError, match=r"index.json: names .* which is not a file in its folder"):
        shards(tmp_path)


def changed(source: Path, target: Path, old: bytes, new: bytes, **options: int) -> None:
    """A torch file with other bytes in its structure."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    assert any(old in content for content in records.values())
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


THOUSAND, BILLIONS = b"M\xe8\x03", b"J\xff\xff\xff\x7f"


def torch_files(folder: Path) -> dict[str, Path]:
    """Torch files that declare more than they have."""
    names = ("huge", "huge_legacy", "packed", "memo", "bytearray", "deep", "twice", "expanded", "negative")
    files = {name: folder / f"{name}.pt" for name in names}
    torch.save({"w": torch.ones(1000)}, folder / "good.pt")
    changed(folder / "good.pt", files["huge"], THOUSAND, BILLIONS)
    torch.save({"w": torch.ones(1000)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    files["huge_legacy"].write_bytes((folder / "old.pt").read_bytes().replace(THOUSAND, BILLIONS))
    changed(folder / "good.pt", files["packed"], THOUSAND, THOUSAND, compression=zipfile.ZIP_DEFLATED)
    files["memo"].write_bytes(zipped(**{"a/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f.", "a/version": b"3"}))
    files["bytearray"].write_bytes(zipped(**{"a/data.pkl": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"."}))
    files["deep"].write_bytes(zipped(**{"a/data.pkl": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."}))
    files["twice"].write_bytes(zipped(**{"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}))
    torch.save({"w": torch.ones(1).expand(10**6, 10**5)}, files["expanded"])
    torch.save({"w": torch.ones(7, 5)}, folder / "small.pt")
    changed(folder / "small.pt", files["negative"], b"K\x05K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86")
    return files


def test_declarations_beyond_the_file(tmp_path: Path) -> None:
    for name, file in torch_files(tmp_path).items():
        tracemalloc.start()
        with pytest.raises(WeightsError, match=rf"{name}.pt: (damaged or truncated|holds no named)"):
            read_tensors(file)
        assert tracemalloc.get_traced_memory()[1] < 2**25, name
        tracemalloc.stop()


@pytest.mark.parametrize(
    "entry",
    [
        {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])},  # overlap
        {"a": ("F32", [2**40, 2**40], [0, 12])},
        {"a": ("F32", [1000], [0, 4000])},
        {"a": ("F32", [-3], [0, 12])},
        {"a": ("F32", [1], [4, 8])},  # a hole before it
        {"a": ("Q4", [3], [0, 12])},
    ],
)
def test_safetensors_headers_beyond_the_file(tmp_path: Path, entry: dict) -> None:
    declared = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entry.items()}
    head = json.dumps(declared).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(12))
    for read in (read_tensors, shapes):
        with pytest.raises(WeightsError, match="x.safetensors: damaged or truncated"):
            read(tmp_path / "x.safetensors")


def test_endless_structures_end(tmp_path: Path) -> None:
    laughs: list = [1]
    for _ in range(60):
        laughs = [laughs, laughs]
    endless: dict = {}
    endless["self"] = endless
    torch.save({"laughs": laughs, "endless": endless, "w": torch.ones(1)}, tmp_path / "x.pt")
    assert plain(read_without_code(tmp_path / "x.pt"))["w"].item() == 1


UNUSABLE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.sparse_coo_tensor([[0], [1]], [1.0], (3, 3)),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    r"without numbers \(device meta\)": lambda: torch.empty(10**6, 10**6, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("said", UNUSABLE)
@pytest.mark.filterwarnings("ignore")  # of torch about these kinds
def test_tensors_of_unusable_kinds(tmp_path: Path, said: str) -> None:
    torch.save({"w": UNUSABLE[said]()}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=rf"x.pt: w is {said}"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_for_floating_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    state = dict(module.state_dict())
    copy_strictly(module, NamedTensors("f", dict(state)))  # its counter is a whole number on both sides
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(WeightsError, match=rf"1 of another kind .*: weight \(file {name}, model float32\)"):
        copy_strictly(module, NamedTensors("f", state | {"weight": torch.ones(3, dtype=dtype)}))
    with pytest.raises(WeightsError, match=r"num_batches_tracked \(file float32, model int64\)"):
        copy_strictly(module, NamedTensors("f", state | {"num_batches_tracked": torch.tensor(1.0)}))
    resized = NamedTensors("f", {"ours": torch.ones(4)}, {"ours": "theirs"})
    with pytest.raises(WeightsError, match=f"theirs is {name}; quantised"):
        check_numbers(resized, {"theirs": torch.ones(3, dtype=dtype)})
    save_file({"w": torch.ones(3, dtype=dtype)}, tmp_path / "w.safetensors")
    if dtype.itemsize == 1:
        with pytest.raises(WeightsError, match="expected floating-point numbers"):
            TensorReader([tmp_path / "w.safetensors"]).read("w", torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    module = nn.Linear(2, 2, bias=False)
    weight = torch.ones(2, 2, dtype=dtype)
    weight[1, 0] = value
    with pytest.raises(
        WeightsError, match=r"f: weight has 1 of 4 numbers that are NaN or infinite[\s\S]*allow_nonfinite"
    ):
        copy_strictly(module, NamedTensors("f", {"weight": weight}))
    copy_strictly(module, NamedTensors("f", {"weight": weight}), allow_nonfinite=True)
    assert module.weight[1, 0].isfinite().item() is False
    save_file({"w": weight}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="w has 1 of 4 numbers"):
        TensorReader([tmp_path / "w.safetensors"]).read("w", torch.float32)


def test_numbers_that_the_dtype_cannot_hold() -> None:
    module = nn.Linear(2, 2, bias=False).half()
    with pytest.raises(WeightsError, match=r"weight has numbers that float16 cannot hold \(up to 1e\+06\)"):
        copy_strictly(module, NamedTensors("f", {"weight": torch.full((2, 2), 1e6)}))


def test_devices_and_folders(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is a folder"), (Path("/dev/zero"), "a device or pipe"), (tmp_path / "x", "no such")):
        with pytest.raises(UserError, match=said):
            read_file(path)
