"""The house's structure, read from the source: imports go down, no cycles, one home per heavy package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlm"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    "vlm.common": 0,
    "vlm.processors": 1,
    "vlm.models": 2,
    "vlm.datasets": 2,
    "vlm.checkpoint": 3,
    "vlm.tasks": 4,
    "vlm.inference": 4,
    "vlm.runners": 5,
    "vlm.serve": 5,
    "vlm.cli": 6,
    "vlm.cli_parts": 6,
    "vlm.quickstart": 6,
}
SIBLINGS_APART = {frozenset({"vlm.models", "vlm.datasets"})}
HOMES = {
    "omegaconf": ("vlm/common/config",),
    "yaml": ("vlm/common/",),
    "iopath": ("vlm/common/paths.py",),
    "sentencepiece": ("vlm/processors/tokenizer",),
    "tokenizers": ("vlm/processors/tokenizer",),
    "cv2": ("vlm/processors/image", "vlm/processors/video"),
    "decord": ("vlm/processors/video",),
    "webdataset": ("vlm/datasets/",),
    "pyarrow": ("vlm/datasets/table_arrow.py",),
    "datasets": ("vlm/datasets/table_arrow.py",),
    "timm": ("vlm/models/vision/",),
    "peft": ("vlm/models/lora.py",),
    "bitsandbytes": ("vlm/models/quantize.py",),
    "fairscale": ("vlm/runners/parallel.py",),
    "tensorboard": ("vlm/runners/trackers",),
    "wandb": ("vlm/runners/trackers",),
    "gradio": ("vlm/serve/gradio_app",),
    "transformers": ("vlm/models/", "vlm/inference/"),
}
TORCH_FREE = ("registry", "config", "schema", "errors", "paths", "logging", "types")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names imported by a file; imports under TYPE_CHECKING do not run and do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
                found.add(child.module or "")
            if top_level_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            visit(child)

    visit(tree)
    return found


def package_of(name: str) -> str | None:
    return next((p for p in LAYERS if name == p or name.startswith(p + ".")), None)


MODULES = {module_name(f): f for f in FILES}


def own_imports(file: Path) -> set[str]:
    return {n for n in imports(file) if n in MODULES and n != module_name(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    here = package_of(module_name(file))
    for name in imports(file):
        there = package_of(name)
        if here is None or there is None or here == there:
            continue
        assert LAYERS[there] <= LAYERS[here], f"{file}: {here} must not import {there} ({name})"
        assert frozenset({here, there}) not in SIBLINGS_APART, f"{file}: {here} must not import {there} ({name})"


def test_no_import_cycles_hidden_ones_included() -> None:
    graph = {name: own_imports(file) for name, file in MODULES.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            assert state.get(other) != 1, "import cycle: " + " -> ".join([*trail, name, other])
            if other not in state:
                visit(other, [*trail, name])
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, [])


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_heavy_packages_have_one_home(file: Path) -> None:
    where = file.relative_to(ROOT).as_posix()
    for name in imports(file):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or where.startswith(homes), f"{where} imports {name}; its home is {homes}"


@pytest.mark.parametrize("stem", TORCH_FREE)
def test_core_is_free_of_torch(stem: str) -> None:
    for file in (PACKAGE / "common").glob(f"{stem}*.py"):
        assert not {n for n in imports(file) if n.split(".")[0] == "torch"}, file


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_house_rules(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{file} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{file}:{node.lineno} {node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not broad, f"{file}:{node.lineno} broad except"
        if isinstance(node, ast.Call):
            check_call(file, node)
        if isinstance(node, ast.Constant) and node.value == "cuda":
            assert file == PACKAGE / "common" / "dist.py", f"{file}:{node.lineno} literal device name"


def check_call(file: Path, node: ast.Call) -> None:
    where = f"{file}:{node.lineno}"
    keywords = {k.arg: k.value for k in node.keywords}
    if isinstance(node.func, ast.Name):
        assert node.func.id != "print", f"{where} print"
    if isinstance(node.func, ast.Attribute):
        if node.func.attr == "load" and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            only = keywords.get("weights_only")
            assert isinstance(only, ast.Constant) and only.value is True, (
                f"{where} torch.load without weights_only=True"
            )
        if node.func.attr == "load_state_dict":
            strict = keywords.get("strict")
            assert not (isinstance(strict, ast.Constant) and strict.value is False), f"{where} strict=False"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_public_functions_are_typed_and_documented(file: Path) -> None:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            where = f"{file}:{node.lineno} {node.name}"
            assert ast.get_docstring(node), f"{where}: no docstring"
            assert node.returns is not None, f"{where}: no return type"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert all(a.annotation is not None for a in arguments), f"{where}: untyped argument"
