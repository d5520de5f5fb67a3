"""Which files a composition needs, and whether they are on this machine. Nothing is fetched and no number is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.checkpoint.header import check_file
from vlm.checkpoint.needed.facts import FileFacts, facts_of
from vlm.checkpoint.safe import shards
from vlm.common.errors import ConfigError, UserError, unknown
from vlm.common.paths import SYSTEMS, downloaded, is_url
from vlm.config.api import Config, load_config
from vlm.config.load import read_source
from vlm.config.schema import MISSING
from vlm.config.shipped import archs, current_name
from vlm.config.tree import parse_file
from vlm.config.types import COMPOSITION

State = Literal["found", "missing", "damaged", "not set"]

UNSET = "(not set) "
"""Before the name of a parameter that only the user can give: stands for its value."""
_PARAM = re.compile(r"params\.(\w+)")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MARKS = ("config.json", "adapter_config.json")
"""Files that a repository of a model or adapter has."""


@dataclass(kw_only=True)
class FileStatus:
    """One file or folder that a composition needs."""

    param: str  # the parameter that names it, or the path itself
    state: State
    path: str  # where it was found, or is expected; empty: nowhere named
    bytes: int | None  # what was found
    problem: str  # what is wrong with it, or where it was found besides the named place
    facts: FileFacts | None  # None: the system does not describe it

    @property
    def target(self) -> str:
        """Where the commands of the facts put it."""
        named = self.path if self.state != "found" and not is_url(self.path) else ""
        return named or (self.facts.target if self.facts else "")

    def ways(self) -> list[list[str]]:
        """The commands that make or fetch it: one list per way."""
        ways = [self.facts.commands, self.facts.instead] if self.facts else []
        return [[command.replace("{to}", self.target) for command in way] for way in ways if way]


@dataclass(kw_only=True)
class CompositionStatus:
    """The files of one composition."""

    name: str
    files: list[FileStatus]
    described: bool  # whether its system has facts at all

    @property
    def complete(self) -> bool:
        """Whether everything that it needs is there."""
        return all(file.state in ("found", "not set") for file in self.files)


def look(source: str | None = None, options: Sequence[str] = ()) -> list[CompositionStatus]:
    """The files of every composition that ships, of those of one system, or of one composition.

    Args:
        source: a system, a composition (``system/model_type``), a YAML file or a run folder; None:
            everything that ships.
        options: ``key=value`` changes.

    Raises:
        ConfigError: an unknown name, an unusable configuration, or facts with a mistake in them.
    """
    shipped = archs()
    if source is None:
        return [_look(name, options) for name in shipped]
    system = current_name(source, None)[0]
    chosen = [name for name in shipped if name.split("/")[0] == system]
    if not chosen and "/" not in source and not Path(source).exists():
        raise ConfigError(unknown("system", source, sorted({name.split("/")[0] for name in shipped})))
    return [_look(name, options) for name in chosen or [source]]


def _look(source: str, options: Sequence[str]) -> CompositionStatus:
    cfg = _load(source, options)
    name = "/".join(n for n in (cfg.model.arch, cfg.model.model_type) if n) or source
    known = facts_of(name) if name in archs() else {}
    files = [_status(param, value, known.get(param)) for param, value in _named(cfg, known).items()]
    return CompositionStatus(name=name, files=[f for f in files if f is not None], described=bool(known))


def _load(source: str, options: Sequence[str]) -> Config:
    """A configuration in which what is not set yet has a placeholder."""
    data = read_source(source)[0].data
    model = dict(data.get("model") or {})
    arch, model_type = current_name(model.get("arch"), model.get("model_type"))
    file = SYSTEMS / str(arch) / f"{model_type}.yaml"
    declared = model.get("params") or (parse_file(file).data.get("params") if file.is_file() else None) or {}
    params = {n: d.get("default") if isinstance(d, dict) else d for n, d in declared.items()}
    given = {key: value for key, value in model.items() if value != MISSING}
    name = f"{arch}/{model_type}"
    needed = {f.param for f in facts_of(name).values() if not f.optional} if name in archs() else set()
    empty = {key for key in needed if given.get(key, params.get(key)) in ("", None)}
    open_ = {name: UNSET + name for name, default in params.items() if default == MISSING or name in empty}
    return load_config(
        data | {"model": given | {k: v for k, v in open_.items() if not given.get(k)}}, options, check="none"
    )


def _named(cfg: Config, known: dict[str, FileFacts]) -> dict[str, str]:
    """Parameter (or the path itself) -> value, for every file that the composition as it is now refers to."""
    resolved = cfg.resolved["model"]
    entries = [w for w in resolved.get("weights") or [] if isinstance(w, dict) and w.get("path")]
    result: dict[str, str] = {}
    for entry in entries:
        params = _PARAM.findall(str(entry["path"])) or [str(entry["path"])]
        result |= {name: str(cfg.model.params.get(name, name)) for name in params}
    used = set(_PARAM.findall(str([resolved.get(key) for key in COMPOSITION])))
    result |= {name: str(cfg.model.params[name]) for name in known if name in used and name in cfg.model.params}
    return result


def _status(param: str, value: str, facts: FileFacts | None) -> FileStatus | None:
    """None: nothing is named, and nothing is known to be needed."""
    if not value and (facts is None or facts.optional):
        return None if facts is None else _made(param, "not set", "", facts)
    unset = not value or value.startswith(UNSET)
    place = None if unset else downloaded(value) if is_url(value) else Path(value).expanduser()
    problem = ""
    if (place is None or not place.exists()) and facts is not None and (cached := in_hub_cache(facts)):
        place, problem = cached, f"in the Hugging Face cache; use it with --options model.{param}={cached}"
    if place is None or not place.exists():
        return _made(param, "missing", "" if unset else value, facts)
    fault = _fault(place)
    state: State = "damaged" if fault else "found"
    return _made(param, state, str(place), facts, fault or problem, _size(place))


def _made(
    param: str, state: State, path: str, facts: FileFacts | None, problem: str = "", size: int | None = None
) -> FileStatus:
    return FileStatus(param=param, state=state, path=path, bytes=size, problem=problem, facts=facts)


def in_hub_cache(facts: FileFacts) -> Path | None:
    """The file or folder of a repository in the usual cache of the Hugging Face Hub, which is only read."""
    from huggingface_hub import try_to_load_from_cache

    if not facts.repository:
        return None
    for name in (facts.file,) if facts.file else MARKS:
        found: Any = try_to_load_from_cache(facts.repository, name)
        if isinstance(found, str):
            return Path(found) if facts.file else Path(found).parent
    return None


def _fault(path: Path) -> str:
    """What is wrong with a file or folder by its declarations; empty: nothing."""
    try:
        if path.is_file():
            check_file(path)
        elif any((path / name).is_file() for name in INDICES):
            shards(path)
        elif not any(path.iterdir()):
            return f"{path}: an empty folder"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return ""


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder and in those right below it."""
    files = [path] if path.is_file() else [*path.glob("*"), *path.glob("*/*")]
    return sum(file.stat().st_size for file in files if file.is_file())
