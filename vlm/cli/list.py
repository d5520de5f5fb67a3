"""``vlm list``: the names that a YAML file can use, and the options of one part."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from vlm.common.errors import ConfigError, unknown
from vlm.common.logging import say
from vlm.common.paths import CORPORA, SYSTEMS
from vlm.common.registry import FOLDERS, config_class, load_plugin, names, register_command, resolve, summaries
from vlm.config.schema import spelled

FILES = {"arch": SYSTEMS, "corpus": CORPORA}  # kinds that are YAML files, not classes, and their folders


@register_command("list")
class List:
    """List the names that a YAML file can use, or show the options of one part.

    examples:
      vlm list
      vlm list bridge
      vlm list bridge qformer
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """An optional kind, an optional name, and plugins to import first."""
        parser.add_argument("kind", nargs="?", choices=sorted({*FOLDERS, *FILES}), metavar="KIND", help="only these")
        parser.add_argument("name", nargs="?", metavar="NAME", help="show the options of this part")
        parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="import this first")

    def main(self, args: argparse.Namespace) -> int:
        """Print kind and names, one kind per line; of one kind a name per line; of one part its options.

        Raises ConfigError: an unknown name or plugin.
        """
        for module in args.plugin:
            load_plugin(module)
        if args.name:
            say(describe(args.kind, args.name))
            return 0
        from vlm.config.shipped import archs, corpora

        result = {**{kind: names(kind) for kind in FOLDERS}, "arch": archs(), "corpus": corpora()}
        if args.kind:
            about = {} if args.kind in FILES else summaries(args.kind)
            for name in result[args.kind]:
                say(f"{name:<24}{about.get(name, '')}".rstrip())
            return 0
        for kind, known in sorted(result.items()):
            if known:
                say(f"{kind:<18}{', '.join(known)}")
        return 0


def describe(kind: str, name: str) -> str:
    """A part's docstring, and each of its options with type, default and meaning; the text of a YAML file.

    Raises ConfigError: an unknown name.
    """
    if kind in FILES:
        from vlm.config.shipped import archs, corpora

        file = FILES[kind] / f"{name}.yaml"
        if not file.is_file():
            raise ConfigError(unknown(kind, name, archs() if kind == "arch" else corpora()))
        return file.read_text(encoding="utf-8").rstrip()
    cls = resolve(kind, name)
    lines = [f"{kind} {name} ({cls.__module__}:{cls.__qualname__})", "", inspect.getdoc(cls) or "(no docstring)"]
    options = option_table(config_class(cls)) if config_class(cls) is not None else []
    lines += ["", "options:"] if options else []
    for option, form, default, about in options:
        lines.append(f"  {option}: {form}{'' if default is None else f' = {default}'}")
        lines += textwrap.wrap(about, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def option_table(config: Any) -> list[tuple[str, str, str | None, str]]:
    """Name, type, default (None: required) and meaning of every field of a ``Config`` dataclass.

    The meaning is the comment after the field, or the string below it.
    """
    about = {name: text for cls in reversed(config.__mro__[:-1]) for name, text in _meanings(cls).items()}
    result = []
    types = spelled(config)
    for field in dataclasses.fields(config):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = None if made is dataclasses.MISSING else repr(made)
        form, allowed = types[field.name]
        meaning = "; ".join(filter(None, (about.get(field.name, ""), allowed)))
        result.append((field.name, form, default, meaning))
    return result


def _meanings(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines, body = source.splitlines(), ast.parse(source).body[0].body  # type: ignore[attr-defined]
    result = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :].strip(" #")
            if not text and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            result[node.target.id] = text
    return result
