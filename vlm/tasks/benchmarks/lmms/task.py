"""A task file of lmms-eval, read and scored by lmms-eval's own classes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lmms_eval import utils
from lmms_eval.api import task as lmms_task
from lmms_eval.api.instance import Instance
from lmms_eval.api.metrics import mean
from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask

from vlm.common.errors import ConfigError, DataError
from vlm.common.trust import is_given, refused
from vlm.common.types import Message
from vlm.datasets.base import MALFORMED
from vlm.tasks.benchmarks.lmms.requests import messages_of

lmms_task.eval_logger.disable("lmms_eval.caching")  # notes for its developers
KINDS = ("generate_until", "multiple_choice")
BUILDERS = ("json", "csv", "parquet", "text", "pandas", "arrow", "imagefolder")
"""What ``dataset_path`` may name without trust: readers of local files."""
FIELD = re.compile(r"\{\{\s*\w+\s*\}\}")
FAULTS = (
    *MALFORMED,
    AssertionError,
    ImportError,
    TemplateError,
    utils.yaml.YAMLError,
    lmms_task.datasets.exceptions.DatasetsError,
)
"""What lmms-eval and the functions of a task raise on a file or a document of another shape."""
PLAIN = (str, int, float, bool, type(None))


class LocalTask(ConfigurableMessagesTask):  # type: ignore[misc]
    """A task whose data are read once: lmms-eval tries five times, and hides why it failed."""

    def download(self, dataset_kwargs: Any = None) -> None:
        """Read the data."""
        inspect.unwrap(ConfigurableTask.download)(self, dataset_kwargs)


@dataclass(frozen=True)
class Number:
    """One metric of a task.

    Attributes:
        label: its name, with the filter's where the task has several.
        value: what the task's aggregation makes of ``values``.
        values: of each scored document, by its place; whatever the task returns.
        is_mean: whether the aggregation is the mean.
    """

    label: str
    value: float | None
    values: Mapping[int, Any]
    is_mean: bool


class TaskFile:
    """An opened task file.

    Attributes:
        path: of the file.
        folder: where relative paths of images and videos start if they do not exist as they are.
        task: lmms-eval's object.
        config: its ``TaskConfig``.
    """

    def __init__(self, path: str, media: str = "") -> None:
        """Raises UserError: not a task file, one that needs trust, or data that cannot be read."""
        self.path = Path(path)
        self.folder = Path(media) if media else self.path.parent
        self.task = LocalTask(config=_config(self.path), model_name="vlm")
        self.config = self.task.config
        self.docs = self.task.eval_docs

    @classmethod
    def open(cls, path: str, media: str = "") -> TaskFile:
        """As the constructor, with what lmms-eval and datasets raise as one message. Raises UserError."""
        try:
            return cls(path, media)
        except FAULTS as error:
            reason = str(error).strip().partition("\n")[0] or "its functions do not fit its data"
            raise DataError(
                f"{path}: lmms-eval cannot open this task ({type(error).__name__}: {reason})",
                fix="see dataset_path, dataset_kwargs and the functions in the file",
            ) from error

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def name(self) -> str:
        """What the task calls itself."""
        return str(self.config.task or self.path.stem)

    @property
    def split(self) -> str:
        """Of the data."""
        return str(self.config.test_split or self.config.validation_split)

    @property
    def is_choice(self) -> bool:
        """Whether the options' likelihoods are compared."""
        return bool(self.config.output_type == "multiple_choice")

    @property
    def repeats(self) -> int:
        """How many answers each question gets."""
        return int(self.config.repeats or 1)

    def messages(self, index: int) -> list[Message]:
        """What is asked about a document. Raises DataError: the task's functions fail on it."""
        doc = self.docs[index]
        with _one_message(f"document {index}"):
            if self.is_choice:
                turns = self.task._build_user_turn(self.task.doc_to_visual(doc), self.context(index))
            else:
                turns = self.task.doc_to_messages(doc)
            return messages_of(turns, self.folder)

    def context(self, index: int) -> str:
        """The text of a document after the task's description and examples."""
        doc = self.task.eval_docs_no_media[index]
        return str(self.task.fewshot_context(doc, self.config.num_fewshot or 0))

    def choices(self, index: int) -> list[str]:
        """The options of a document. Raises DataError: the task's functions fail on it."""
        with _one_message(f"document {index}"):
            found = list(map(str, self.task.doc_to_choice(self.docs[index])))
        if not found:
            raise DataError(f"document {index}: no options")
        return found

    def fields(self, index: int) -> dict[str, Any]:
        """The fields of a document that are text, numbers or lists of these."""
        doc = self.task.eval_docs_no_media[index]
        return {k: v for k, v in doc.items() if isinstance(v, PLAIN) or _is_plain_list(v)}

    def target(self, index: int) -> str:
        """The reference answer, in words."""
        doc = self.task.eval_docs_no_media[index]
        with _one_message(f"document {index}"):
            found = self.task.doc_to_target(doc) if self.config.doc_to_target is not None else ""
            if self.config.doc_to_choice is not None and isinstance(found, int):
                found = self.choices(index)[found]
        return ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)

    def score(self, answers: Mapping[int, Sequence[Any]]) -> list[Number]:
        """The task's metrics.

        Args:
            answers: document -> the texts of its repeats; for multiple choice the pairs of its options.

        Raises DataError: the task's functions fail.
        """
        instances = {index: self._instances(index, own) for index, own in answers.items()}
        self.task._instances = [instance for own in instances.values() for instance in own]
        self.task.apply_filters()
        names = [ensemble.name for ensemble in self.task._filters]
        result = []
        for name in names:
            rows: dict[str, dict[int, Any]] = {}
            for index, own in instances.items():
                for metric, value in self._results(index, [self._read(i.filtered_resps[name]) for i in own]).items():
                    rows.setdefault(metric, {})[index] = value
            known = self.task.aggregation()
            for metric, values in rows.items():
                if metric in known:
                    label = metric if len(names) == 1 else f"{metric}, {name}"
                    result.append(_number(label, values, known[metric]))
        return result

    def _instances(self, index: int, answers: Sequence[Any]) -> list[Any]:
        made = {"task": self.config.task, "doc_id": index, "repeats": self.repeats}
        each = [[pair] for pair in answers] if self.is_choice else [list(answers)]
        kind = "loglikelihood" if self.is_choice else self.config.output_type
        return [Instance(kind, (), k, dict(made), resps=resps) for k, resps in enumerate(each)]

    def _read(self, answer: Any) -> Any:
        tags = parse_reasoning_tags_config(task_value=self.config.reasoning_tags)
        return strip_reasoning_tags(answer, tags) if tags is not None and isinstance(answer, str) else answer

    def _results(self, index: int, answers: list[Any]) -> Mapping[str, Any]:
        """One attempt: lmms-eval makes five, seconds apart, with functions that fail again."""
        with _one_message(f"{self.path}: scoring document {index}"):
            found: Mapping[str, Any] = inspect.unwrap(type(self.task).process_results)(
                self.task, self.task.eval_docs_no_media[index], answers
            )
        return found

    def digest(self) -> str:
        """SHA-256 of the file and of the documents without media."""
        result = hashlib.sha256(self.path.read_bytes())
        for doc in self.task.eval_docs_no_media:
            result.update(repr(sorted(doc.items())).encode("utf-8", "surrogatepass"))
        return result.hexdigest()


@contextlib.contextmanager
def _one_message(where: str) -> Iterator[None]:
    """Within, what a task's functions raise about a document of another shape is a DataError that says where."""
    try:
        yield
    except FAULTS as error:
        raise DataError(f"{where}: {type(error).__name__}: {error}", fix="see the functions of the task") from error


def _number(label: str, values: Mapping[int, Any], aggregate: Callable[..., Any]) -> Number:
    items = list(values.values())
    with _one_message(f"the aggregation of {label}"):
        more = {"args": None} if "args" in inspect.signature(aggregate).parameters else {}
        value = aggregate(items, **more)
    plain = all(isinstance(item, int | float) for item in items)
    number = float(value) if isinstance(value, int | float) else None
    return Number(label, number, values, aggregate is mean and plain)


def _config(path: Path) -> dict[str, Any]:
    """What the file says, with its functions if it may have them. Raises UserError."""
    found = utils.load_yaml_config(str(path), mode="simple")
    if not isinstance(found, dict) or "task" not in found:
        raise DataError(f"{path}: no task of lmms-eval in it (a key task)", fix="give the YAML file of one task")
    if not isinstance(found["task"], str) or "class" in found:
        what = "a class of Python" if "class" in found else "a group of tasks"
        raise ConfigError(f"{path}: {what}, not one task", fix="lmms-eval --model vlm runs it")
    kind = found.get("output_type", "generate_until")
    if kind not in KINDS:
        raise ConfigError(f"{path}: output_type is {kind}, read are {' and '.join(KINDS)}")
    _check_trust(path, found)
    return dict(utils.load_yaml_config(str(path), mode="full"))


def _check_trust(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigError: a file that runs code, and nobody said that it may."""
    if is_given():
        return
    for where, value in _leaves(config):
        if not isinstance(value, PLAIN):
            raise refused(f"{path}: {where}: !function {value.value}", "run the Python code that it names")
        if isinstance(value, str) and ("{%" in value or "{{" in FIELD.sub("", value)):
            raise refused(f"{path}: {where}: the template {value:.60}", "compute more than a field")
    source = config.get("dataset_path")
    if source not in BUILDERS:
        raise refused(f"{path}: dataset_path: {source}", "load data from elsewhere (known readers: json, csv, parquet)")


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, where)
    else:
        yield where, value


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, PLAIN) for item in value)
