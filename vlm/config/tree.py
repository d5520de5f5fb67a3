"""YAML files and ``--options`` as plain trees that remember the file and line of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from vlm.common.errors import ConfigError
from vlm.common.text import read_text
from vlm.config.schema import Path, dotted

OPTIONS = "--options"


MAX_BYTES = 500_000
MAX_NODES = 6_000
"""Keys and values of a file, those that aliases repeat included."""
MAX_DEPTH = 50
MAX_INT = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_TEXTS = ("str", "merge", "value")
_SCALARS = ("int", "float", "bool", "null")


class _Refused(yaml.MarkedYAMLError):
    """What is YAML but is not allowed in a configuration."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 numbers (``1e-4`` is a number), without dates, and with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML does, up to the limits."""
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        mark = self.peek_event().start_mark
        if self.nodes > MAX_NODES:
            raise _too_many(mark)
        if self.depth > MAX_DEPTH:
            raise _too_deep(mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def scan_to_next_token(self) -> None:
        """As PyYAML does, and over tabs between words and before comments, which YAML allows."""
        super().scan_to_next_token()
        while self.peek() == "\t":
            line = self.buffer[self.pointer - self.column : self.pointer]
            rest = self.buffer[self.pointer : self.pointer + MAX_DEPTH].lstrip("\t ")
            if not (line.strip() or self.flow_level or rest.startswith(("#", "\n", "\0"))):
                return  # indentation
            self.forward()
            super().scan_to_next_token()

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        """As PyYAML does; the scanner reads ahead and would be slow at a thousand open brackets."""
        if self.flow_level >= MAX_DEPTH:
            raise _too_deep(self.get_mark())
        super().fetch_flow_collection_start(token_class)


def _too_deep(mark: Any) -> _Refused:
    return _Refused(problem=f"more than {MAX_DEPTH} levels inside each other", problem_mark=mark)


def _too_many(mark: Any) -> _Refused:
    return _Refused(problem=f"more than {MAX_NODES:,} keys and values, aliases included", problem_mark=mark)


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
        inner = isinstance(self.get(path), dict | list)
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
        for table in (self.origins, self.texts) if inner else ():
            for old in [p for p in table if p[: len(path)] == path]:
                del table[old]
        self.texts.pop(path, None)
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
            for path in paths_in(item, source):
                for table, mine in ((over.origins, self.origins), (over.texts, self.texts)):
                    mine.update({(*at, *path): table[path]} if path in table else {})


def parse_file(path: str | FilePath, label: str | None = None) -> Tree:
    """Read a YAML file with the line of every key.

    Raises ConfigError: no such file, no YAML, not a mapping, or a key twice.
    """
    file, label = FilePath(path), label or str(path)
    if not file.is_file():
        raise ConfigError(f"configuration {str(path)!r}: {'not a file' if file.exists() else 'no such file'}")
    return parse_text(read_text(file, label, ConfigError, MAX_BYTES), label)


def parse_text(text: str, label: str) -> Tree:
    """Parse YAML text; ``label`` names it in origins. Raises ConfigError: see :func:`parse_file`."""
    tree = Tree(origins={(): label})
    value = _parse(text, label, tree)
    if not isinstance(value, dict):
        raise ConfigError(f"{label}: expected a mapping with sections model, datasets, run; found {value!r:.80}")
    tree.data = value
    return tree


def parse_value(text: str) -> Any:
    """The value that YAML text such as ``[1, {a: b}]`` stands for; the text itself if it is not allowed in a file."""
    try:
        return _parse(text, OPTIONS, Tree())
    except ConfigError:
        return text


def parse_scalar(text: str) -> Any:
    """What a text without quotes and brackets stands for in YAML: a number, a truth value, null, else the text.

    Raises ConfigError: an integer of more than 64 bits.
    """
    loader = _Loader("")
    try:
        node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        return _Builder(loader, Tree(), OPTIONS).scalar(node)
    except _Refused as error:
        raise ConfigError(f"{OPTIONS} {text!r:.60}: {error.problem}") from error
    finally:
        loader.dispose()


def _parse(text: str, label: str, tree: Tree) -> Any:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        place = f"{label}:{text.count(chr(10), 0, error.position) + 1}"
        message = f"{place}: not a text file that YAML allows: it holds the character U+{error.character:04X}"
        raise ConfigError(message, fix="remove it; a configuration is a text in UTF-8") from error
    try:
        node = loader.get_single_node()
        return {} if node is None else _Builder(loader, tree, label).build(node, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        refused = isinstance(error, _Refused)
        hints = {"found '?'": 'write "???" with quotes inside {} and []', "'\\t'": "indent with spaces, not with tabs"}
        hint = next((fix for words, fix in hints.items() if words in (error.problem or "")), None)
        raise ConfigError(
            f"{label}:{line}: {'' if refused else 'not valid YAML: '}{str(error.problem):.200}", fix=hint
        ) from error
    finally:
        loader.dispose()


class _Builder:
    """Plain data of YAML nodes, with the place of every key; refuses tags, loops, and what aliases blow up."""

    def __init__(self, loader: _Loader, tree: Tree, label: str) -> None:
        self.loader, self.tree, self.label = loader, tree, label
        self.count, self.open = 0, set[int]()

    def build(self, node: yaml.Node, path: Path) -> Any:
        """The value of ``node``. Raises yaml.MarkedYAMLError, ConfigError."""
        self.tree.origins.setdefault(path, self.place(node))
        self.count += 1
        if self.count > MAX_NODES:
            raise _too_many(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != _TAG + expected:
            raise self.refused_tag(node)
        if id(node) in self.open:
            raise _Refused(problem="an alias inside of what it stands for", problem_mark=node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
            result: dict[str, Any] = {}
            for key, (key_node, value_node) in self.pairs(node, path, ()).items():
                inner = (*path, key)
                self.tree.origins[inner] = self.place(key_node)
                result[key] = self.build(value_node, inner)
            return result
        finally:
            self.open.discard(id(node))

    def place(self, node: yaml.Node) -> str:
        """``file:line``."""
        return f"{self.label}:{node.start_mark.line + 1}"

    def pairs(self, node: yaml.Node, path: Path, merging: tuple[int, ...]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Nodes of keys and values by key, with those of ``<<`` below the mapping's own."""
        if not isinstance(node, yaml.MappingNode) or id(node) in merging:
            raise _Refused(problem="<< expects another mapping, or a list of them", problem_mark=node.start_mark)
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused(problem="a key must be a single word or text", problem_mark=key_node.start_mark)
            self.count += 1
            if self.count > MAX_NODES:
                raise _too_many(key_node.start_mark)
            if key_node.tag == _TAG + "merge":
                others = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for other in others:
                    merged = self.pairs(other, path, (*merging, id(node))) | merged
                continue
            key = str(key_node.value)
            if key in own:
                raise ConfigError(f"{self.place(key_node)}: key {dotted((*path, key))!r} is given twice in one mapping")
            own[key] = (key_node, value_node)
        return merged | own

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Text, number, truth value or null."""
        kind = node.tag.removeprefix(_TAG)
        if kind in _TEXTS:
            return node.value
        if kind not in _SCALARS:
            raise self.refused_tag(node)
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError) as error:
            found = f"found {node.value[:40]!r}{'...' if len(node.value) > 40 else ''}, expected {kind}"
            raise _Refused(problem=found, problem_mark=node.start_mark) from error
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise _Refused(problem=f"an integer of {len(node.value)} digits", problem_mark=node.start_mark)
        return value

    def refused_tag(self, node: yaml.Node) -> yaml.MarkedYAMLError:
        """The error about ``!tag``."""
        return yaml.MarkedYAMLError(
            problem=f"the tag {node.tag!r:.60} is not allowed; remove it", problem_mark=node.start_mark
        )


def paths_in(value: Any, path: Path) -> Iterator[Path]:
    """``path`` and those of all values inside ``value``."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths_in(child, (*path, key))


def texts_in(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every text inside ``node`` with its path."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from texts_in(child, (*path, key))


def plain(data: Any) -> Any:
    """A deep copy as plain dicts, lists and scalars (tuples become lists), ready for YAML."""
    if isinstance(data, Mapping):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(v) for v in data]
    return data


def to_yaml(data: Mapping[str, Any], *, compact: bool = False) -> str:
    """YAML text of plain data in the given order; :func:`parse_text` reads the same values back.

    ``compact`` writes what is innermost in one line, such as ``{name: mlp, depth: 2}``.
    """
    style = None if compact else False
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120, "default_flow_style": style}
    return yaml.dump(plain(data), Dumper=_Dumper, **options)


class _Dumper(yaml.SafeDumper):
    """Quotes what our loader would read as something else than a string, e.g. ``1e-4``."""


_Dumper.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
