"""Writes ``constraints.txt``, the versions that the suite was run with: ``python tools/update_constraints.py``.

Run it in an environment where ``make test`` is green. With ``--lowest`` it prints the lowest versions that
pyproject.toml allows instead, in the same form; ``make test-oldest`` installs those.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"
PINNED_BY_TORCH = re.compile("nvidia-|cuda-|triton$")


def direct() -> list[Requirement]:
    """The dependencies of pyproject.toml with those of all extras, one of each name, sorted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found = {canonicalize_name(need.name): need for need in map(Requirement, lines)}
    return [found[name] for name in sorted(found)]


def installed(name: str) -> str | None:
    """The version in this environment without a local part such as ``+cpu``; None where it is missing."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def needed_by(needs: Iterable[Requirement]) -> list[str]:
    """Names of all installed packages that ``needs`` need here with their extras, without themselves, sorted."""
    left = [(canonicalize_name(need.name), {"", *need.extras}) for need in needs]
    names, found = {name for name, _ in left}, set[str]()
    while left:
        name, extras = left.pop()
        for need in map(Requirement, requires(name) or ()):
            other = canonicalize_name(need.name)
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and installed(other) and other not in found | names and not PINNED_BY_TORCH.match(other):
                found.add(other)
                left.append((other, {"", *need.extras}))
    return sorted(found)


def lowest(need: Requirement) -> str:
    """``name==version`` of the lower bound of a requirement.

    Raises:
        SystemExit: it has none.
    """
    bounds = [s.version for s in need.specifier if s.operator in (">=", "==")]
    if not bounds:
        raise SystemExit(f"pyproject.toml: {need.name} has no lower bound")
    marker = f" ; {need.marker}" if need.marker else ""
    return f"{canonicalize_name(need.name)}=={bounds[0]}{marker}"


def constraints() -> str:
    """The text of ``constraints.txt``; a package that is missing here keeps the version it had."""
    before = dict(re.findall(r"^([\w.-]+)==([^ ;]+)", FILE.read_text() if FILE.exists() else "", re.MULTILINE))
    needs = {canonicalize_name(need.name): need for need in direct()}
    versions = {name: installed(name) or before.get(name) for name in needs}
    for name, kept in versions.items():
        if not installed(name):
            print(f"{name} is not installed: " + (f"stays at {kept}" if kept else "left out"), file=sys.stderr)
    python = ".".join(platform.python_version_tuple()[:2])
    marker = f" ; python_version >= '{python}'"
    return "\n".join(
        [
            f"# Versions that the whole test suite passed with, on Python {python} and {platform.system()}.",
            "# Written by tools/update_constraints.py; used by: pip install -c constraints.txt -e .",
            f"# On older versions of Python than {python} nothing is pinned.",
            "",
            *(f"{name}=={found}{marker}" for name, found in versions.items() if found),
            "",
            "# what those need",
            *(f"{name}=={installed(name)}{marker}" for name in needed_by(needs[n] for n in needs if installed(n))),
            "",
        ]
    )


def main() -> None:
    """Write the file, or print the lower bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowest", action="store_true", help="print the lowest versions that pyproject.toml allows")
    if parser.parse_args().lowest:
        print("\n".join(map(lowest, direct())))
    else:
        FILE.write_text(constraints(), encoding="utf-8")


if __name__ == "__main__":
    main()
