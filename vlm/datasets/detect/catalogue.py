"""Files that describe datasets: which file each is, which columns it has, where its images are (``layouts.yaml``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError, UserError
from vlm.datasets.base import read_json
from vlm.datasets.detect.entry import Entry, Read, read_head
from vlm.datasets.detect.find import Detected, complete, detect, entry_name
from vlm.datasets.detect.layouts import known
from vlm.datasets.detect.open import HEAD, KINDS, kind_of

MOST_BYTES = 16 << 20
"""A larger file does not describe datasets."""


@dataclass
class Catalogue:
    """A file that describes datasets, and its form out of ``layouts.yaml``."""

    file: Path
    form: Mapping[str, Any]
    described: Mapping[str, Mapping[str, Any]]


def catalogue_of(path: Path) -> Catalogue | None:
    """The descriptions in a file, or in the ``dataset_info.json`` of a folder; None if it holds none."""
    if path.is_dir():
        path = path / "dataset_info.json"
        if (path.parent / "state.json").exists():  # of a saved dataset, which is another thing
            return None
    if path.suffix.lower() != ".json" or not path.is_file() or not 0 < path.stat().st_size <= MOST_BYTES:
        return None
    try:
        tree = read_json(path, "dataset")
    except DataError:
        return None
    if not isinstance(tree, dict) or not tree or not all(isinstance(v, dict) for v in tree.values()):
        return None
    for form in known().catalogues:
        keys = [form["file"], *form.get("elsewhere", {})]
        if all(any(isinstance(v.get(k), str) for k in keys) for v in tree.values()):
            return Catalogue(path, form, tree)
    return None


def described_in(path: Path) -> tuple[Path, str] | None:
    """The folder whose ``dataset_info.json`` describes a file, and the name that it has there."""
    catalogue = catalogue_of(path.parent) if path.is_file() else None
    if catalogue is None:
        return None
    for name, about in catalogue.described.items():
        if about.get(catalogue.form["file"]) == path.name:
            return path.parent, name
    return None


def detect_all(catalogue: Catalogue, images: str, only: Sequence[str]) -> Iterator[tuple[str, Detected | UserError]]:
    """What is known of every dataset that the file describes (or of ``only`` these), by name.

    Raises UserError: an unknown name in ``only``.
    """
    unknown = [name for name in only if name not in catalogue.described]
    if unknown:
        names = ", ".join(list(catalogue.described)[:20])
        raise UserError(f"--only {unknown[0]}: {catalogue.file} has no such dataset", fix=f"use one of {names}")
    for name, about in catalogue.described.items():
        if not only or name in only:
            try:
                yield name, _detected(catalogue, name, about, images)
            except UserError as error:
                yield name, error


def _detected(catalogue: Catalogue, name: str, about: Mapping[str, Any], images: str) -> Detected:
    form = catalogue.form
    for path, why in form.get("refused", {}).items():
        if _at(about, path):
            raise DataError(f"{name}: {path} is set: {why}, which is not trained", fix="leave it out")
    own = str(about.get("root", "")) if "root" in form else ""
    folder = catalogue.file.parent
    images = images or (str(folder / own) if own else "")
    file = about.get(form["file"])
    local = folder / file if isinstance(file, str) else None
    if local is None or not local.exists():
        return _elsewhere(catalogue, name, about, str(local or ""))
    if "kinds" not in form:
        result = detect(local, images)
        result.entry.name = entry_name(name)
        return result
    kind = kind_of(local)
    build_info: dict[str, Any] = {"ann_path": str(local.absolute())}
    if local.suffix.lower() not in KINDS[kind]:
        build_info["file_type"] = kind
    result = _declared(form, name, about, build_info)
    return complete(result, read_head(result.entry, HEAD), local, images, HEAD, whole=False)


def _elsewhere(catalogue: Catalogue, name: str, about: Mapping[str, Any], missing: str) -> Detected:
    """The entry of a dataset on the hub, which is not loaded."""
    form = catalogue.form
    key = next((k for k in form.get("elsewhere", {}) if isinstance(about.get(k), str)), None)
    if key is None:
        raise DataError(f"{name}: no file {missing}", fix="download it, or leave the dataset out with --only")
    prefix = form["elsewhere"][key]
    if not prefix:
        raise DataError(f"{name}: {key} is not read", fix="download it, and name its file")
    query = {"split": about.get("split"), "config": about.get("subset")}
    options = "&".join(f"{k}={v}" for k, v in query.items() if v)
    address = f"{prefix}{about[key]}" + (f"?{options}" if options else "")
    result = _declared(form, name, about, {"ann_path": address})
    result.looked = "nothing: it is on the hub"
    return result


def _declared(form: Mapping[str, Any], name: str, about: Mapping[str, Any], build_info: dict[str, Any]) -> Detected:
    """The entry that the columns and tags of a description ask for."""
    kind = str(about.get("formatting", form["default"]))
    if kind not in form["kinds"]:
        raise DataError(f"{name}: formatting {kind} is not known", fix=f"use one of {', '.join(form['kinds'])}")
    given = form["kinds"][kind]
    columns, tags = about.get("columns") or given["usual"], about.get("tags") or {}
    options: dict[str, Any] = dict(given["options"])
    fields: dict[str, str] = {}
    for column, place in given["columns"].items():
        value = columns.get(column)
        if not isinstance(value, str):
            continue
        if place.startswith("fields."):
            fields[place.removeprefix("fields.")] = value
        else:
            options[place] = f"{{{value}}}" if place in form["templates"] else value
    fields |= {
        p.removeprefix("fields."): tags[t] for t, p in given.get("keys", {}).items() if isinstance(tags.get(t), str)
    }
    speakers = {tags[t]: role for t, role in given.get("speakers", {}).items() if isinstance(tags.get(t), str)}
    result = {**build_info, **({"fields": fields} if fields else {}), **({"speakers": speakers} if speakers else {})}
    entry = Entry(entry_name(name), given["format"], result | options)
    unread = [key for key in about if key not in form["read"]]
    facts = [("because", f"formatting {kind}, columns {', '.join(f'{k}: {v}' for k, v in columns.items())}")]
    facts += [("not read", ", ".join(unread))] if unread else []
    return Detected(f"{form['title']}: {kind}", entry, f"the first {HEAD} records", Read(), None, facts)


def _at(about: Mapping[str, Any], path: str) -> Any:
    first, _, rest = path.partition(".")
    value = about.get(first)
    return _at(value, rest) if rest and isinstance(value, Mapping) else (None if rest else value)
