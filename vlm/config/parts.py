"""From merged plain data to typed parts: the model's composition and the entries of dataset sections."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm.common.bounds import Count, Positive
from vlm.common.errors import ConfigError, UserError
from vlm.common.paths import exists
from vlm.common.registry import config_class, names, resolve
from vlm.config.schema import MISSING, Path, Report, convert, dotted, names_of, read
from vlm.config.tree import plain
from vlm.config.types import (
    COMPOSITION,
    KINDS,
    UNNAMED,
    Check,
    DatasetEntry,
    DatasetOptions,
    ModelConfig,
    Part,
    WeightFile,
)

log = logging.getLogger(__name__)

PATH_OPTIONS = ("storage", "ann_path", "image_path", "data_dir", "path", "root", "folder")
CORPUS_KEYS = ("format", "build_info", "help", *names_of(DatasetOptions))


@dataclass
class VisProcessor:
    """Published options of an image processor; the model's own recipe is what counts, so they must agree."""

    name: str = "blip2_image_eval"
    image_size: Count | None = None
    mean: list[float] | None = None
    std: list[Positive] | None = None
    min_scale: Positive | None = field(default=None, metadata={"help": "no effect, as in the published code"})
    max_scale: Positive | None = field(default=None, metadata={"help": "no effect, as in the published code"})


@dataclass
class TextProcessor:
    """Published options of a caption processor."""

    name: str = "blip_caption"
    prompt: str = ""
    max_words: Count = 50


def read_part(kind: str, data: Any, path: Path, report: Report, default: str = "") -> Part | None:
    """The part named by ``data["name"]`` with its options checked against its class's ``Config``.

    Args:
        kind: of the registry.
        data: the mapping as written; a string is a name alone.
        path: of ``data``.
        report: where problems go.
        default: the name of a mapping without one; empty: it must have one.
    """
    options = {"name": data} if isinstance(data, str) else data
    name = default
    if isinstance(options, dict):
        options = dict(options)
        name = options.pop("name", default)
    if not isinstance(name, str) or not name:
        shipped = ", ".join(names(kind))
        report.add(path, f"found {data!r}, expected a mapping with `name`, the registered {kind} ({shipped})")
        return None
    return read_options(kind, name, options, path, (*path, "name"), report)


def read_options(kind: str, name: str, options: Any, path: Path, name_path: Path, report: Report) -> Part | None:
    """The part ``name`` with ``options`` read as the ``Config`` of its class; None after a problem.

    A registered dataclass without ``Config`` is its own.
    """
    try:
        cls = resolve(kind, name)
    except ConfigError as error:
        report.add(name_path, str(error))
        return None
    options_class = config_class(cls)
    if options_class is not None:
        config = read(options_class, options, path, report)
        return None if config is None else Part(name, config, options)
    for key in options:
        report.unknown((*path, key), [])
    return Part(name, None, options)


def read_model(data: dict[str, Any], params: dict[str, Any], report: Report, check: Check) -> ModelConfig | None:
    """The typed composition; None when a part is missing or unusable (reported)."""
    known = ["arch", "model_type", *params, *COMPOSITION]
    for key in data:
        if key not in known:
            report.unknown(("model", key), known)
    whole = {"fusion": "splice", **{k: {} for k in UNNAMED if k != "video"}}
    whole |= {k: v for k, v in data.items() if k in KINDS and v is not None}
    if "template" not in whole:
        whole |= default_template(whole, report)
    parts: dict[str, Any] = {}
    for key, kind in KINDS.items():
        path: Path = ("model", key)
        if key in EXAMPLES:
            listed = read_list(whole.get(key), path, EXAMPLES[key], report)
            chain = [read_part(kind, p, (*path, i), report) for i, p in enumerate(listed)]
            parts[key] = [p for p in chain if p is not None]
        elif key in whole:
            parts[key] = read_part(kind, whole[key], path, report, UNNAMED.get(key, ""))
        elif key == "llm":
            report.add(path, "missing; expected the llm of the composition")
    train = read_train(data.get("train"), report)
    weights = read_weights(data.get("weights"), report, check)
    if any(parts.get(key) is None for key in (*whole, "llm", "template")):
        return None
    model = ModelConfig(
        **parts, train=train, weights=weights, params=params,
        arch=data.get("arch"), model_type=data.get("model_type"),
    )  # fmt: skip
    check_image_size(model, report)
    check_lengths(model, report)
    if check != "none":
        check_model_files(model, report, check)
    return model


def default_template(data: dict[str, Any], report: Report) -> dict[str, str]:
    """The entry of a composition without a template: its tokenizer's chat template; that there is none is reported.

    Args:
        data: the composition.
        report: where problems go.
    """
    named = [data[key].get(option) for key, option in TOKENIZERS if isinstance(data.get(key), dict)]
    folder = next((name for name in named if isinstance(name, str) and name), None)
    problem = "and neither model.llm.path nor model.text.tokenizer names a tokenizer with a chat template"
    if folder is not None:
        try:
            if resolve("template", CHAT_TEMPLATE).is_in(folder):
                return {"template": CHAT_TEMPLATE}
            problem = f"and the tokenizer in {folder} has no chat template"
        except UserError as error:
            problem = f"and {error}"
    fix = f"name one, e.g. plain, or {CHAT_TEMPLATE} with chat_template"
    report.add(("model", "template"), f"missing, {problem}; {fix}")
    return {}


CHAT_TEMPLATE = "hf_chat"
"""The template that writes a tokenizer's own chat template."""
TOKENIZERS = (("text", "tokenizer"), ("llm", "path"))
"""Options that name the folder of a tokenizer, the first that is set."""
EXAMPLES = {"bridge": "[{name: qformer}, {name: linear}]", "inserts": "[{name: adapter}]"}


def read_list(data: Any, path: Path, example: str, report: Report) -> list[Any]:
    """``data`` if it is a list; null is an empty one, and anything else is reported."""
    if isinstance(data, list):
        return data
    if data is not None:
        report.add(path, f"found {data!r}, expected a list such as {example}")
    return []


def read_train(data: Any, report: Report) -> dict[str, bool]:
    """Globs of parameter names -> whether they train; a plain list means true for each, null takes a glob out."""
    if data is None:
        return {}
    if isinstance(data, list) and all(isinstance(glob, str) for glob in data):
        data = dict.fromkeys(data, True)
    if isinstance(data, dict):
        data = {glob: on for glob, on in data.items() if on is not None}
    fits, globs = convert(dict[str, bool], data, ("model", "train"), report, "globs of parameter names")
    return globs if fits else {}


def read_weights(data: Any, report: Report, check: Check) -> list[WeightFile]:
    """Files to load, in order; entries with an empty path are left out."""
    path: Path = ("model", "weights")
    known = names("checkpoint_format")
    files = []
    for index, entry in enumerate(read_list(data, path, "[{format: hf_llm, path: ..., into: llm}]", report)):
        file = read(WeightFile, entry, (*path, index), report)
        if file is None:
            continue
        if file.format not in [*known, "random"]:
            check_registered("checkpoint_format", file.format, [*known, "random"], (*path, index, "format"), report)
        if file.path and check != "none":
            check_exists(file.path, (*path, index, "path"), report)
        files.append(file)
    return [f for f in files if f.path or f.format == "random"]


def check_registered(kind: str, name: str, known: list[str], path: Path, report: Report) -> None:
    """Report a name that is neither among the ``known`` ones of a kind nor a dotted path to one."""
    if ":" not in name:
        report.unknown(path, known, {"checkpoint_format": "weight format"}.get(kind, kind), name)
        return
    try:
        resolve(kind, name)
    except ConfigError as error:
        report.add(path, str(error))


def check_exists(name: str, path: Path, report: Report) -> None:
    """Report a file or folder that is not there."""
    if name not in report.coming and not exists(name):
        report.add(path, f"found {name!r}, but there is no such file or folder{report.about(path)}")


def check_model_files(model: ModelConfig, report: Report, check: Check) -> None:
    """Files that parts name themselves: the LLM's folder, the tokenizers', the prompt pool."""
    named = [("llm", "path"), ("text", "tokenizer"), *([("template", "prompt_path")] if check == "all" else [])]
    for key, option in named:
        file = getattr(model, key).get(option)
        if (key, file) == ("llm", ""):
            report.add(("model", key, option), f"must be set{report.about(('model', key, option))}")
        if file:
            check_exists(file, ("model", key, option), report)
    for index, part in enumerate(model.bridge):
        reads = part.get("reads_text")
        if reads is not None and reads.tokenizer:
            check_exists(reads.tokenizer, ("model", "bridge", index, "reads_text", "tokenizer"), report)


def check_image_size(model: ModelConfig, report: Report) -> None:
    """The encoder's and the recipe's sizes must agree; so must the levels, where the encoder states any."""
    for theirs, ours in (("size", "image_size"), ("mean", "mean"), ("std", "std")):
        expected, found = model.vision.get(ours) if model.vision else None, model.image.get(theirs)
        if None not in (expected, found) and plain_levels(expected) != plain_levels(found):
            report.add(("model", "image", theirs), f"found {found}, but vision.{ours} is {expected}")


def plain_levels(value: Any) -> Any:
    """A number as it is, several as a list, whatever kind of sequence they came in."""
    return value if isinstance(value, int) else list(value)


def check_lengths(model: ModelConfig, report: Report) -> None:
    """Lengths of an answer that are both written must agree."""
    written, least = model.generation.raw, model.generation.get("min_length")
    for key in ("max_new_tokens", "max_length") if "min_length" in written else ():
        most = model.generation.get(key)
        if key in written and least - 1 > most:
            report.add(("model", "generation", "min_length"), f"found {least}, but {key} is {most}")


def read_dataset(
    name: str,
    data: Any,
    path: Path,
    model: ModelConfig | None,
    report: Report,
    check: Check,
    defaults: Mapping[str, Any] | None = None,
) -> DatasetEntry | None:
    """One typed entry; None after a problem that leaves nothing to build.

    ``defaults`` are the run's values of options that the entry does not name; None stands for none.
    """
    if not isinstance(data, dict):
        report.add(path, f"found {data!r}, expected a mapping with keys {', '.join(CORPUS_KEYS)}")
        return None
    for key in data:
        if key not in CORPUS_KEYS:
            report.unknown((*path, key), CORPUS_KEYS)
    if "format" not in data:
        return None
    help_ = data.get("help")
    build_info = data.get("build_info") or {}
    unset = [k for k, v in build_info.items() if v == MISSING] if isinstance(build_info, dict) else []
    for key in unset if check == "all" else []:
        report.add((*path, "build_info", key), "must be set" + (f": {help_}" if help_ else ""))
    report.broken |= {(*path, "build_info", key) for key in unset}
    places = ((*path, "build_info"), (*path, "format"))
    part = read_options("dataset", str(data["format"]), build_info, *places, report)
    written = {k: data[k] for k in names_of(DatasetOptions) if k in data}
    written |= {k: v for k, v in (defaults or {}).items() if v is not None and k not in written}
    for key in ("text_processor", "vis_processor"):
        written[key] = written[key] if isinstance(written.get(key), dict) else {}
    options = read(DatasetOptions, written, path, report)
    read_processors(TextProcessor, data.get("text_processor"), (*path, "text_processor"), report)
    images = read_processors(VisProcessor, data.get("vis_processor"), (*path, "vis_processor"), report)
    check_recipe(images, (*path, "vis_processor"), model, report)
    if unset or part is None or options is None:
        return None
    if check == "all":
        report.helps |= {(*path, "build_info", key): str(help_) for key in build_info if help_}
        check_data_files(part, (*path, "build_info"), report)
    return DatasetEntry(name, part, **vars(options))


def read_processors(cls: Any, data: Any, path: Path, report: Report) -> dict[str, Any]:
    """``{train: {...}, eval: {...}}`` checked."""
    result = {}
    known = names("processor")
    if data is not None and not isinstance(data, dict):
        report.add(path, f"found {data!r}, expected a mapping with keys train, eval")
    for split, options in data.items() if isinstance(data, dict) else ():
        if split not in ("train", "eval"):
            report.unknown((*path, split), ["train", "eval"])
        elif (processor := read(cls, options, (*path, split), report)) is not None:
            result[split] = processor
            if processor.name not in known:
                check_registered("processor", processor.name, known, (*path, split, "name"), report)
    return result


def check_recipe(images: dict[str, Any], path: Path, model: ModelConfig | None, report: Report) -> None:
    """An image processor may repeat the model's image recipe; another size is named and not used.

    Another mean or standard deviation is an error: the published code would compute other numbers.
    """
    if model is None:
        return
    for split, options in images.items():
        for key in ("mean", "std"):
            declared, needed = getattr(options, key), plain(model.image.get(key))
            if declared is not None and needed is not None and declared != needed:
                report.add((*path, split, key), f"found {declared}, but the model's image recipe has {needed}")
        size = model.image.get("size")
        if None not in (size, options.image_size) and options.image_size != size:
            text = "%s.image_size is %d, but the model's images have %d pixels: %d is used"
            log.warning(text, dotted((*path, split)), options.image_size, size, size)


def check_data_files(part: Part, path: Path, report: Report) -> None:
    """Report files and folders named by the options of a dataset format that are not there."""
    for key in PATH_OPTIONS:
        declared = part.get(key)
        for name in declared if isinstance(declared, list) else [declared]:
            if isinstance(name, str) and name and not set(name) & set("{*?|") and not name.startswith("hf://"):
                check_exists(name.removeprefix("file:"), (*path, key), report)
