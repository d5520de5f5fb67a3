"""Names in YAML -> classes, resolved on demand.

A name is looked up in this order: what a decorator has registered already; a path ``package.module:Class``; the
decorators in the files of the kind's folder, of ``vlm.systems`` and of the modules that installed packages declare in
entry point group ``vlm.plugins``, which are read and not imported. A registry holds classes; the kinds of
``FUNCTIONS`` are functions.

A path leads only to a class that the decorator of its kind has marked. A module that is neither installed as a plugin
nor imported already is imported only for a configuration that is trusted (:mod:`vlm.common.trust`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from vlm.common import trust
from vlm.common.errors import ConfigError, unknown

T = TypeVar("T")
log = logging.getLogger(__name__)

FOLDERS: dict[str, str] = {
    "model": "vlm.models",
    "vision": "vlm.models.vision",
    "bridge": "vlm.models.bridges",
    "fusion": "vlm.models.fusion",
    "insert": "vlm.models.inserts",
    "llm": "vlm.models.llm",
    "template": "vlm.processors",
    "processor": "vlm.processors",
    "dataset": "vlm.datasets",
    "task": "vlm.tasks",
    "runner": "vlm.runners",
    "scheduler": "vlm.runners",
    "optimizer": "vlm.runners",
    "tracker": "vlm.runners",
    "checkpoint_format": "vlm.checkpoint",
    "source": "vlm.inference",
    "architecture": "vlm.inference",
    "export": "vlm.inference",
    "hf_form": "vlm.inference.hub",
    "benchmark": "vlm.tasks",
    "judge": "vlm.tasks",
    "command": "vlm.cli",
    "image": "vlm.processors.image",
    "video": "vlm.processors.video",
    "text": "vlm.processors",
    "generation": "vlm.inference",
}
"""Kind -> package whose files are searched for ``@register_<kind>("name")``; those of ``SYSTEMS`` are searched too."""

SYSTEMS = "vlm.systems"
PLUGINS = "vlm.plugins"
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "scheduler": ("step", "plan"),
    "optimizer": ("groups", "lr", "betas", "device"),
    "judge": ("question", "answer", "reference"),
}
"""Kinds that are functions -> their arguments."""

_classes: dict[tuple[str, str], Any] = {}
_DECORATOR = r"""^@(?:[\w.]+\.)?register_{}\(\s*["']([^"']+)["']"""


@cache
def _decorator(kind: str) -> Callable[[str], Callable[[T], T]]:
    def register(name: str) -> Callable[[T], T]:
        def add(cls: T) -> T:
            known = _classes.get((kind, name))
            if known is not None and _origin(known) != _origin(cls):
                raise ConfigError(
                    f"{kind} {name!r} is registered twice: by {_origin(known)} and by {_origin(cls)}",
                    fix="give one of them another name",
                )
            _classes[kind, name] = cls
            return cls

        return add

    register.__name__ = f"register_{kind}"
    register.__doc__ = f'Class decorator: ``@register_{kind}("name")`` makes it usable as that {kind} in YAML.'
    return register


def _origin(cls: Any) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def __getattr__(name: str) -> Callable[[str], Callable[[T], T]]:
    """The decorators ``register_<kind>``, one for each key of ``FOLDERS``."""
    kind = name.removeprefix("register_")
    if kind == name or kind not in FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _decorator(kind)


@cache
def _declared(kind: str) -> dict[str, str]:
    """Name -> module, read from decorators without importing anything."""
    pattern = re.compile(_DECORATOR.format(kind), re.MULTILINE)
    return {name: module for module, text in _all_sources(kind) for name in pattern.findall(text)}


@cache
def _all_sources(kind: str) -> list[tuple[str, str]]:
    """The modules that may register ``kind``, with their text: of installed plugins, the systems, its folder."""
    plugins = dict.fromkeys(entry.module for entry in _entry_points())
    return [source for package in (*plugins, SYSTEMS, FOLDERS[kind]) for source in _sources(package)]


def summaries(kind: str) -> dict[str, str]:
    """Name -> first line of the docstring of every class of a kind, sorted; nothing is imported for it."""
    class_doc = r'.*\n(?=(?:@.*\n)*class .*:\n\s+"""(.+?)(?:"""|$))'
    pattern = re.compile(_DECORATOR.format(kind) + class_doc, re.MULTILINE)
    result = dict.fromkeys(names(kind), "")
    for _, text in _all_sources(kind):
        result.update(pattern.findall(text))
    result.update({n: (cls.__doc__ or "").strip().partition("\n")[0] for (k, n), cls in _classes.items() if k == kind})
    return result


@cache
def _sources(package: str) -> list[tuple[str, str]]:
    """Every module of a package, or the one module, with its text."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        log.warning("plugin %s: no such module", package)
        return []
    if spec.submodule_search_locations is None:
        return [(package, Path(spec.origin).read_text(encoding="utf-8"))] if spec.origin else []
    files = [(file, Path(folder)) for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py")]
    paths = ((".".join((package, *f.relative_to(folder).with_suffix("").parts)), f) for f, folder in sorted(files))
    return [(module.removesuffix(".__init__"), file.read_text(encoding="utf-8")) for module, file in paths]


@cache
def _entry_points() -> tuple[Any, ...]:
    """What installed packages declare in group ``vlm.plugins``: each a module, or something in one."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group=PLUGINS))


def names(kind: str) -> list[str]:
    """All names of a kind, sorted: of the package, of installed plugins, of modules imported before."""
    return sorted({n for k, n in _classes if k == kind and ":" not in n} | set(_declared(kind)))


def load_plugin(module: str) -> None:
    """Import a module listed under ``plugins:`` or ``--plugin`` so that its decorators run.

    Raises ConfigError: the module cannot be found.
    """
    missing = ConfigError(f"plugin {module!r}: no such module", fix="install it or put its folder on PYTHONPATH")
    if not all(part.replace("-", "_").isidentifier() for part in module.split(".")):
        raise missing
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise missing from error


def is_known_module(module: str) -> bool:
    """Whether naming a module imports nothing new: it is imported, ships here, or an installed plugin declares it."""
    packages = ["vlm", *(entry.module for entry in _entry_points())]
    return module in sys.modules or any(f"{module}.".startswith(f"{package}.") for package in packages)


def resolve(kind: str, name: str) -> Any:
    """The class registered as ``name`` for ``kind``, or the one at ``package.module:Class``.

    Raises ConfigError: unknown name (with the nearest names and the list), a dotted path to nothing of that kind, or
        one that would import a module, named by a configuration that is not trusted.
    """
    if (kind, name) in _classes:
        return _classes[kind, name]
    if ":" in name:
        return _at_path([kind], name)
    if name in _declared(kind):
        importlib.import_module(_declared(kind)[name])
    else:
        for entry in _entry_points():
            entry.load()
    if (kind, name) in _classes:
        return _classes[kind, name]
    raise ConfigError(unknown(kind, name, names(kind)))


def _at_path(kinds: Sequence[str], path: str) -> Any:
    kind = kinds[0]
    module, _, attribute = path.partition(":")
    if not is_known_module(module) and not trust.is_given():
        raise trust.refused(f"{kind} {path!r:.80}", f"import the module {module!r:.60}")
    load_plugin(module)
    target: Any = sys.modules[module]
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if target is None:
        raise ConfigError(f"{kind} {path!r}: module {module} has no {attribute!r}")
    if not any(_is_registered(k, target) for k in kinds) and not _takes(target, FUNCTIONS.get(kind, ())):
        expected = "function" if kind in FUNCTIONS else "class"
        raise ConfigError(
            f"{kind} {path!r}: expected a {expected}, found {target!r:.80}, not registered as {' or '.join(kinds)}",
            fix=f'put @register_{kind}("name") before the {expected}',
        )
    if kind in FUNCTIONS:
        _classes[kind, path] = target
    return target


def _is_registered(kind: str, target: Any) -> bool:
    return any(known == kind and cls is target for (known, _), cls in _classes.items())


def _takes(target: Any, arguments: Sequence[str]) -> bool:
    """Whether ``target`` is a function of exactly these arguments; if trusted, of as many in any other package."""
    if not arguments or not isinstance(target, FunctionType):
        return False
    declared = [p for p in inspect.signature(target).parameters.values() if p.default is p.empty]
    own = target.__module__.partition(".")[0] not in sys.stdlib_module_names
    alike = own and trust.is_given() and len(declared) == len(arguments)
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in declared)
    return plain and (alike or [p.name for p in declared] == list(arguments))


def config_class(cls: Any) -> Any:
    """The dataclass of a registered class's options: its nested ``Config``, else itself if it is one, else None."""
    return cls.Config if "Config" in dir(cls) else cls if dataclasses.is_dataclass(cls) else None


def resolve_any(kinds: Sequence[str], name: str) -> Any:
    """The class registered as ``name`` for the first of ``kinds`` that has it.

    Raises ConfigError: none of them has it; a dotted path as in :func:`resolve`.
    """
    if ":" in name:
        return _at_path(kinds, name)
    for kind in kinds:
        if name in names(kind):
            return resolve(kind, name)
    raise ConfigError(unknown(kinds[0], name, [n for kind in kinds for n in names(kind)]))
