"""The structure of the package, read from its source: layers, one home per heavy package, house rules.

Each test lists every offender.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlm"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("vlm.common",),
    ("vlm.config", "vlm.models"),
    ("vlm.checkpoint", "vlm.processors"),
    ("vlm.datasets", "vlm.inference"),
    ("vlm.systems", "vlm.pages", "vlm.tasks", "vlm.serve"),
    ("vlm.runners",),
    ("vlm.cli",),
    ("vlm.testing",),
)
"""Packages from the ground up; a package may import from its own floor and from those below."""
APART = ({"vlm.models", "vlm.datasets"}, {"vlm.checkpoint", "vlm.processors"}, {"vlm.datasets", "vlm.inference"})
"""Neighbours that never import each other."""
HOMES = {
    "omegaconf": ("vlm/config/",),
    "yaml": ("vlm/config/", "vlm/common/"),
    "iopath": ("vlm/common/paths.py",),
    "sentencepiece": ("vlm/processors/tokenizer/",),
    "tokenizers": ("vlm/processors/tokenizer/",),
    "cv2": ("vlm/processors/image/", "vlm/processors/video/"),
    "decord": ("vlm/processors/video/",),
    "webdataset": ("vlm/datasets/",),
    "pyarrow": ("vlm/datasets/formats/table/arrow.py",),
    "datasets": ("vlm/datasets/formats/table/arrow.py",),
    "timm": ("vlm/models/vision/", "vlm/models/bridges/pools.py"),
    "peft": ("vlm/models/lora.py",),
    "bitsandbytes": ("vlm/models/quantize.py", "vlm/models/quantized/", "vlm/runners/train/optimizers.py"),
    "fairscale": ("vlm/runners/train/parallel/recompute.py",),
    "tensorboard": ("vlm/runners/train/trackers.py",),
    "wandb": ("vlm/runners/train/trackers.py",),
    "gradio": ("vlm/serve/gradio/",),
    "fastapi": ("vlm/serve/http/",),
    "uvicorn": ("vlm/serve/http/",),
    "h11": ("vlm/serve/http/",),
    "prometheus_client": ("vlm/serve/http/",),
    "llguidance": ("vlm/inference/constraints/",),
    "optuna": ("vlm/runners/study/",),
    "submitit": ("vlm/runners/study/",),
    "ray": ("vlm/runners/evaluate/",),
    "lmms_eval": ("vlm/tasks/benchmarks/lmms/",),
    "gguf": ("vlm/models/llm/gguf.py", "vlm/inference/gguf/"),
    "transformers": ("vlm/models/", "vlm/inference/", "vlm/processors/templates/"),
    "jinja2": ("vlm/pages/", "vlm/processors/templates/", "vlm/tasks/benchmarks/lmms/"),
    "markupsafe": ("vlm/pages/",),
    "rich": ("vlm/common/logging.py", "vlm/runners/train/trackers.py", "vlm/datasets/inspect/scan.py"),
    "PIL": ("vlm/processors/image/", "vlm/datasets/synthetic/", "vlm/pages/", "vlm/tasks/benchmarks/image_controls.py"),
    "pickle": ("vlm/checkpoint/", "vlm/datasets/formats/plain_pickle.py"),
    "safetensors": ("vlm/checkpoint/", "vlm/systems/", "vlm/testing/"),
}
GETATTR = {
    "vlm/checkpoint/formats/hf_llm.py": "transformers' models",
    "vlm/common/registry.py": "modules of plugins, by a name that somebody wrote",
    "vlm/config/schema.py": "the classes and types that a field names",
    "vlm/models/build.py": "functions of torch, some of which have no name",
    "vlm/models/llm/hf.py": "transformers' configurations and classes",
    "vlm/models/llm/packing.py": "transformers' configurations",
    "vlm/models/vision/tower.py": "transformers' configurations",
    "vlm/models/vision/timm_vit.py": "timm's models",
}
"""Files that may use ``getattr`` with a default, each with the foreign objects that it reads."""
TORCH_FREE = ("vlm/config/", *(f"vlm/common/{name}.py" for name in ("registry", "errors", "paths", "logging", "types")))
MOST_MODULES = 14
SYSTEM_NAMES = re.compile("minigpt|visualcla|lynx|mmgpt|flamingo|vicuna", re.IGNORECASE)


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def runs(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` except those under ``if TYPE_CHECKING``, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from runs(child)


@cache
def imports(file: Path) -> frozenset[str]:
    """Absolute names imported by a file, inside functions too."""
    found: set[str] = set()
    for node in runs(tree_of(file)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module or "")
    return frozenset(found)


MODULES = {module_name(f): f for f in FILES}
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


def package_of(name: str) -> str | None:
    return next((p for p in FLOOR_OF if name == p or name.startswith(p + ".")), None)


def test_imports_go_down() -> None:
    offenders = []
    for file in FILES:
        here = package_of(module_name(file))
        for name in imports(file):
            there = package_of(name)
            if here is None or there is None or here == there:
                continue
            if FLOOR_OF[there] > FLOOR_OF[here] or {here, there} in APART:
                offenders.append(f"{place(file)} must not import {name}")
    folders = {module_name(f).split(".")[1] for f in FILES if len(module_name(f).split(".")) > 1}
    offenders += [f"vlm.{name} has no floor" for name in folders if f"vlm.{name}" not in FLOOR_OF]
    assert not offenders, "\n".join(sorted(offenders))


def test_no_import_cycles_hidden_ones_included() -> None:
    graph = {name: {n for n in imports(file) if n in MODULES and n != name} for name, file in MODULES.items()}
    state: dict[str, int] = {}
    cycles: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                cycles.append(" -> ".join([*trail, name, other]))
            elif other not in state:
                visit(other, [*trail, name])
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, [])
    assert not cycles, "\n".join(cycles)


def test_heavy_packages_have_one_home() -> None:
    offenders = []
    for file in FILES:
        for name in imports(file):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and not place(file).startswith(homes):
                offenders.append(f"{place(file)} imports {name}; its home is {homes}")
            if name.split(".")[0] == "torch" and place(file).startswith(TORCH_FREE):
                offenders.append(f"{place(file)} imports torch")
    assert not offenders, "\n".join(sorted(offenders))


def test_contracts_say_what_is_there() -> None:
    """No ``getattr`` with a default on objects of the package; ``vlm/models/protocols.py`` has optional attributes."""
    offenders = [
        f"{place(file)}:{node.lineno} getattr with a default"
        for file in FILES
        if place(file) not in GETATTR
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if len(node.args) == 3
    ]
    assert not offenders, "\n".join(offenders)


def test_house_rules() -> None:
    offenders = [f"{place(f)} has more than 400 lines" for f in FILES if f.read_text().count("\n") > 400]
    for file in FILES:
        offenders += [f"{place(file)}:{line} {what}" for line, what in faults(file)]
    per_folder = Counter(place(f.parent) for f in FILES if f.name != "__init__.py")
    offenders += [
        f"{folder} has {count} modules, at most {MOST_MODULES} fit"
        for folder, count in per_folder.items()
        if count > MOST_MODULES and folder != "vlm/cli"
    ]
    assert not offenders, "\n".join(offenders)


def test_system_names_stay_in_their_folders() -> None:
    offenders = [
        f"{place(file)}:{number} {line.strip()}"
        for file in FILES
        if not place(file).startswith("vlm/systems/")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if SYSTEM_NAMES.search(line)
    ]
    assert not offenders, "\n".join(offenders)


def faults(file: Path) -> Iterator[tuple[int, str]]:
    """Line and description of what the rules of ``CONTRIBUTING.md`` forbid in a file."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > 60:
                yield node.lineno, f"{node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
        ):
            yield node.lineno, "broad except"
        if isinstance(node, ast.Call):
            yield from call_faults(node)
        if isinstance(node, ast.Constant) and node.value == "cuda" and place(file) != "vlm/common/dist.py":
            yield node.lineno, "literal device name"
    for node in tree_of(file).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield node.lineno, f"{node.name}: no docstring"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(a.annotation is None for a in arguments):
                yield node.lineno, f"{node.name}: not fully typed"


def call_faults(node: ast.Call) -> Iterator[tuple[int, str]]:
    """Calls that are forbidden: print, unsafe torch.load, lax state dicts."""
    keywords = {k.arg: k.value for k in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id == "print":
        yield node.lineno, "print"
    if not isinstance(node.func, ast.Attribute):
        return
    if node.func.attr == "load" and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
        only = keywords.get("weights_only")
        if not (isinstance(only, ast.Constant) and only.value is True):
            yield node.lineno, "torch.load without weights_only=True"
    if node.func.attr == "load_state_dict":
        strict = keywords.get("strict")
        if isinstance(strict, ast.Constant) and strict.value is False:
            yield node.lineno, "strict=False"
