"""Defaults from arch and corpus files, and interpolation (the home of OmegaConf)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path as FilePath
from typing import Any

from vlm.common.paths import CORPORA, SYSTEMS, asset
from vlm.config.options import Option, value_of
from vlm.config.renamed import rename_keys
from vlm.config.schema import MISSING, Path, Report, convert, nearest, read
from vlm.config.tree import Tree, parse_file

ALIASES = {"arch": {"mini_gpt4": "minigpt4"}, "model_type": {"pretrain_vicuna": "pretrain_vicuna0"}}
"""Names of the first release (April 2023) -> today's."""

COMPOSITION = (
    "vision",
    "bridge",
    "fusion",
    "inserts",
    "llm",
    "template",
    "image",
    "video",
    "text",
    "generation",
    "train",
    "weights",
)
PARTS: tuple[Path, ...] = (("model", "vision"), ("model", "fusion"), ("model", "llm"), ("model", "template"))
_REFERENCE = re.compile(r"\$\{params\.([A-Za-z_]\w*)\}")
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
        if named is not None:
            return named
        return str if self.default == MISSING else type(self.default)


@dataclass
class Arch:
    """Parameters and composition of a model, from an arch file or from the user's ``model:`` itself."""

    params: dict[str, Param] = field(default_factory=dict)
    tree: Tree = field(default_factory=Tree)
    when: list[dict[str, Any]] = field(default_factory=list)


def find_arch(user: Tree, options: Sequence[Option], report: Report) -> Arch | None:
    """The arch file that ``model.arch`` and ``model.model_type`` (options first) select; aliases apply.

    A ``model:`` without ``arch``, or with its own ``params:``, is its own arch file. None: not found (reported).
    """
    if user.get(("model", "params")) is not None:
        _keep_written_out(user, options, report)
    for key, names in ALIASES.items():
        value = value_of(options, ("model", key), user.get(("model", key)))
        if isinstance(value, str):
            origin = user.origins.get(("model", key), "--options")
            user.put(("model", key), names.get(value, value), origin)
    arch, model_type = user.get(("model", "arch")), user.get(("model", "model_type"))
    if arch is None or user.get(("model", "params")) is not None:
        return _read_arch(user.sub(("model",)), ("model",), report, inline=True)
    file = _arch_file(arch, model_type, report)
    if file is None:
        return None
    tree = parse_file(file, _label(file))
    rename_keys(tree, ("model",))
    return _read_arch(tree, (), report)


def _keep_written_out(user: Tree, options: Sequence[Option], report: Report) -> None:
    for key in ("arch", "model_type"):
        path: Path = ("model", key)
        expected = value_of(options, path, None)
        if expected is not None and ALIASES[key].get(expected, expected) != user.get(path):
            declared = "this file writes its composition out, so the option would select nothing"
            report.add(path, f"found {expected!r}, but {declared}; start from a file that names the arch")


def _arch_file(arch: Any, model_type: Any, report: Report) -> FilePath | None:
    if str(arch).endswith((".yaml", ".yml")):
        if FilePath(arch).is_file():
            return FilePath(arch)
        report.add(("model", "arch"), f"found {arch!r}, but there is no such file")
        return None
    folder = SYSTEMS
    known = sorted({f.parent.name for f in folder.glob("*/*.yaml")})
    if arch not in known:
        report.unknown(("model", "arch"), known, "arch", str(arch))
        return None
    types = sorted(f.stem for f in (folder / arch).glob("*.yaml"))
    if model_type is None:
        report.add(("model", "model_type"), f"must be set for arch {arch}: one of {', '.join(types)}")
        return None
    if model_type not in types:
        report.unknown(("model", "model_type"), types, f"model_type of {arch}", str(model_type))
        return None
    return folder / arch / f"{model_type}.yaml"


def _label(file: FilePath) -> str:
    package = SYSTEMS.parent
    return str("vlm" / file.relative_to(package)) if file.is_relative_to(package) else str(file)


def _read_arch(tree: Tree, at: Path, report: Report, inline: bool = False) -> Arch:
    params: dict[str, Param] = {}
    where = Report(origins={(*at, *p): o for p, o in tree.origins.items()})
    for key in tree.data if not inline else ():
        if key not in ("params", "when", *COMPOSITION):
            where.unknown((key,), ["params", "when", *COMPOSITION])
    declarations = tree.get(("params",)) or {}
    if not isinstance(declarations, dict):
        where.add((*at, "params"), f"found {declarations!r}, expected a mapping of names")
        declarations = {}
    for name, said in declarations.items():
        declared = said if isinstance(said, Mapping) and "default" in said else {"default": said}
        facts = {k: v for k, v in declared.items() if k != "default"} | {"default": None}
        param = read(Param, facts, (*at, "params", name), where)
        if param is not None:
            param.default = declared["default"]
            params[name] = param
    report.problems += where.problems
    arch = Arch(params, tree, list(tree.get(("when",)) or []))
    if inline:
        arch.tree = Tree(origins=tree.origins)
        arch.tree.data = {"params": declarations}
    return arch


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
        value = tree.get(path)
        if isinstance(value, str) and (value == MISSING or "${" in value):
            values[name] = value
            continue
        fits, values[name] = convert(param.kind, value, path, report, param.help)
        if fits and param.choices is not None and values[name] not in param.choices:
            report.add(path, f"found {values[name]!r}, expected one of {', '.join(map(str, param.choices))}")
        tree.put(path, values[name], tree.origins.get(path, ""), tree.texts.get(path))
    return values


def archs() -> list[str]:
    """Shipped compositions as ``arch/model_type``."""
    folder = SYSTEMS
    return sorted(f.relative_to(folder).with_suffix("").as_posix() for f in folder.glob("*/*.yaml"))


def corpus_file(name: str) -> FilePath | None:
    """The shipped defaults of a corpus, if there are any."""
    file = CORPORA / f"{name}.yaml"
    return file if file.is_file() else None


def corpora() -> list[str]:
    """Names of the shipped corpora."""
    return sorted(f.stem for f in CORPORA.glob("*.yaml"))


def add_corpus(tree: Tree, user: Tree, options: Sequence[Option], at: Path, report: Report) -> None:
    """Write the defaults of a dataset entry below ``at``: its corpus file, with those of its ``type`` over it.

    An entry that states its ``format`` is complete in itself and has no corpus file.
    """
    name = str(at[-1])
    stated = value_of(options, (*at, "format"), user.get((*at, "format")))
    file = corpus_file(name)
    if stated is not None or file is None:
        if stated is None:
            report.unknown(at, corpora(), "corpus; without a `format` the name must be a shipped corpus")
        chosen = value_of(options, (*at, "type"), None)
        if stated is not None and chosen is not None and chosen != user.get((*at, "type"), "default"):
            report.add((*at, "type"), f"found {chosen!r}, but this entry is written out, so the option selects nothing")
        return
    corpus = parse_file(file, _label(file))
    chosen = value_of(options, (*at, "type"), user.get((*at, "type"), "default"))
    types = corpus.data.pop("types", {})
    if chosen != "default" and chosen not in list(types):
        report.unknown((*at, "type"), ["default", *types], f"type of {name}", str(chosen))
    tree.merge(corpus, at)
    over = types.get(str(chosen))
    if over:
        head: Path = ("types", str(chosen))
        tree.merge(Tree(over, {p[2:]: o for p, o in corpus.origins.items() if p[:2] == head}), at)


def interpolate(
    data: dict[str, Any], params: dict[str, Any], helps: Mapping[str, str], report: Report
) -> dict[str, Any]:
    """``data`` with every ``${...}`` replaced; what cannot be is reported. Fills ``report.blame``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers(OmegaConf)
    faulty: set[Path] = set()
    for path, text in list(_texts_with_reference(data, ())):
        try:
            OmegaConf.create({"x": text})
        except OmegaConfBaseException:
            report.add(path, f"found {text!r}, which is no valid interpolation (write \\${{ for a plain ${{)")
            faulty.add(path)
            report.broken.add(path)
    values = {name: None if ("model", name) in faulty else value for name, value in params.items()}
    root = OmegaConf.create({"params": values, **_without(data, (), faulty)})

    def visit(node: Any, conf: Any, path: Path) -> Any:
        if isinstance(node, dict):
            return {k: leaf(v, conf, k, (*path, k)) for k, v in node.items()}
        return [leaf(v, conf, i, (*path, i)) for i, v in enumerate(node)]

    def leaf(value: Any, conf: Any, key: Any, path: Path) -> Any:
        if isinstance(value, (dict, list)):
            return visit(value, conf[key], path)
        if not isinstance(value, str) or "${" not in value or path in faulty:
            return value
        named = _REFERENCE.findall(value)
        for name in [n for n in named if n in params]:
            report.blame[path] = ("model", name)
            if params[name] == MISSING:
                report.broken.add(path)
                about = helps.get(name, "")
                report.add(("model", name), "must be set" + (f": {about}" if about else ""))
                return None
        try:
            result = conf[key]
        except OmegaConfBaseException as error:
            report.add(path, f"found {value!r}: {str(error).splitlines()[0]}")
            report.broken.add(path)
            return None
        return OmegaConf.to_container(result, resolve=True) if OmegaConf.is_config(result) else result

    return visit(data, root, ())


def _register_resolvers(omegaconf: Any) -> None:
    """``${not:x}``, ``${or:x,default}``, ``${if:x,a,b}``, ``${asset:name}`` (a file of the package)."""
    register = omegaconf.register_resolver
    if "replace" not in signature(register).parameters:  # OmegaConf < 2.4
        register = omegaconf.register_new_resolver
    register("not", lambda value: not value, replace=True)
    register("or", lambda first, second: first or second, replace=True)
    register("if", lambda test, yes, no: yes if test else no, replace=True)
    register("asset", asset, replace=True)


def _texts_with_reference(node: Any, path: Path) -> Any:
    if isinstance(node, str) and "${" in node:
        yield path, node
    elif isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts_with_reference(child, (*path, key))


def _without(node: Any, path: Path, faulty: set[Path]) -> Any:
    if path in faulty:
        return None
    if isinstance(node, dict):
        return {k: _without(v, (*path, k), faulty) for k, v in node.items()}
    if isinstance(node, list):
        return [_without(v, (*path, i), faulty) for i, v in enumerate(node)]
    return node
