"""``${...}`` in values: references and a few functions (the home of OmegaConf)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from vlm.common.paths import CORPORA, asset
from vlm.config.schema import MISSING, Path, Report

_REFERENCE = re.compile(r"\$\{params\.([A-Za-z_]\w*)\}")


def interpolate(
    data: dict[str, Any], params: dict[str, Any], helps: Mapping[str, str], report: Report
) -> dict[str, Any]:
    """``data`` with every ``${...}`` replaced by its value; problems go to ``report``.

    Args:
        data: the merged configuration.
        params: what ``${params.NAME}`` gives.
        helps: help texts of the parameters, for messages.
        report: also gets in ``blame`` which value comes from which parameter, and in ``broken`` what failed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers(OmegaConf)
    texts = dict(_references(data, ()))
    invalid: dict[Path, Any] = {}
    for path, text in texts.items():
        try:
            OmegaConf.create({"x": text})
        except OmegaConfBaseException:
            report.add(path, f"found {text!r}, which is not a valid interpolation (write \\${{ for a plain ${{)")
            invalid[path] = None
    report.broken |= set(invalid)
    values = {name: None if ("model", name) in invalid else value for name, value in params.items()}
    root = OmegaConf.create({"params": values, **_replace(data, invalid)})
    results: dict[Path, Any] = {}
    for path in [p for p in texts if p not in invalid]:
        results[path] = None
        if _needs_unset(path, texts[path], params, helps, report):
            continue
        try:
            value: Any = root
            for key in path:
                value = value[key]
            results[path] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            report.add(path, f"found {texts[path]!r}: {str(error).splitlines()[0]}")
            report.broken.add(path)
    return _replace(data, results)


def _needs_unset(path: Path, text: str, params: Mapping[str, Any], helps: Mapping[str, str], report: Report) -> bool:
    """Whether ``text`` refers to a parameter that still has to be set (reported); notes where the value comes from."""
    for name in [n for n in _REFERENCE.findall(text) if n in params]:
        report.blame[path] = ("model", name)
        if params[name] == MISSING:
            report.broken.add(path)
            about = helps.get(name, "")
            report.add(("model", name), "must be set" + (f": {about}" if about else ""))
            return True
    return False


def _register_resolvers(omegaconf: Any) -> None:
    """``${not:x}``, ``${or:x,default}``, ``${if:x,a,b}``, ``${asset:name}`` and ``${pool:name}`` (package files)."""
    register = omegaconf.register_resolver
    if "replace" not in signature(register).parameters:  # OmegaConf < 2.4
        register = omegaconf.register_new_resolver
    register("not", lambda value: not value, replace=True)
    register("or", lambda first, second: first or second, replace=True)
    register("if", lambda test, yes, no: yes if test else no, replace=True)
    register("asset", asset, replace=True)
    register("pool", lambda name: str(CORPORA / "pools" / f"{name}.txt"), replace=True)


def _references(node: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(node, str) and "${" in node:
        yield path, node
    elif isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _references(child, (*path, key))


def _replace(node: Any, values: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy of nested data with other values at some paths."""
    if path in values:
        return values[path]
    if isinstance(node, dict):
        return {k: _replace(v, values, (*path, k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_replace(v, values, (*path, i)) for i, v in enumerate(node)]
    return node
