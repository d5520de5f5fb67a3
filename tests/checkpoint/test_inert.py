"""Archives with classes of other packages are read, and nothing of them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.restricted_unpickler import OpaqueObject, named_tensors, plain, read_without_code
from vlm.common.errors import WeightsError


class Bomb:
    """Would make a folder when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Overlong:
    """A tensor of more numbers than its storage has."""

    def __reduce__(self):
        storage = torch.ones(2)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (10,), (1,), False, OrderedDict())


class Settings(dict):
    """A dict of a library's own class."""

    def __reduce__(self):
        return type(self), (dict(self),)


class Holder:
    """An object with state, some of it settings."""

    def __init__(self) -> None:
        self.inner = Settings(r=4)

    def __reduce__(self):
        return type(self), (), (self.inner, None, {"not": "this"})

    def __setstate__(self, state) -> None:
        self.inner = state[0]


def test_plain_content_is_as_torch_reads_it(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    content = {
        "a": base[1:],
        "shared": base,
        "half": base.half().t(),
        "parameter": torch.nn.Parameter(base.bfloat16()),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0),
        "list": [1, "two", (3.0, None)],
        "ordered": OrderedDict(x=torch.ones(2, dtype=torch.bool)),
    }
    torch.save(content, tmp_path / "file.pt")
    got, want = read_without_code(tmp_path / "file.pt"), torch.load(tmp_path / "file.pt", weights_only=True)
    for name in ("a", "shared", "half", "parameter", "scalar", "empty"):
        assert torch.equal(got[name], want[name])
        assert got[name].dtype == want[name].dtype
    assert got["a"].untyped_storage().data_ptr() == got["shared"].untyped_storage().data_ptr()
    assert got["list"] == content["list"]
    assert torch.equal(got["ordered"]["x"], content["ordered"]["x"])


def test_nothing_is_run(tmp_path: Path) -> None:
    torch.save({"settings": Bomb(str(tmp_path / "made")), "w": torch.ones(2)}, tmp_path / "file.pt")
    got = read_without_code(tmp_path / "file.pt")
    assert not (tmp_path / "made").exists()
    assert isinstance(got["settings"], OpaqueObject)
    assert got["settings"].kind.endswith(".mkdir")
    assert got["settings"].arguments == (str(tmp_path / "made"),)
    assert got["w"].tolist() == [1, 1]


def test_settings_objects_become_dicts(tmp_path: Path) -> None:
    torch.save({"flat": Settings(r=4, inner=Settings(x=[1])), "held": Holder(), "set": {1, 2}}, tmp_path / "file.pt")
    got = plain(read_without_code(tmp_path / "file.pt"))
    assert got["flat"] == {"r": 4, "inner": {"x": [1]}}
    assert got["held"] == {"r": 4}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # published files were made by it
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_module_trees(tmp_path: Path) -> None:
    """The names of a scripted module's state dict, in its own dtype."""

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(4)
            self.register_buffer("count", torch.tensor(7))
            self.scale = torch.nn.Parameter(torch.randn(2, 4).half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x)

    module = torch.nn.Sequential(Inner(), torch.nn.Linear(4, 2))
    torch.jit.script(module).save(str(tmp_path / "module.pt"))
    got = named_tensors(read_without_code(tmp_path / "module.pt"))
    assert set(got) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(got[name], tensor)
        assert got[name].dtype == tensor.dtype


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save({"w": torch.ones(100)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged or truncated"):
        read_without_code(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/notes.txt", "x")
    with pytest.raises(WeightsError, match="not a weight file but a zip archive with model/notes.txt"):
        read_without_code(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"a": 1})[:-3])
    with pytest.raises(WeightsError, match="damaged"):
        read_without_code(file)
    torch.save({"w": Overlong()}, file)
    with pytest.raises(WeightsError, match="damaged"):
        read_without_code(file)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_without_code(tmp_path)
