"""Import paths of earlier versions lead to what is there today, and say so once."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import warnings

import pytest

from vlm.common.moved import table

DOCUMENTED = [
    ("vlm.inference.visualcla", "chat"),
    ("vlm.inference.visualcla", "chat_in_stream"),
    ("vlm.inference.visualcla", "get_model_and_tokenizer_and_processor"),
    ("vlm.inference.shots", "read_shots"),
    ("vlm.inference.shots", "with_shots"),
    ("vlm.checkpoint.merge", "merge_visualcla"),
    ("vlm.serve.gradio_app", "launch"),
    ("vlm.quickstart", "run_quickstart"),
    ("vlm.tasks.open_scores", "JUDGES"),
    ("vlm.common.config", "load_config"),
    ("vlm.common.config", "RunConfig"),
    ("vlm.processors.image", "ImageRecipe"),
    ("vlm.processors.tokenizer", "Tokenizer"),
    ("vlm.runners.train", "run_training"),
    ("vlm.runners.evaluate", "run_evaluation"),
    ("vlm.datasets.world.scene", "random_scene"),
]
SAME = [
    ("vlm.inference.engine", "Engine"),
    ("vlm.common.types", "Message"),
    ("vlm.common.registry", "register_bridge"),
    ("vlm.cli", "main"),
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", code], capture_output=True, text=True
    )


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_documented_path(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (module, f"{module}.{name}"):
        monkeypatch.delitem(sys.modules, known, raising=False)
    namespace: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(f"from {module} import {name}", namespace)
    assert namespace[name].__module__.startswith("vlm.") if hasattr(namespace[name], "__module__") else namespace[name]
    told = [w for w in caught if "has moved to" in str(w.message) and module in str(w.message)]
    assert len(told) <= 1  # none where an earlier test made it an attribute of its package


@pytest.mark.parametrize(("module", "name"), SAME)
def test_documented_path_that_stayed(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_one_warning_that_names_the_new_path_and_the_caller() -> None:
    done = run(
        "from vlm.inference.shots import read_shots, with_shots\nfrom vlm.inference.shots import with_shots as w"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning") == 1
    assert "<string>:1: DeprecationWarning: vlm.inference.shots has moved to vlm.inference.few_shot" in done.stderr


def test_what_never_was_stays_an_import_error() -> None:
    for code in (
        "import vlm.nothing",
        "from vlm.inference.shots import nothing",
        "from vlm.processors.image import no",
    ):
        with pytest.raises(ImportError):
            exec(code)
    assert importlib.util.find_spec("vlm.nothing") is None


def test_the_table_leads_to_modules() -> None:
    for old, targets in table().items():
        for target in targets:
            module, _, name = target.partition(":")
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin, f"{old}: {target}"
            assert not name or hasattr(importlib.import_module(module), name), f"{old}: {target}"


def test_the_table_is_read_only_when_an_import_fails() -> None:
    done = run("import vlm.common.moved as m, vlm.config.api; assert m.table.cache_info().misses == 0")
    assert done.returncode == 0, done.stderr
