"""Odd input to the front door: a clear error, never a traceback or a silent answer."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import vlm
from vlm.cli.main import main
from vlm.cli.options import add_listed
from vlm.common.errors import ConfigError, DataError, PromptError, UserError
from vlm.common.paths import asset, is_url, make_folder
from vlm.common.registry import load_plugin
from vlm.config.options import parse_options
from vlm.config.renamed import rename_keys
from vlm.config.tree import Tree, parse_file
from vlm.datasets.formats.table.templates import fill
from vlm.inference.generation import Generation
from vlm.processors.image.decode import decode
from vlm.processors.messages import to_images, to_messages
from vlm.processors.tokenizer.tokenizer import Tokenizer


@pytest.mark.parametrize("source", [None, 5, {}, b"tiny/eval", ""])
def test_load_names_what_it_takes(source: object) -> None:
    with pytest.raises(UserError, match="in place of a model"):
        vlm.load(source)  # type: ignore[arg-type]


def test_load_config_names_what_it_takes() -> None:
    with pytest.raises(ConfigError, match="in place of a configuration"):
        vlm.load_config(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": torch.int8}, {"device": 0}])
def test_load_checks_dtype_and_device(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="expected a"):
        vlm.load("tiny/minigpt4", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"\x89PNG\xff", b"run: \x00"])
def test_a_binary_file_is_no_configuration(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match="not a text file"):
        parse_file(tmp_path / "a.yaml")


@pytest.mark.parametrize("items", ["run.seed=1", {"run": {"seed": 1}}, [5]])
def test_options_are_a_list_of_strings(items: object) -> None:
    with pytest.raises(ConfigError, match="expected a list of strings"):
        parse_options(items)  # type: ignore[arg-type]


def test_repeated_options_add_up() -> None:
    parser = argparse.ArgumentParser()
    add_listed(parser, "options")
    assert parser.parse_args(["--options", "a=1", "--options", "b=2"]).options == ["a=1", "b=2"]
    assert parser.parse_args([]).options == []


def test_todays_key_wins_over_its_old_name() -> None:
    for data in ({"loss_mean": 1, "loss_reduction": 2}, {"loss_reduction": 2, "loss_mean": 1}):
        tree = Tree({"run": data}, {})
        rename_keys(tree)
        assert tree.data == {"run": {"loss_reduction": 2}}


@pytest.mark.parametrize(
    "changes",
    [{"max_new_tokens": "5"}, {"max_new_tokens": 2.5}, {"do_sample": "no"}, {"seed": 1.5}, {"seed": 2**70}]
    + [{"stop": 5}, {"stop": (5,)}, {"top_k": True}, {"temperature": None}],
)
def test_generation_options_have_their_types(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="generation options"):
        Generation(**changes)  # type: ignore[arg-type]


def test_generation_takes_one_stop_text_and_numbers_of_numpy() -> None:
    assert Generation(stop="###").stop == ("###",)  # type: ignore[arg-type]
    assert Generation(temperature=1, seed=np.int64(3), top_p=np.float32(0.5)).temperature == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", " ", [], [{"type": "text", "text": ""}]])
def test_an_empty_question_is_none_in_any_form(content: object) -> None:
    with pytest.raises(PromptError, match="nothing was asked"):
        to_messages({"role": "user", "content": content})


def test_text_is_a_string() -> None:
    with pytest.raises(PromptError, match="found a int"):
        vlm.Message("user", [vlm.Text(5)])  # type: ignore[arg-type]


def test_images_named_in_odd_ways(tmp_path: Path) -> None:
    PILImage.new("RGB", (2, 2)).save(tmp_path / "a b.png")
    (named,) = to_images((tmp_path / "a b.png").as_uri())
    assert named.source == str(tmp_path / "a b.png")
    assert is_url("HTTP://a/b")
    for wrong in ("", vlm.Image(())):
        with pytest.raises(DataError):
            to_images(wrong)
    for unreadable in ("a\0b", PILImage.fromarray(np.full((2, 2), np.nan, np.float32))):
        with pytest.raises(DataError):
            decode(unreadable)


def test_bytes_of_a_terminal_that_are_not_text() -> None:
    tokenizer = Tokenizer.from_folder(Path(asset("tiny/llm")))
    assert tokenizer.encode("\udcff hi") == tokenizer.encode("? hi")


@pytest.mark.parametrize("module", ["", ".", ".a"])
def test_a_plugin_has_a_name(module: str) -> None:
    with pytest.raises(ConfigError, match="no such module"):
        load_plugin(module)


def test_plugins_in_the_joined_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugins=json", "list", "llm"]) == 0
    assert "hf" in capsys.readouterr().out
    assert main(["--plugins=no_such_module", "list"]) == 2
    assert "no such module" in capsys.readouterr().err


def test_an_unknown_arch_proposes_archs_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "arch", "nope"]) == 2
    shown = capsys.readouterr().err
    assert "tiny/minigpt4" in shown and "aliases" not in shown and "/train/" not in shown


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        make_folder(tmp_path / "file" / "sub")
    assert main(["quickstart", "--scale", "0.01", "--output", str(tmp_path / "file" / "sub")]) == 2


@pytest.mark.parametrize("scale", ["-1", "0"])
def test_a_scale_is_positive(scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--scale", scale]) == 2
    assert "expected a number above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", "--scale", "nan"])
    assert "expected a number, found 'nan'" in capsys.readouterr().err


def test_a_template_with_loose_braces() -> None:
    with pytest.raises(DataError, match="template"):
        fill("{", {}, "here")


def test_a_renamed_function_of_a_module_that_stayed() -> None:
    code = "from vlm.inference.engine import usual; import vlm.inference.engine as e; print(hasattr(e, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_every_old_path_is_importable_with_one_warning() -> None:
    code = """
import importlib, warnings
from vlm.common.moved import table
for old in table():
    module, _, name = old.partition(":")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = importlib.import_module(module)
        assert not name or hasattr(found, name), old
    told = [w for w in caught if f"{module} has moved to" in str(w.message)]
    assert len(told) <= 1, old
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
