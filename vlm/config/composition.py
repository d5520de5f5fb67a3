"""Defaults from the files of a composition and of corpora, and the parameters that a composition declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from vlm.common.errors import nearest
from vlm.common.paths import SYSTEMS
from vlm.config.options import Option, value_of
from vlm.config.renamed import rename_keys
from vlm.config.schema import MISSING, Path, Report, convert, read
from vlm.config.shipped import archs, corpora, corpus_file, current_name, label
from vlm.config.tree import OPTIONS, Tree, parse_file
from vlm.config.types import COMPOSITION, PARTS

NAMES = ("arch", "model_type")

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "list": list}


@dataclass
class Param:
    """Something a user may set under ``model:``, as an arch file declares it."""

    default: Any
    help: str = ""
    type: str | None = None
    choices: list[Any] | None = None

    @property
    def kind(self) -> Any:
        """The Python type its values must have."""
        named = _KINDS.get(self.type or "")
        if self.default is None:
            return Any if named is None else named | None
        return named or (str if self.default == MISSING else type(self.default))


@dataclass
class Arch:
    """Parameters and composition of a model, from an arch file or from the user's ``model:`` itself."""

    params: dict[str, Param]
    tree: Tree
    when: list[dict[str, Any]]


def find_arch(user: Tree, options: Sequence[Option], report: Report) -> Arch | None:
    """The arch file that ``model.arch`` and ``model.model_type`` (options first) select; aliases apply.

    A ``model:`` without ``arch``, or with its own ``params:``, is its own arch file. None: not found (reported).
    """
    inline = user.get(("model", "params")) is not None
    written = [user.get(("model", key)) for key in NAMES]
    chosen = [value_of(options, ("model", key), value) for key, value in zip(NAMES, written)]
    for key, name, own in zip(NAMES, current_name(*chosen), current_name(*written)):
        if inline and name != own:
            declared = "this file writes its composition out, so the option would select nothing"
            report.add(("model", key), f"found {name!r}, but {declared}; start from a file that names the arch")
        elif name is not None:
            user.put(("model", key), name, user.origins.get(("model", key), OPTIONS))
    arch, model_type = (user.get(("model", key)) for key in NAMES)
    if arch is None or inline:
        return _read_arch(user.sub(("model",)), ("model",), report, inline=True)
    file = _arch_file(arch, model_type, report)
    if file is None:
        return None
    tree = parse_file(file, label(file))
    rename_keys(tree, ("model",))
    return _read_arch(tree, (), report)


def _arch_file(arch: Any, model_type: Any, report: Report) -> FilePath | None:
    if str(arch).endswith((".yaml", ".yml")):
        if FilePath(arch).is_file():
            return FilePath(arch)
        report.add(("model", "arch"), f"found {arch!r}, but there is no such file")
        return None
    known = [name.split("/") for name in archs()]
    types = [name for system, name in known if system == arch]
    if not types:
        report.unknown(("model", "arch"), sorted({system for system, _ in known}), "arch", str(arch))
    elif model_type is None:
        report.add(("model", "model_type"), f"must be set for arch {arch}: one of {', '.join(types)}")
    elif model_type not in types:
        report.unknown(("model", "model_type"), types, f"model_type of {arch}", str(model_type))
    else:
        return SYSTEMS / arch / f"{model_type}.yaml"
    return None


def _read_arch(tree: Tree, at: Path, report: Report, inline: bool = False) -> Arch:
    params: dict[str, Param] = {}
    where = Report({(*at, *p): o for p, o in tree.origins.items()})
    for key in tree.data if not inline else ():
        if key not in ("params", "when", *COMPOSITION):
            where.unknown((key,), ["params", "when", *COMPOSITION])
    declarations = tree.get(("params",)) or {}
    if not isinstance(declarations, dict):
        where.add((*at, "params"), f"found {declarations!r}, expected a mapping of names")
        declarations = {}
    for name, value in declarations.items():
        declared = value if isinstance(value, Mapping) and "default" in value else {"default": value}
        facts = {k: v for k, v in declared.items() if k != "default"} | {"default": None}
        param = read(Param, facts, (*at, "params", name), where)
        if param is not None:
            param.default = declared["default"]
            params[name] = param
    report.problems += where.problems
    own = Tree({"params": declarations}, tree.origins) if inline else tree
    return Arch(params, own, list(tree.get(("when",)) or []))


def add_arch(tree: Tree, arch: Arch, user: Tree, options: Sequence[Option], report: Report) -> None:
    """Write parameter defaults, the composition and the overlays that apply below ``model`` of ``tree``."""
    at = ("model",)
    origin = arch.tree.origins
    values: dict[str, Any] = {}
    for name, param in arch.params.items():
        place = origin.get(("params", name, "default"), origin.get(("params", name), ""))
        tree.put((*at, name), param.default, place)
        values[name] = value_of(options, (*at, name), user.get((*at, name), param.default))
    composition = {k: v for k, v in arch.tree.data.items() if k in COMPOSITION}
    tree.merge(Tree(composition, {p: o for p, o in origin.items() if p and p[0] in COMPOSITION}), at)
    for index, overlay in enumerate(arch.when):
        for name in set(overlay["if"]) - set(values):
            report.add(("model",), f"{origin.get((), '')}: `when` asks for {name!r}{nearest(name, list(values))}")
        if all(values.get(k) == v for k, v in overlay["if"].items()):
            tree.merge(arch.tree.sub(("when", index, "then")), at, PARTS)


def read_params(tree: Tree, arch: Arch, report: Report) -> dict[str, Any]:
    """Typed values of the parameters; ``???`` stays and is reported only where the composition needs it."""
    values: dict[str, Any] = {}
    for name, param in arch.params.items():
        path = ("model", name)
        value = unset(tree.get(path), param)
        if isinstance(value, str) and (value == MISSING or "${" in value):
            values[name] = value
            continue
        fits, values[name] = convert(param.kind, value, path, report, param.help)
        if fits and param.choices is not None and values[name] not in param.choices:
            report.add(path, f"found {values[name]!r}, expected one of {', '.join(map(str, param.choices))}")
        tree.put(path, values[name], tree.origins.get(path, ""), tree.texts.get(path))
    return values


def unset(value: Any, param: Param) -> Any:
    """``value`` of a text, with both spellings of "none" as the one that the composition expects."""
    if param.default == "" and value is None:  # ckpt: null
        return ""
    return MISSING if param.default == MISSING and value is None else value


def add_corpus(tree: Tree, user: Tree, options: Sequence[Option], at: Path, report: Report) -> None:
    """Write the defaults of a dataset entry below ``at``: its corpus file, with those of its ``type`` over it.

    An entry that states its ``format`` is complete in itself and has no corpus file.
    """
    name = str(at[-1])
    own = user.get((*at, "type"), "default")
    chosen = value_of(options, (*at, "type"), own)
    if value_of(options, (*at, "format"), user.get((*at, "format"))) is not None:
        if chosen not in (own, None):
            report.add((*at, "type"), f"found {chosen!r}, but this entry is written out, so the option selects nothing")
        return
    if (file := corpus_file(name)) is None:
        report.unknown(at, corpora(), "corpus; without a `format` the name must be a shipped corpus")
        return
    corpus = parse_file(file, label(file))
    types = corpus.data.pop("types", {})
    if chosen != "default" and chosen not in list(types):
        report.unknown((*at, "type"), ["default", *types], f"type of {name}", str(chosen))
    tree.merge(corpus, at)
    if over := types.get(str(chosen)):
        head: Path = ("types", str(chosen))
        tree.merge(Tree(over, {p[2:]: o for p, o in corpus.origins.items() if p[:2] == head}), at)
