"""The steps from files and options to a :class:`Config`; :func:`load_config` is the entry."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from vlm.common.errors import ConfigError
from vlm.common.paths import expand_home
from vlm.common.registry import is_known_module, load_plugin, names, resolve_any
from vlm.common.trust import is_given, refused, trusting, was_trained_here
from vlm.config.composition import Arch, add_arch, add_corpus, find_arch, read_params
from vlm.config.interpolation import interpolate
from vlm.config.options import Option, apply_options, parse_options
from vlm.config.parts import read_dataset, read_model, read_options
from vlm.config.renamed import flatten_build_info, option_path, rename_keys
from vlm.config.run import RunConfig
from vlm.config.schema import SHOWN, Path, Report, describe, dotted, names_of, read
from vlm.config.shipped import find, is_composition, label
from vlm.config.stored import DATA_SECTIONS, store
from vlm.config.tree import Tree, parse_file, plain, texts_in
from vlm.config.types import PARTS, Check, Config, DatasetEntry, EvaluationFiles, ModelConfig
from vlm.config.without_effect import declared, take_out, tell

log = logging.getLogger(__name__)

SECTIONS = ("model", *DATA_SECTIONS, "run", "plugins")
STORED = "config.yaml"
"""The resolved configuration inside a run folder."""


def load_config(
    cfg: str | FilePath | Mapping[str, Any] | Tree,
    options: Sequence[str] | Sequence[Option] = (),
    *,
    check: Check = "weights",
    train: bool = False,
    trust: bool = False,
    coming: Collection[str] = (),
) -> Config:
    """Read, merge, interpolate and check a configuration.

    Args:
        cfg: a YAML file, a run folder, ``system/name`` of what ships (``"tiny/eval"``), or the ``resolved``
            mapping of a stored configuration, or a tree that was read already (it is changed).
        options: ``--options`` in either spelling.
        check: which named files must exist: those of the model ("weights"), datasets too ("all"), no file ("none"),
            or what the file is for decides ("needed"): datasets too if it trains or evaluates. Unless datasets are
            checked, entries whose build_info is not set yet are left out.
        train: whether ``system/name`` means a file to train with first, or one to evaluate or chat with.
        trust: whether it may import modules, name ``pipe:`` commands and read the environment; a run folder that this
            user trained on this machine always may (see :mod:`vlm.common.trust`).
        coming: files and folders that count as there, since another run will have made them by then.

    Raises:
        ConfigError: all problems, each with dotted path, file:line, what was found and what is allowed.
    """
    with trusting(trust or _was_trained_here(cfg)):
        return _load(cfg, options, check, train, coming)


def _was_trained_here(cfg: Any) -> bool:
    if not isinstance(cfg, str | FilePath) or not str(cfg):
        return False
    path = FilePath(cfg).expanduser()
    return was_trained_here(path / STORED if path.is_dir() else path)


def _load(
    cfg: str | FilePath | Mapping[str, Any] | Tree,
    options: Sequence[str] | Sequence[Option],
    check: Check,
    train: bool,
    coming: Collection[str],
) -> Config:
    user, title = read_source(cfg, train)
    rename_keys(user)
    value = [dataclasses.replace(o, path=option_path(o.path)) for o in parse_options(options)]
    no_effect, value = take_out(user, value)
    no_effect |= flatten_build_info(user)
    origins = user.origins | {o.path: o.place for o in value}
    report = Report(origins, {o.path: o.text for o in value if o.text is not None}, coming=coming)
    usable = check_sections(user, value, report)
    plugins = load_plugins(user, report)
    normalise(user)
    tree, arch, defaults = merge(user, usable, report)
    if len(report.problems) > SHOWN:  # not a configuration at all; reading it to the end could take long
        report.raise_if_any(title)
    report.origins, report.texts = report.origins | tree.origins, tree.texts
    params = read_params(tree, arch, report) if arch else {}
    helps = {name: p.help for name, p in arch.params.items()} if arch else {}
    data = expand_home(interpolate(tree.data, params, helps, report))
    check_commands(data, report)
    params = {name: data["model"][name] for name in params}
    report.helps = {("model", name): text for name, text in helps.items()}
    if check == "needed":
        check = "all" if uses_data(data) else "weights"
    model = read_model(data.get("model", {}), params, report, check) if arch else None
    run = read(RunConfig, data.get("run") or {}, ("run",), report) or RunConfig()
    check_run(run, data, report)
    files = read_evaluation_files(data, report)
    sections = {s: read_section(s, data, model, run, report, check) for s in DATA_SECTIONS}
    ratios = [entry.sample_ratio for entry in sections["datasets"].values()]
    if ratios and not any(ratio is None or ratio > 0 for ratio in ratios):
        report.add(("datasets",), "every sample_ratio is 0, so that no dataset is left to draw from")
    report.raise_if_any(title)
    no_effect |= declared(user, value, arch)
    no_effect |= {
        f"evaluation_datasets.{n}.save_path": "see run.save_path" for n, own in files.items() if own.save_path
    }
    tell(no_effect, title)
    assert model is not None
    places = {dotted(p): report.where(p) for p in tree.origins if p}
    config = Config(model, sections["datasets"], run, plugins=plugins, origins=places, defaults=defaults)
    config.valid_datasets, config.evaluation_datasets = sections["valid_datasets"], sections["evaluation_datasets"]
    config.evaluation_files, config.no_effect = files, no_effect
    config.resolved = store(config, tree, arch, data)
    return config


def uses_data(data: dict[str, Any]) -> bool:
    """Whether a configuration trains (it says how long) or evaluates; otherwise it is for chat."""
    section = "evaluation_datasets"
    questions = any(not is_published(section, entry) for entry in (data.get(section) or {}).values())
    return bool(questions or set(data.get("run") or {}) & {"max_epoch", "max_steps"})


def read_source(cfg: str | FilePath | Mapping[str, Any] | Tree, train: bool = False) -> tuple[Tree, str]:
    """The user's tree and its name in messages; see :func:`load_config`.

    Raises:
        ConfigError: nothing of the kind, or not a YAML mapping.
    """
    if isinstance(cfg, Tree):
        return cfg, cfg.origins.get((), "configuration")
    if isinstance(cfg, Mapping):
        return Tree(plain(cfg), {(): "stored configuration"}), "stored configuration"
    if not isinstance(cfg, str | FilePath):
        raise ConfigError(f"found {cfg!r:.80} in place of a configuration", fix="name a YAML file or a run folder")
    path = FilePath(cfg).expanduser()
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


def check_sections(user: Tree, options: Sequence[Option], report: Report) -> list[Option]:
    """Report unknown or unusable top-level sections and options for unknown datasets; returns the other options."""
    usable = []
    for key, value in user.data.items():
        if key not in SECTIONS:
            report.unknown((key,), SECTIONS, "section")
        elif key != "plugins" and value is not None and not isinstance(value, dict):
            report.add((key,), f"found {value!r}, expected a mapping")
            user.data[key] = {}
        elif value is None:
            user.data[key] = [] if key == "plugins" else {}
    for option in options:
        section, *rest = map(str, option.path)
        if section not in SECTIONS:
            report.unknown(option.path, SECTIONS, "section", section)
        elif section in DATA_SECTIONS and rest and rest[0] not in user.get((section,), {}):
            report.unknown(option.path, list(user.get((section,), {})), "dataset", rest[0])
        elif section == "plugins":
            report.add(option.path, "cannot be changed by an option; write vlm --plugin MODULE COMMAND")
        elif not rest and not isinstance(option.value, dict):
            report.add(option.path, f"found {describe(option.value)}, expected a mapping")
        else:
            usable.append(option)
    if not user.data.get("model") and not any(o.path[0] == "model" for o in options):
        report.add(("model",), "missing; expected arch and model_type, or a composition")
    return usable


def load_plugins(user: Tree, report: Report) -> list[str]:
    """Import the modules listed under ``plugins``, so that their decorators run."""
    plugins = user.get(("plugins",), [])
    if not isinstance(plugins, list) or not all(isinstance(p, str) and p for p in plugins):
        report.add(("plugins",), f"found {plugins!r}, expected a list of module names")
        return []
    import_plugins(plugins, report)
    return plugins


def import_plugins(modules: Sequence[str], report: Report) -> None:
    """Import modules that a file lists under ``plugins``; one that is not there, or needs trust, is reported."""
    for index, module in enumerate(modules):
        try:
            if not is_known_module(module) and not is_given():
                raise refused(f"plugins: {module!r:.60}", "import that module")
            load_plugin(module)
        except ConfigError as error:
            report.add(("plugins", index), str(error))


def check_commands(data: dict[str, Any], report: Report) -> None:
    """Report storages of datasets that run a command, unless the configuration is trusted."""
    for section in () if is_given() else DATA_SECTIONS:
        for path, text in texts_in(data.get(section), (section,)):
            if text.lstrip().lower().startswith("pipe:"):
                report.add(path, str(refused(f"{text!r:.80}", "run a shell command")))


def normalise(user: Tree) -> None:
    """Write out the parts that are given by their name alone."""
    lists = {("model", key): user.get(("model", key)) for key in ("bridge", "inserts")}
    items = [(*path, i) for path, listed in lists.items() if isinstance(listed, list) for i in range(len(listed))]
    for path in [*PARTS, *items]:
        name = user.get(path)
        if isinstance(name, str) and (path not in PARTS or "${" not in name):
            user.put(path, {"name": name}, user.origins.get(path, ""))


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
            if is_published(section, entry):
                continue
            add_corpus(tree, user, options, (section, name), report)
    defaults = {f"run.{f.name}": getattr(RunConfig(), f.name) for f in dataclasses.fields(RunConfig)}
    defaults |= {dotted(p): tree.get(p) for p in tree.origins if not isinstance(tree.get(p), dict)}
    tree.merge(user, (), PARTS)
    if isinstance(tree.get(("model",)), dict):
        tree.data["model"].pop("params", None)
    applied = [o for o in options if o.path not in (("model", "arch"), ("model", "model_type"))]
    apply_options(tree, applied, report, PARTS)
    return tree, arch, defaults


def read_section(
    section: str, data: dict[str, Any], model: ModelConfig | None, run: RunConfig, report: Report, check: Check
) -> dict[str, DatasetEntry]:
    """Typed entries of one dataset section, by name; those of a published evaluation are left out."""
    written = {n: entry for n, entry in (data.get(section) or {}).items() if not is_published(section, entry)}
    defaults: dict[str, Any] = {"batch_size": run.batch_size_train if section == "datasets" else run.batch_size_eval}
    defaults["max_new_tokens"] = run.max_new_tokens
    entries = {n: read_dataset(n, entry, (section, n), model, report, check, defaults) for n, entry in written.items()}
    return {name: entry for name, entry in entries.items() if entry is not None}


def is_published(section: str, entry: Any) -> bool:
    """Whether an entry names the files of a benchmark in the published spelling."""
    return section == "evaluation_datasets" and isinstance(entry, dict) and "eval_file_path" in entry


def read_evaluation_files(data: dict[str, Any], report: Report) -> dict[str, EvaluationFiles]:
    """The entries of ``evaluation_datasets`` that name files of a benchmark; other keys are its options."""
    section, own = "evaluation_datasets", [n for n in names_of(EvaluationFiles) if n != "options"]
    found = {}
    for name, entry in (data.get(section) or {}).items():
        if is_published(section, entry):
            place, benchmark = (section, name), str(entry.get("benchmark") or name)
            more = {k: v for k, v in entry.items() if k not in own}
            if benchmark in names("benchmark") or entry.get("benchmark"):
                read_options("benchmark", benchmark, more, place, (*place, "benchmark"), report)
                more, entry = {}, {k: v for k, v in entry.items() if k in own} | {"options": more}
            files = read(EvaluationFiles, entry | more, place, report)
            found[name] = files
    return {name: files for name, files in found.items() if files is not None}


def check_run(run: RunConfig, data: dict[str, Any], report: Report) -> None:
    """Check names that the run section refers to: task, runner, schedule, trackers, validation sets."""
    check_name(("task", "benchmark"), run.task, ("run", "task"), report)
    check_file_names(run, data, report)
    check_name(("runner",), run.runner, ("run", "runner"), report)
    check_name(("scheduler",), run.lr_sched, ("run", "lr_sched"), report)
    check_name(("optimizer",), run.optimizer, ("run", "optimizer"), report)
    if run.benchmark:
        asked = run.task if run.task not in names("task") else "question_answering"  # as vlm eval scores such a run
        read_options("benchmark", asked, run.benchmark, ("run", "benchmark"), ("run", "task"), report)
    for index, tracker in enumerate(run.trackers):
        check_name(("tracker",), tracker, ("run", "trackers", index), report)
    known = list(data.get("valid_datasets") or {})
    for index, name in enumerate(run.valid_datasets):
        if name not in known:
            report.unknown(("run", "valid_datasets", index), known, "entry of valid_datasets", name)
    known = list(data.get("evaluation_datasets") or {})
    for index, entry in enumerate(run.eval):
        if entry.dataset not in known:
            report.unknown(("run", "eval", index, "dataset"), known, "entry of evaluation_datasets", entry.dataset)
    named = [entry.dataset for entry in run.eval]
    if run.best != "loss" and run.best.lstrip("-").partition("/")[0] not in named:
        report.unknown(("run", "best"), ["loss", *(f"{name}/METRIC" for name in named)], "value", run.best)
    if run.resume_ckpt_path and run.resume not in ("never", run.resume_ckpt_path):
        report.add(("run", "resume_ckpt_path"), f"found {run.resume_ckpt_path!r} and resume {run.resume!r}; give one")
    if run.total_steps is not None and run.warmup_steps > run.total_steps:
        text = "run.warmup_steps is %d, but the run has %d steps: the learning rate never reaches run.init_lr"
        log.warning(text, run.warmup_steps, run.total_steps)
    bare = [n for n, e in (data.get("datasets") or {}).items() if isinstance(e, dict) and not e.get("group")]
    if run.mixing == "joint" and bare:
        report.add(("run", "mixing"), f"found joint, but datasets.{bare[0]}.group is not set; e.g. vision or language")


def check_file_names(run: RunConfig, data: dict[str, Any], report: Report) -> None:
    """Report names that become files or folders and would lead out of the folder that the user chose."""
    named = [(("run", "name"), run.name or "")]
    named += [((section, name), str(name)) for section in DATA_SECTIONS for name in data.get(section) or {}]
    for path, name in named:
        if FilePath(name).is_absolute() or ".." in name.replace("\\", "/").split("/"):
            report.add(path, f"found {name!r:.80}, expected a name that leads out of no folder")


def check_name(kinds: Sequence[str], name: str, path: Path, report: Report) -> None:
    """Report a name that no registry of ``kinds`` knows; shipped ones are recognised without importing them."""
    if any(name in names(kind) for kind in kinds):
        return
    try:
        resolve_any(kinds, name)
    except ConfigError as error:
        report.add(path, str(error))
