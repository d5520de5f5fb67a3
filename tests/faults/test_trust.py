"""What a file that somebody sent may do: nothing but name what is registered, until it is trusted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import vlm
from vlm.checkpoint.run_folder import RunDir
from vlm.cli.main import main
from vlm.common import registry
from vlm.common.errors import ConfigError, DataError, UserError, WeightsError
from vlm.common.paths import local_path
from vlm.common.trust import is_given, trusting
from vlm.config.api import load_config
from vlm.datasets.formats.shard_reader import expand, open_remote
from vlm.datasets.formats.table.arrow import from_hub
from vlm.models.llm.hf import HFCausalLM, read_config
from vlm.models.vision.timm_vit import TimmVision

LLM = Path(__file__).resolve().parents[1] / "golden" / "minigpt4" / "open" / "llm"
MODULE = "sent_by_somebody"
CODE = f"""
from pathlib import Path
from vlm import register_bridge
from vlm.models.bridges.linear import Linear as Base
Path("it_ran").touch()
def judge(question, answer, reference): return True
@register_bridge("{MODULE}")
class Bridge(Base):
    pass
class Undecorated(Base):
    pass
"""
PLACES = (
    *(f"model.{part}.name" for part in ("vision", "fusion", "llm", "template", "image", "video", "text", "generation")),
    "model.bridge", "model.inserts", "model.weights", "datasets.mine.format", "valid_datasets.mine.format",
    "evaluation_datasets.mine.format", "datasets.mine.text_processor", "datasets.mine.vis_processor",
    "run.task", "run.runner", "run.lr_sched", "run.trackers", "run.benchmark",
)  # fmt: skip
CALLABLES = (
    "os:system",
    "builtins:exec",
    "subprocess:Popen",
    "subprocess:getoutput",
    "os:spawnv",
    "os:path",
    ":",
    "x:",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on the path, with a module that leaves a file when it is imported."""
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VLM_STATE", str(tmp_path / "state"))
    yield tmp_path
    sys.modules.pop(MODULE, None)
    for key in [k for k, cls in registry._classes.items() if cls.__module__ == MODULE]:
        del registry._classes[key]


def config(place: str = "", value: Any = None, **more: Any) -> dict[str, Any]:
    """The embedded model, with ``value`` at ``place``."""
    result: dict[str, Any] = {"model": {"arch": "tiny", "model_type": "minigpt4"}, "run": {}, **more}
    *path, last = place.split(".") if place else [""]
    node = result
    for key in path:
        node = node.setdefault(key, {})
    if place:
        node[last] = value
    return result


def at_place(place: str, name: str) -> dict[str, Any]:
    """A configuration that names ``name`` where a name of that kind is expected."""
    wrapped = {
        "model.bridge": [{"name": name}], "model.inserts": [{"name": name}], "run.trackers": [name],
        "model.weights": [{"format": name, "path": ".", "into": "touch it_ran"}],
        "run.benchmark": {"judge": name},
        "datasets.mine.text_processor": {"train": {"name": name}},
        "datasets.mine.vis_processor": {"train": {"name": name}},
    }  # fmt: skip
    result = config(place, wrapped.get(place, name))
    if place == "run.benchmark":
        result["run"]["task"] = "question_answering"
    if place.endswith("processor"):
        result["datasets"]["mine"] |= {"format": "table", "build_info": {"ann_path": "a.json"}}
    return result


def save(data: dict[str, Any], file: str = "given.yaml") -> str:
    Path(file).write_text(yaml.safe_dump(data))
    return file


@pytest.mark.parametrize("place", PLACES)
def test_a_dotted_name_imports_nothing(place: str) -> None:
    with pytest.raises(ConfigError, match=f"would import the module '{MODULE}': only with --trust"):
        load_config(save(at_place(place, f"{MODULE}:Bridge")), check="none")
    assert not Path("it_ran").exists() and MODULE not in sys.modules


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_callable_is_a_part(place: str, trust: bool) -> None:
    for name in CALLABLES:
        with pytest.raises(ConfigError):
            load_config(save(at_place(place, name)), check="none", trust=trust)
    assert not Path("it_ran").exists()


def test_only_what_is_decorated_for_its_kind() -> None:
    for place, name in (("model.bridge", "Undecorated"), ("model.vision.name", "Bridge"), ("model.weights", "Bridge")):
        with pytest.raises(ConfigError, match=r"not registered as|expected a class"):
            load_config(save(at_place(place, f"{MODULE}:{name}")), check="none", trust=True)
    good = load_config(save(at_place("model.bridge", f"{MODULE}:Bridge")), check="none", trust=True)
    assert good.model.bridge[0].name == f"{MODULE}:Bridge"
    with pytest.raises(ConfigError, match="only with --trust"), trusting(False):
        registry.resolve("bridge", "another_module:Bridge")
    judge = at_place("run.benchmark", f"{MODULE}:judge")
    assert load_config(save(judge), check="none", trust=True).run.benchmark["judge"] == f"{MODULE}:judge"


COMMANDS = (
    ["config", "check", "FILE"], ["config", "show", "FILE"], ["config", "diff", "tiny/eval", "FILE"],
    ["chat", "FILE", "--ask", "what?"], ["eval", "FILE"], ["data", "check", "FILE"], ["data", "show", "FILE"],
    ["generate", "FILE", "--data", "a.jsonl", "--output", "out.jsonl"],
    pytest.param(["demo", "FILE"], marks=pytest.mark.slow),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c[:2]))
def test_every_command_refuses_plugins(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = save(config(plugins=[MODULE]))
    assert main([file if word == "FILE" else word for word in command]) == 2
    assert "only with --trust" in capsys.readouterr().err
    assert not Path("it_ran").exists()


def test_a_run_folder_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    sent = RunDir("sent")
    sent.path.mkdir()
    save(config(plugins=[MODULE]), "sent/config.yaml")
    save_file({"w": torch.ones(1)}, sent.path / "model.safetensors")
    for command in (["chat", "sent", "--ask", "?"], ["eval", "sent"], ["weights", "export", "sent", "--to", "x.pth"]):
        assert main(command) == 2
        assert "only with --trust" in capsys.readouterr().err
    for load in (vlm.load, vlm.load_config):
        with pytest.raises(ConfigError, match=r"trust=True"):
            load("sent")
    assert not Path("it_ran").exists() and not is_given()
    assert main(["config", "check", "sent", "--trust"]) == 0
    assert Path("it_ran").exists() and not is_given()


def test_what_is_imported_already_may_be_named() -> None:
    file = save(config(plugins=[MODULE]))
    assert main(["--plugin", MODULE, "config", "check", file]) == 0
    assert load_config(file, check="none").plugins == [MODULE]


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}", "${oc.env:NOTHING,x}", "a ${oc.env:HOME} b", "${${run.name}:HOME}", "${run.${run.name}}",
        "${oc.${run.save_path}:HOME}", "${oc.decode:'$\\{oc.env:HOME\\}'}", "${oc.create:'${oc.env:HOME}'}",
        "${or:${oc.env:HOME},x}", "${oc.select:run.name}",
    ],
)  # fmt: skip
def test_the_environment_is_not_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "the secret")
    data = config("run", {"job_name": text, "name": "oc.env", "save_path": "env"})
    with pytest.raises(ConfigError, match="only with --trust") as caught:
        load_config(save(data), check="none")
    assert "the secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="only with --trust"):
        load_config("tiny/eval", [f"run.job_name={text}", "run.name=oc.env", "run.save_path=env"], check="none")
    assert (
        load_config(save(config("run.job_name", "${oc.env:HOME}")), check="none", trust=True).run.job_name
        == "the secret"
    )


@pytest.mark.parametrize("storage", ["pipe:touch it_ran", " PIPE:touch it_ran", ["a.tar", "pipe:touch it_ran"]])
def test_no_command_is_run(storage: Any) -> None:
    shards = {"format": "web_shards", "build_info": {"storage": storage}}
    for section in ("datasets", "valid_datasets", "evaluation_datasets"):
        with pytest.raises(ConfigError, match=r"run a shell command: only with --trust"):
            load_config(save(config(section, {"mine": shards})), check="none")
    assert load_config(save(config("datasets", {"mine": shards})), check="none", trust=True).datasets


def test_no_command_hides_in_a_storage(folder: Path) -> None:
    for pattern in ("{p,q}ipe:touch it_ran", "x.tar::pipe:touch it_ran", "file:x::pipe:touch it_ran"):
        with pytest.raises(DataError, match="hides a command"):
            expand(pattern)
    (folder / "pipe:touch it_ran").touch()
    assert all(name.startswith("/") for name in expand("*ipe:*"))
    for address in ("reference://x", "github://a:b@/c", "ssh://x/y", "filecache://x", "zip://a::memory://b"):
        with pytest.raises(DataError, match="unknown kind of address"):
            open_remote(address)
    assert not (folder / "it_ran").exists()


def test_a_configuration_that_never_ends(folder: Path) -> None:
    """A FIFO without a writer, and a device: refused, not read."""
    os.mkfifo(folder / "pipe.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "run").mkdir()
    os.mkfifo(folder / "run" / "config.yaml")
    for name in ("pipe.yaml", "zero.yaml", "run", "run/config.yaml"):
        with pytest.raises(ConfigError, match="not a file|not a run folder"):
            load_config(name, check="none")


def test_a_folder_that_was_trained_here(folder: Path) -> None:
    """Known by its place and its content, and by nothing inside it."""
    text = yaml.safe_dump(config(plugins=[MODULE]))
    own = RunDir("own")
    own.path.mkdir()
    own.write_config(text)
    step = own.checkpoints / "step_00000001"
    step.mkdir(parents=True)
    (step / "config.yaml").write_text(text)
    shutil.copytree("own", "copied")
    for refused in ("copied", "copied/checkpoints/step_00000001"):
        with pytest.raises(ConfigError, match="only with --trust"):
            load_config(refused, check="none")
    for allowed in ("own", "own/config.yaml", "own/checkpoints/step_00000001"):
        assert load_config(allowed, check="none").plugins == [MODULE]
    sys.modules.pop(MODULE)
    own.config_file.write_text(text + "# changed\n")
    with pytest.raises(ConfigError, match="only with --trust"):
        load_config("own", check="none")
    assert not any(MODULE in file.read_text() for file in folder.glob("state/**/*") if file.is_file())


def test_a_state_folder_that_cannot_be_written(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "state").write_text("a file")
    run = RunDir("own")
    run.path.mkdir()
    run.write_config("model: {}\n")
    assert run.config_file.is_file() and "will need --trust" in caplog.text


@pytest.mark.parametrize(("kind", "usable"), [("llama", True), ("sent_by_somebody", False)])
def test_code_in_a_hugging_face_folder(kind: str, usable: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    shutil.copytree(LLM, "llm")
    own = json.loads(Path("llm/config.json").read_text())
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": "code.T"}
    Path("llm/config.json").write_text(json.dumps({**own, "model_type": kind, "auto_map": classes}))
    Path("llm/code.py").write_text("open('it_ran', 'w')\n")
    if usable:
        HFCausalLM(HFCausalLM.Config(path="llm", dtype="fp32"))
    else:
        with pytest.raises(WeightsError, match="never run") as caught:
            read_config(HFCausalLM.Config(path="llm"))
        assert "trust_remote_code" not in str(caught.value)
    assert not Path("it_ran").exists()


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_timm_reads_no_files_of_its_own(option: str) -> None:
    with pytest.raises(ConfigError, match=r"name weight files under model\.weights"):
        TimmVision.Config(options={option: "evil.pth"})


@pytest.mark.parametrize("address", ["http://h/../../../x.pth", "https://h/a/../../b", "http:///x", "http://../x"])
def test_a_download_stays_in_its_folder(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iopath.common.file_io.HTTPURLHandler._get_local_path", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(UserError, match="not an address of a file"):
        local_path(address)


def test_downloads_of_two_hosts_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    get = "iopath.common.file_io.PathManager.get_local_path"
    monkeypatch.setattr(get, lambda self, path, force=False, cache_dir=None, **_: folders.append(cache_dir) or "x")
    local_path("https://a.org/m.pth")
    local_path("HTTP://b.org:80/m.pth")
    assert [Path(f).name for f in folders] == ["a.org", "b.org_80"]


@pytest.mark.parametrize("name", ["./folder", "../folder", "/etc", "a/b/c", ".", ""])
def test_a_dataset_of_the_hub_is_no_folder(name: str) -> None:
    with pytest.raises(DataError, match="not the name of a dataset"):
        from_hub(f"hf://{name}")
