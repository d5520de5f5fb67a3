"""YAML files and ``--options`` as plain trees that remember the file and line of every value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from vlm.common.errors import ConfigError
from vlm.config.schema import Path, dotted

OPTIONS = "--options"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 numbers (``1e-4`` is a number) and without dates."""


_FLOAT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?\d+$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in pairs if not tag.endswith((":timestamp", ":float", ":int"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


@dataclass
class Tree:
    """Nested plain data; ``origins`` gives ``file:line`` per path, ``texts`` the literal text of options."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)

    def get(self, path: Path, default: Any = None) -> Any:
        """The value at ``path``, or ``default``."""
        node: Any = self.data
        for key in path:
            inside = key in node if isinstance(node, dict) else isinstance(node, list) and key in range(len(node))
            if not inside:
                return default
            node = node[key]
        return node

    def sub(self, path: Path) -> Tree:
        """The mapping at ``path`` as a tree of its own (empty if there is none)."""
        data = self.get(path)
        cut = len(path)
        return Tree(
            deepcopy(data) if isinstance(data, dict) else {},
            {p[cut:]: o for p, o in self.origins.items() if p[:cut] == path},
            {p[cut:]: t for p, t in self.texts.items() if p[:cut] == path},
        )

    def put(self, path: Path, value: Any, origin: str, text: str | None = None) -> None:
        """Set the value at ``path``, making mappings on the way.

        Raises KeyError: a list on the way has no such element, or the way leads through a scalar.
        """
        path = self.real(path)
        node: Any = self.data
        for depth, key in enumerate(path):
            is_list = isinstance(node, list)
            if not is_list and not isinstance(node, dict):
                raise KeyError(f"{dotted(path[:depth])} is {node!r} and has no part {key!r}")
            if is_list and key not in range(len(node)):
                raise KeyError(f"{dotted(path[:depth])} is a list of {len(node)} and has no element {key!r}")
            if depth == len(path) - 1:
                node[key] = value
            elif not is_list and node.get(key) is None:
                node[key] = {}
                self.origins[path[: depth + 1]] = origin
            node = node[key]
        for table in (self.origins, self.texts):
            for old in [p for p in table if p[: len(path)] == path]:
                del table[old]
        self.origins[path] = origin
        if text is not None:
            self.texts[path] = text

    def real(self, path: Path) -> Path:
        """``path`` with numbers only where the tree has lists (mapping keys are strings)."""
        node: Any = self.data
        keys: list[str | int] = []
        for key in path:
            keys.append(key if isinstance(node, list) else str(key))
            node = self.get(tuple(keys))
        return tuple(keys)

    def merge(self, over: Tree, at: Path = (), replace_if_renamed: Mapping[Path, str] | None = None) -> None:
        """Deep-merge ``over`` below ``at``: mappings merge, all else (lists too) is replaced.

        A mapping at a path in ``replace_if_renamed`` (path -> the name of one that has none) whose ``name`` changes
        is replaced as a whole, because the options of one part mean nothing to another.
        """
        if at and not isinstance(self.get(at), dict):
            self.put(at, {}, over.origins.get((), ""))
        self._merge(over, (), over.data, at, replace_if_renamed or {})

    def _merge(self, over: Tree, rel: Path, value: dict[str, Any], at: Path, renamed: Mapping[Path, str]) -> None:
        for key, item in value.items():
            source, target = (*rel, key), (*at, *rel, key)
            known = self.get(target)
            new_name = target in renamed and isinstance(known, dict) and isinstance(item, dict)
            if new_name and "name" in item and item["name"] != known.get("name", renamed[target]):
                known = None
            if isinstance(item, dict) and isinstance(known, dict):
                if source in over.origins:
                    self.origins[target] = over.origins[source]
                self._merge(over, source, item, at, renamed)
                continue
            self.put(target, deepcopy(item), over.origins.get(source, ""))
            for table, mine in ((over.origins, self.origins), (over.texts, self.texts)):
                mine.update({(*at, *p): o for p, o in table.items() if p[: len(source)] == source})


def parse_file(path: str | FilePath, label: str | None = None) -> Tree:
    """Read a YAML file with the line of every key.

    Raises ConfigError: no such file, no YAML, not a mapping, or a key twice.
    """
    file = FilePath(path)
    if not file.is_file():
        raise ConfigError(f"configuration {str(path)!r}: no such file")
    try:
        return parse_text(file.read_text(encoding="utf-8"), label or str(path))
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ConfigError(f"{label or path}: not a text file in UTF-8 ({error.reason})") from error


def parse_text(text: str, label: str) -> Tree:
    """Parse YAML text; ``label`` names it in origins. Raises ConfigError: see :func:`parse_file`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        tree = Tree(origins={(): label})
        value = {} if node is None else _build(loader, node, (), tree, label)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        hint = 'write "???" with quotes inside {} and []' if "found '?'" in (error.problem or "") else None
        raise ConfigError(f"{label}:{line}: not valid YAML: {error.problem}", fix=hint) from error
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise ConfigError(f"{label}: expected a mapping with sections model, datasets, run; found {value!r:.80}")
    tree.data = value
    return tree


def _build(loader: _Loader, node: yaml.Node, path: Path, tree: Tree, label: str) -> Any:
    tree.origins.setdefault(path, f"{label}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        own = [str(k.value) for k, _ in node.value if k.tag != "tag:yaml.org,2002:merge"]
        lines = {str(k.value): k.start_mark.line + 1 for k, _ in node.value}
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if own.count(key) > 1:
                raise ConfigError(f"{label}:{lines[key]}: key {dotted((*path, key))!r} is given twice in one mapping")
            place: Path = (*path, key)
            tree.origins[place] = f"{label}:{key_node.start_mark.line + 1}"
            result[key] = _build(loader, value_node, place, tree, label)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*path, i), tree, label) for i, child in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def plain(data: Any) -> Any:
    """A deep copy as plain dicts, lists and scalars (tuples become lists), ready for YAML."""
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    return data


def to_yaml(data: Mapping[str, Any]) -> str:
    """YAML text of plain data in the given order; :func:`parse_text` reads the same values back."""
    return yaml.dump(plain(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes what our loader would read as something else than a string, e.g. ``1e-4``."""


_Dumper.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
