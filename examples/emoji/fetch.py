"""Packages of npm's and PyPI's registries: fetched once, compared with their checksums, read without being installed.

npm packages come through ``npm pack`` where npm is installed, with all of its settings; else by HTTPS from the
registry that ``NPM_CONFIG_REGISTRY`` or an ``.npmrc`` names. Packages of PyPI come through ``pip download``, with pip's
settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vlm.common.errors import UserError
from vlm.common.logging import say

NPM_REGISTRY = "https://registry.npmjs.org"
SECONDS = 900
"""After which a registry that does not answer is given up."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A package of a registry, of one version.

    Attributes:
        registry: ``npm`` or ``pypi``.
        name: there.
        version: there.
        sha256: of its archive.
        licence: of what is used of it.
        used: what is used of it.
    """

    registry: str
    name: str
    version: str
    sha256: str
    licence: str
    used: str

    @property
    def file(self) -> str:
        """Name of the archive, as ``npm pack`` and ``pip download`` write it."""
        if self.registry == "npm":
            return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"
        tag = "py2.py3-none-any" if self.name.startswith("efficientnet") else "py3-none-any"
        return f"{self.name.replace('-', '_')}-{self.version}-{tag}.whl"


def fetch(package: Package, folder: Path) -> Path:
    """The archive of a package in ``folder``, where it is looked for first.

    Raises UserError: the registry cannot be reached or has no such package, or its archive is another one.
    """
    target = folder / package.file
    if target.is_file() and digest(target) == package.sha256:
        return target
    target.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching {package.name} {package.version} ({package.registry})")
    if package.registry == "pypi":
        _pip(package, folder)
    elif shutil.which("npm"):
        _npm(package, folder)
    else:
        _https(package, target)
    found = digest(target) if target.is_file() else "no file"
    if found != package.sha256:
        raise UserError(
            f"{package.name} {package.version}: the archive {package.file} has the SHA-256 {found}, "
            f"expected {package.sha256}",
            fix="delete it and run the same command again; a registry that changes packages cannot be used",
        )
    return target


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def _run(package: Package, words: list[str], hint: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        failed, text = done.returncode != 0, done.stderr
    except subprocess.TimeoutExpired:
        failed, text = True, f"no answer within {SECONDS} seconds"
    if failed:
        lines = [line for line in text.splitlines() if "error" in line.lower()] or text.splitlines() or [""]
        what = f"{package.name} {package.version}: {' '.join(words[:2])} could not fetch it: {lines[0].strip():.200}"
        raise UserError(what, fix=f"{hint}; what was fetched stays, the same command goes on")


def _npm(package: Package, folder: Path) -> None:
    words = ["npm", "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder), "--silent"]
    _run(package, words, "can `npm ping` reach the registry that `npm config get registry` names?")


def _pip(package: Package, folder: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    _run(package, [*pip, "--dest", str(folder), wanted], "can pip reach the index that `pip config list` names?")


def npm_registry(name: str, environment: Mapping[str, str], files: list[Path]) -> str:
    """The registry of a package, if npm is not there: of its scope or of all, from the environment or ``.npmrc``."""
    stated: dict[str, str] = {}
    for file in reversed(files):
        if file.is_file():
            pairs = (line.partition("=") for line in file.read_text("utf-8").splitlines() if "=" in line)
            stated |= {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
    for variable in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if environment.get(variable):
            stated["registry"] = environment[variable]
    scope = f"{name.partition('/')[0]}:registry"
    return (stated.get(scope) or stated.get("registry") or NPM_REGISTRY).rstrip("/")


def _https(package: Package, target: Path) -> None:
    registry = npm_registry(package.name, os.environ, [Path(".npmrc"), Path("~/.npmrc").expanduser()])
    part = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(
            f"{registry}/{quote(package.name, safe='@')}/{package.version}", timeout=60
        ) as page:
            address = json.load(page)["dist"]["tarball"]
        with urllib.request.urlopen(address, timeout=60) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{package.name} {package.version}: the npm registry {registry} could not be read ({error})",
            fix="set NPM_CONFIG_REGISTRY to a registry that can be reached (HTTPS_PROXY is read, too); "
            "what was fetched stays, the same command goes on",
        ) from error
    part.replace(target)


def members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names (below the package's folder) and contents of the files of an npm archive that are wanted."""
    with contextlib.closing(tarfile.open(archive, "r:gz")) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and wanted(name):
                source = tar.extractfile(member)
                assert source is not None
                yield name, source.read()


def unpack(wheel: Path, name: str, target: Path) -> Path:
    """The one file of a wheel whose name ends with ``name``, as ``target``; left alone if it is there."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with zipfile.ZipFile(wheel) as archive:
            inside = next(each for each in archive.namelist() if each.endswith(name))
            with archive.open(inside) as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
        part.replace(target)
    return target
