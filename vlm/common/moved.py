"""Import paths of earlier versions: they keep working, with one DeprecationWarning that names today's path.

``assets/moved.txt`` is the table; it is read only when an import below ``vlm.`` finds no module.
"""

from __future__ import annotations

import sys
from functools import cache

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all else here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PACKAGE = "vlm"


@cache
def table() -> dict[str, tuple[str, ...]]:
    """Old module -> the modules that hold its names today; ``old module:old name`` -> today's ``module:name``."""
    from vlm.common.paths import ASSETS

    rows = [line.split() for line in (ASSETS / "moved.txt").read_text(encoding="utf-8").splitlines()]
    return {f"{PACKAGE}.{old}": tuple(f"{PACKAGE}.{n}" for n in new) for old, *new in filter(None, rows) if old != "#"}


def find_name(module: str, name: str) -> Any:
    """What ``name`` of the old ``module`` is today. Raises AttributeError: nothing."""
    from importlib import import_module

    places = [f"{target}:{name}" for target in table().get(module, ())]
    for target, _, wanted in (p.partition(":") for p in [*places, *table().get(f"{module}:{name}", ())]):
        found = import_module(target)
        if hasattr(found, wanted):
            return getattr(found, wanted)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


class _Moved(type(sys)):  # type: ignore[misc]
    """Stands for a module that was moved; its names are looked up where they are today."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return find_name(self.__name__, name)


class MovedFinder:
    """Finds old modules, and old names of modules that are packages today. Last in ``sys.meta_path``."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        from importlib.machinery import ModuleSpec

        if fullname not in table():
            module, _, name = fullname.rpartition(".")
            try:
                find_name(module, name)
            except AttributeError:
                return None
        return ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See :class:`importlib.abc.Loader`."""
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Warn; a name (not a module) takes the place of the module that the import system made for it."""
        import warnings

        old = module.__name__
        parent, _, name = old.rpartition(".")
        new = table().get(old) or table()[parent]
        warnings.warn(f"{old} has moved to {new[0]}", DeprecationWarning, stacklevel=2)
        if old not in table():
            sys.modules[old] = find_name(parent, name)


def install() -> None:
    """Add the finder, once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())  # type: ignore[arg-type]
