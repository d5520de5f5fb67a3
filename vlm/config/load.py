"""The steps from files and options to a :class:`Config`; :func:`vlm.config.api.load_config` is the entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.registry import load_plugin, names, resolve_any
from vlm.config.composition import Arch, add_arch, add_corpus, find_arch, read_params
from vlm.config.interpolation import interpolate
from vlm.config.options import Option, apply_options, parse_options
from vlm.config.parts import read_dataset, read_model, read_options
from vlm.config.renamed import current, rename_keys
from vlm.config.run import RunConfig
from vlm.config.schema import Path, Report, dotted, read
from vlm.config.shipped import find, is_composition, label
from vlm.config.stored import DATA_SECTIONS, store
from vlm.config.tree import OPTIONS, Tree, parse_file, plain
from vlm.config.types import PARTS, Check, Config, DatasetEntry, ModelConfig

SECTIONS = ("model", *DATA_SECTIONS, "run", "plugins")
STORED = "config.yaml"
"""The resolved configuration inside a run folder."""


def load(cfg: str | FilePath | Mapping[str, Any], options: Sequence[str], check: Check, train: bool) -> Config:
    """See :func:`vlm.config.api.load_config`."""
    user, title = read_source(cfg, train)
    rename_keys(user)
    value = [dataclasses.replace(o, path=current(o.path)) for o in parse_options(options)]
    report = Report(origins=dict(user.origins))
    report.origins.update({o.path: f"{OPTIONS} {dotted(o.path)}" for o in value})
    report.texts = {o.path: o.text for o in value}
    check_sections(user, value, report)
    plugins = load_plugins(user, report)
    normalise(user)
    tree, arch, defaults = merge(user, value, report)
    report.origins, report.texts = {**report.origins, **tree.origins}, tree.texts
    params = read_params(tree, arch, report) if arch else {}
    helps = {name: p.help for name, p in arch.params.items()} if arch else {}
    data = interpolate(tree.data, params, helps, report)
    params = {name: data["model"][name] for name in params}
    report.helps = {("model", name): text for name, text in helps.items()}
    if check == "needed":
        check = "all" if uses_data(data) else "weights"
    model = read_model(data.get("model", {}), params, report, check) if arch else None
    run = read(RunConfig, data.get("run") or {}, ("run",), report) or RunConfig()
    check_run(run, data, report)
    sections = {s: read_section(s, data, model, report, check) for s in DATA_SECTIONS}
    report.raise_if_any(title)
    assert model is not None
    config = Config(
        model=model,
        datasets=sections["datasets"],
        valid_datasets=sections["valid_datasets"],
        evaluation_datasets=sections["evaluation_datasets"],
        run=run,
        plugins=plugins,
        origins={dotted(p): report.where(p) for p in tree.origins if p},
        defaults=defaults,
    )
    config.resolved = store(config, tree, arch, data)
    return config


def uses_data(data: dict[str, Any]) -> bool:
    """Whether a configuration trains (it says how long) or evaluates; otherwise it is for chat."""
    return bool(data.get("evaluation_datasets") or set(data.get("run") or {}) & {"max_epoch", "max_steps"})


def read_source(cfg: str | FilePath | Mapping[str, Any], train: bool = False) -> tuple[Tree, str]:
    """The user's tree and its name in messages.

    Args:
        cfg: plain data, a YAML file, a folder with a stored configuration, or ``system/name`` of what ships.
        train: whether such a name means a file to train with first; see :func:`vlm.config.shipped.find`.

    Raises:
        ConfigError: nothing of the kind, or not a YAML mapping.
    """
    if isinstance(cfg, Mapping):
        return Tree(plain(cfg), {(): "stored configuration"}), "stored configuration"
    path = FilePath(cfg)
    if path.is_dir():
        if not (path / STORED).is_file():
            raise ConfigError(f"{path}: not a run folder, it has no {STORED}", fix="name a run folder or a YAML file")
        path = path / STORED
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return parse_file(path), str(path)
    path = find(str(cfg), train)
    if is_composition(path):
        names_ = {"arch": path.parent.name, "model_type": path.stem}
        return Tree({"model": names_}, {(): label(path)}), label(path)
    return parse_file(path, label(path)), label(path)


def check_sections(user: Tree, options: Sequence[Option], report: Report) -> None:
    """Report unknown or unusable top-level sections and options that name no dataset of the file."""
    for key, value in user.data.items():
        if key not in SECTIONS:
            report.unknown((key,), SECTIONS, "section")
        elif key != "plugins" and value is not None and not isinstance(value, dict):
            report.add((key,), f"found {value!r}, expected a mapping")
            user.data[key] = {}
        elif value is None:
            user.data[key] = [] if key == "plugins" else {}
    for option in options:
        if option.path[0] not in SECTIONS:
            report.unknown(option.path, SECTIONS, "section", str(option.path[0]))
        elif option.path[0] in DATA_SECTIONS and len(option.path) > 1:
            present = list(user.get(option.path[:1], {}))
            if str(option.path[1]) not in present:
                report.unknown(option.path, present, "dataset", str(option.path[1]))
    if not user.data.get("model") and not any(o.path[0] == "model" for o in options):
        report.add(("model",), "missing; expected arch and model_type, or a composition")


def load_plugins(user: Tree, report: Report) -> list[str]:
    """Import the modules listed under ``plugins``, so that their decorators run."""
    plugins = user.get(("plugins",), [])
    if not isinstance(plugins, list) or not all(isinstance(p, str) and p for p in plugins):
        report.add(("plugins",), f"found {plugins!r}, expected a list of module names")
        return []
    for index, module in enumerate(plugins):
        try:
            load_plugin(module)
        except ConfigError as error:
            report.add(("plugins", index), str(error))
    return plugins


def normalise(user: Tree) -> None:
    """Write short spellings out: a part given by its name alone, ``train`` as a list of globs."""
    for path in PARTS:
        if isinstance(user.get(path), str) and "${" not in user.get(path):
            user.put(path, {"name": user.get(path)}, user.origins.get(path, ""))
    for key in ("bridge", "inserts"):
        listed = user.get(("model", key))
        for index, part in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(part, str):
                path = ("model", key, index)
                user.put(path, {"name": part}, user.origins.get(path, ""))


def merge(user: Tree, options: Sequence[Option], report: Report) -> tuple[Tree, Arch | None, dict[str, Any]]:
    """Defaults of the arch and corpus files (also given alone, by dotted path), the user's file, the options."""
    tree = Tree()
    arch = find_arch(user, options, report)
    if arch is not None:
        add_arch(tree, arch, user, options, report)
    for section in DATA_SECTIONS:
        entries = user.get((section,), {})
        for name, entry in entries.items():
            if entry is None:
                entries[name] = {}
            add_corpus(tree, user, options, (section, name), report)
    defaults = {f"run.{f.name}": getattr(RunConfig(), f.name) for f in dataclasses.fields(RunConfig)}
    defaults |= {dotted(p): tree.get(p) for p in tree.origins if not isinstance(tree.get(p), dict)}
    tree.merge(user, (), PARTS)
    if isinstance(tree.get(("model",)), dict):
        tree.data["model"].pop("params", None)
    skip = (("model", "arch"), ("model", "model_type"))
    usable = [o for o in options if o.path[0] in SECTIONS and o.path not in skip and _known_dataset(o, tree)]
    apply_options(tree, usable, report, PARTS)
    return tree, arch, defaults


def _known_dataset(option: Option, tree: Tree) -> bool:
    head = option.path[0]
    return head not in DATA_SECTIONS or len(option.path) < 2 or str(option.path[1]) in tree.get((head,), {})


def read_section(
    section: str, data: dict[str, Any], model: ModelConfig | None, report: Report, check: Check
) -> dict[str, DatasetEntry]:
    """Typed entries of one dataset section, by name."""
    entries = {}
    for name, entry in (data.get(section) or {}).items():
        result = read_dataset(name, entry, (section, name), model, report, check)
        if result is not None:
            entries[name] = result
    return entries


def check_run(run: RunConfig, data: dict[str, Any], report: Report) -> None:
    """Check names that the run section refers to: task, runner, schedule, trackers, validation sets."""
    check_name(("task", "benchmark"), run.task, ("run", "task"), report)
    check_name(("runner",), run.runner, ("run", "runner"), report)
    check_name(("scheduler",), run.lr_sched, ("run", "lr_sched"), report)
    if run.benchmark:
        read_options("benchmark", run.task, run.benchmark, ("run", "benchmark"), ("run", "task"), report)
    for index, tracker in enumerate(run.trackers):
        check_name(("tracker",), tracker, ("run", "trackers", index), report)
    known = list(data.get("valid_datasets") or {})
    for index, name in enumerate(run.valid_datasets):
        if name not in known:
            report.unknown(("run", "valid_datasets", index), known, "entry of valid_datasets", name)
    if run.resume_ckpt_path and run.resume not in ("never", run.resume_ckpt_path):
        report.add(("run", "resume_ckpt_path"), f"found {run.resume_ckpt_path!r} and resume {run.resume!r}; give one")
    bare = [n for n, e in (data.get("datasets") or {}).items() if isinstance(e, dict) and not e.get("group")]
    if run.mixing == "joint" and bare:
        report.add(("run", "mixing"), f"found joint, but datasets.{bare[0]}.group is not set; e.g. vision or language")
    for key in ("max_epoch", "accum_grad_iters", "log_freq"):
        if getattr(run, key) < 1:
            report.add(("run", key), f"found {getattr(run, key)}, expected at least 1")


def check_name(kinds: Sequence[str], name: str, path: Path, report: Report) -> None:
    """Report a name that no registry of ``kinds`` knows; shipped ones are recognised without importing them."""
    if any(name in names(kind) for kind in kinds):
        return
    try:
        resolve_any(kinds, name)
    except ConfigError as error:
        report.add(path, str(error))
