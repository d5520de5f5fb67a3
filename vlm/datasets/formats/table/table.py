"""Any table of records: your own data, and most published corpora."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlm.common.bounds import Natural, Seed, Share
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Input, Message, Role, Sample, Video
from vlm.datasets.base import message
from vlm.datasets.formats.table import select
from vlm.datasets.formats.table.media import flipped, missing, sources
from vlm.datasets.formats.table.read import FileType, Record, RecordFile, read_files
from vlm.datasets.formats.table.templates import fill, fill_question, first_name, lookup, names, read_pool
from vlm.datasets.formats.turns import (
    RefusedError,
    check_order,
    check_refused,
    inline_media,
    read_history,
    read_turns,
    turn_objects,
)
from vlm.datasets.media_columns import Kind, is_missing, media_column
from vlm.processors.placeholders import Medium, attach_media, refuse_placeholders

Values = dict[str, Any]
log = logging.getLogger(__name__)


@register_dataset("table")
class Table:
    """Records of JSON, JSON lines, CSV, TSV, Parquet, a folder of images or ``hf://owner/name?split=train``.

    Raw record::

        {"image": "7.png", "question": "What color is the star?", "answer": "red"}

    Messages::

        user:      [Image(image_path/7.png)] What color is the star?
        assistant: red

    ``fields`` renames columns; ``user``, ``input`` and ``assistant`` are templates (see
    :mod:`vlm.datasets.formats.table.templates`), of a list of which one is drawn. Images and videos are in the columns
    that ``fields`` or a pattern names, else in the first of :data:`vlm.datasets.media_columns.COLUMNS` that has a
    value, else in typed parts of ``messages``. A record without any is text only.
    """

    @dataclass
    class Config:
        """Where the records are, what their fields mean, and how a record becomes a sample."""

        ann_path: str | list[str]  # files (names may hold *) or folders, concatenated
        image_path: str = ""  # folder of images and videos
        image_pattern: str | list[str] = ""  # e.g. COCO_train2014_{image_id:012d}.jpg; none if a field is null
        video_pattern: str | list[str] = ""  # name of the video; of a list of patterns the first that fits
        records: str = ""  # key of the list, in a JSON object with several
        file_type: FileType = ""  # kind of a file whose name has no known suffix
        first: Natural = 0  # read only this many records; 0: all
        fields: dict[str, str] = field(default_factory=dict)  # our name (image, question, ...): column
        messages: str = ""  # column with turns {role, content} or {from, value}; replaces the three templates
        system: str = ""  # template of the system text, e.g. "{system}"; left out if empty
        history: str = ""  # column with earlier [question, answer] pairs
        refuse: list[str] = field(default_factory=list)  # columns that must be empty
        refused: Literal["quarantine", "drop"] = "quarantine"  # drop: left out and counted at the start
        user: str | list[str] = "{question}"
        input: str = ""  # material of the question, e.g. "{context}"; left out if empty
        assistant: str | list[str] | None = "{answer}"  # null: questions without answers
        answer_choice: Literal["first", "most_frequent", "random"] = "first"  # when answer is a list
        options: str | list[str] = ""  # choices given as input: a column, or the texts themselves
        options_share: Share = 1.0  # share of samples in which they are given
        pools: dict[str, str | list[str]] = field(default_factory=dict)  # name in templates: texts, or a file of lines
        where: dict[str, Any] = field(default_factory=dict)  # column: value, list of values, or text with *
        explode: list[str] = field(default_factory=list)  # columns with parallel lists: one sample per element
        one_at_random: bool = False  # with explode: one sample per record, its element drawn at each access
        one_per: str = ""  # keep one random record for each value of this template, e.g. "{image}"
        subset: Natural = 0  # keep this many random records; 0: all
        seed: Seed = 42  # of one_per and subset
        join_images: bool = False  # several images side by side as one (as NLVR2 is published)
        flip_share: Share = 0.0  # share of samples whose two images (and the words left, right) are swapped
        missing_images: Literal["quarantine", "drop"] = "quarantine"  # drop: left out and counted at the start
        text_fields: list[str] = field(default_factory=list)  # fields that the text processor cleans, ...
        text_roles: Sequence[str] = ()  # ... and roles whose whole text it cleans

        def __post_init__(self) -> None:
            """Raises ConfigError for options that contradict one another."""
            if self.input and self.options:
                raise ConfigError("input and options both fill the input; set only one")
            if self.one_at_random and not self.explode:
                raise ConfigError("one_at_random needs explode, the columns with parallel lists")
            if [] in (self.user, self.assistant, self.ann_path):
                raise ConfigError("ann_path, user and assistant need at least one text")

    def __init__(self, config: Config) -> None:
        """Reads the files. Raises DataError: missing or malformed files, unknown columns, no record left."""
        self.config = config
        self.clean: Callable[[str], str] | None = None  # text processor, set by the loader
        self._pools = {name: read_pool(pool, name) for name, pool in config.pools.items()}
        self._files = read_files(config.ann_path, config.records, config.file_type, config.first)
        check_columns(config, self._files)
        items = select.kept(self._files, config.where)
        if config.explode and not config.one_at_random:
            items = select.exploded(self._files, items, config.explode)
        if config.refused == "drop":
            items = self._allowed(items)
        if config.missing_images == "drop":
            items = self._with_images(items)
        if config.one_per:
            unreadable = [i for i in items if not select.is_readable(self._files, i)]
            items = [i for i in items if select.is_readable(self._files, i)]
            items = select.one_per(items, lambda i: fill(config.one_per, *self._values(i)), config.seed) + unreadable
        self._items = select.Items(select.subset(items, config.subset, config.seed))
        if not self._items:
            raise DataError(f"table: {config.ann_path}: no sample is left", fix="correct build_info of the dataset")

    def __len__(self) -> int:
        return len(self._items)

    def record(self, index: int) -> Record:
        """The raw record, with every field under its own name and under those of ``fields``."""
        values = self._values(self._items[index])[0]
        return {k: v for k, v in values.items() if k not in self._pools}

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, random.Random(index))

    def draw(self, index: int, rng: random.Random) -> Sample:
        """The sample with its random choices taken from ``rng``.

        Raises DataError: a field is missing, question or answer is empty, or placeholders and images do not match.
        """
        item, config = self._items[index], self.config
        values, where = self._values(item, rng)
        check_refused(values, config.refuse, where)
        media = self._media(values, where)
        if config.flip_share and rng.random() < config.flip_share:
            media, values["question"] = flipped(media, str(lookup("question", values, where)), where)
        if config.join_images and len(media) > 1:  # joined from left to right after each has been processed
            media = [Image(tuple(m.source for m in media))]
        if config.messages:
            turns = read_turns(lookup(config.messages, values, where), where, system=self._system(values, where))
            check_order(turns, where)
            messages = attach_media(turns, media, where, first=False)
        else:
            messages = self._messages(values, media, rng, where)
        name = str(values.get("id", index))
        if "id" in values and item.element is not None:
            name += f".{item.element}"
        return Sample(messages=tuple(messages), id=name)

    def _with_images(self, items: list[select.Item]) -> list[select.Item]:
        """The items whose media all exist."""
        lost = {item: self._missing(item) for item in items}
        result = [item for item in items if not lost[item]]
        name, first = self._files[0].name, next((paths[0] for paths in lost.values() if paths), "")
        if items and not result:
            raise DataError(
                f"table: {name}: the image of every record is missing, the first is {first}",
                fix="correct build_info.image_path or image_pattern",
            )
        if first:
            count = len(items) - len(result)
            log.warning("%s: %d of %d records left out, their image is missing: %s ...", name, count, len(items), first)
        return result

    def _allowed(self, items: list[select.Item]) -> list[select.Item]:
        """The items without a value in ``refuse`` and without calls of tools; the others are counted in the log."""
        result = [item for item in items if not self._is_refused(item)]
        log.info("%s: %d of %d records left out", self._files[0].name, len(items) - len(result), len(items))
        return result

    def _is_refused(self, item: select.Item) -> bool:
        try:
            values, where = self._values(item)
            check_refused(values, self.config.refuse, where)
            if self.config.messages:
                read_turns(lookup(self.config.messages, values, where), where)
        except RefusedError:
            return True
        except DataError:  # reported when the sample is read
            pass
        return False

    def _missing(self, item: select.Item) -> list[str]:
        try:
            return missing(self._media(*self._values(item)))
        except DataError:  # reported when the sample is read
            return []

    def _values(self, item: select.Item, rng: random.Random | None = None) -> tuple[Values, str]:
        """The fields of a sample under their own names and those of ``fields``, and how messages name it."""
        rng, file = rng or random.Random(0), self._files[item.file]
        values, where = {"file": file.name, **file.records[item.row]}, file.where(item.row)
        if self.config.explode:
            element = item.element
            if element is None:
                count = select.length(values, self.config.explode, where)
                if not count:
                    columns = ", ".join(self.config.explode)
                    raise DataError(f"{where}: the lists of {columns} are empty", fix="remove the record")
                element = rng.randrange(count)
            values = select.element_of(values, self.config.explode, element)
        values |= {name: lookup(column, values, where) for name, column in self.config.fields.items()}
        return values | {name: rng.choice(pool) for name, pool in self._pools.items()}, where

    def _media(self, values: Values, where: str) -> list[Medium]:
        config, result = self.config, list[Medium]()
        kinds: tuple[tuple[Kind, str | list[str], type[Medium]], ...] = (
            ("image", config.image_pattern, Image),
            ("video", config.video_pattern, Video),
        )
        for name, pattern, kind in kinds:
            if pattern:
                fit = first_fit(pattern, values)
                nothing = any(n in values and is_missing(values[n]) for n in (name, *names(fit)))
                value: Any = None if nothing else fill(fit, values, where)
            elif name in config.fields:
                value = values[name]
            else:
                column = media_column(values, name)
                value = self._inline(values, name, where) if column is None else values[column]
            result += [kind(s) for s in sources(value, config.image_path, where)]
        return result

    def _inline(self, values: Values, name: str, where: str) -> list[Any]:
        """The images or videos in typed parts of the turns."""
        if not self.config.messages:
            return []
        return inline_media(turn_objects(lookup(self.config.messages, values, where), where), name)

    def _system(self, values: Values, where: str) -> str:
        template = self.config.system
        return fill(template, dict.fromkeys(names(template)) | values, where)

    def _messages(self, values: Values, media: list[Medium], rng: random.Random, where: str) -> list[Message]:
        """Question and answer from the templates."""
        material = self._input(values, rng, where)
        if isinstance(values.get("answer"), list):
            values["answer"] = self._chosen(values["answer"], rng, where)
        if self.clean is not None:
            values |= {f: self.clean(fill(f"{{{f}}}", values, where)) for f in self.config.text_fields}
        values |= {name: fill(values[name], values, where) for name in self._pools}
        asked = fill_question(one_of(self.config.user, rng), values, where)
        if not asked.strip() and not media and not material.strip():
            raise DataError(f"{where}: neither a question nor an image", fix="correct build_info.user")
        system = self._system(values, where)
        turns: list[tuple[Role, str]] = [("system", system)] if system.strip() else []
        past = self.config.history
        turns += read_history(lookup(past, values, where), where) if past and first_name(past) in values else []
        *before, user = attach_media([*turns, ("user", asked)], media, where, first=False)
        refuse_placeholders(material, "the input", where)
        if material.strip():
            user = message("user", *user.parts, Input(material))
        if self.config.assistant is None:
            return [*before, user]
        answer = fill(one_of(self.config.assistant, rng), values, where)
        refuse_placeholders(answer, "an answer", where)
        if not answer.strip():
            raise DataError(f"{where}: the answer is empty", fix="remove the record, or correct build_info.assistant")
        return [*before, user, message("assistant", answer)]

    def _input(self, values: Values, rng: random.Random, where: str) -> str:
        declared = self.config.options
        if not declared:
            return fill(self.config.input, dict.fromkeys(names(self.config.input)) | values, where)
        options = declared if isinstance(declared, list) else lookup(declared, values, where)
        if not isinstance(options, list):
            raise DataError(
                f"{where}: options must be a list, found {type(options).__name__}", fix="correct build_info.options"
            )
        distinct = list(dict.fromkeys(str(option) for option in options if option is not None))
        return ", ".join(distinct) if len(distinct) > 1 and rng.random() < self.config.options_share else ""

    def _chosen(self, answers: list[Any], rng: random.Random, where: str) -> Any:
        answers = [a for a in answers if a is not None]
        if not answers:
            raise DataError(f"{where}: the list of answers is empty", fix="remove the record")
        if any(isinstance(a, dict | list) for a in answers):
            raise DataError(f"{where}: answers must be texts, found {answers[0]!r}", fix="correct build_info.fields")
        if self.config.answer_choice == "random":
            return rng.choice(answers)
        return answers[0] if self.config.answer_choice == "first" else Counter(answers).most_common(1)[0][0]


def one_of(template: str | list[str], rng: random.Random) -> str:
    """The template, or one drawn from a list of them."""
    return template if isinstance(template, str) else rng.choice(template)


def first_fit(pattern: str | list[str], values: Values) -> str:
    """The first of the patterns all of whose fields have a value, else the last."""
    patterns = _listed(pattern)
    return next((p for p in patterns if not any(is_missing(values.get(n)) for n in names(p))), patterns[-1])


def check_columns(config: Table.Config, files: Sequence[RecordFile]) -> None:
    """Raises DataError if options name columns that no record has; warns if no option refers to likely images."""
    columns = set().union(*(f.columns() | select.nested(f, config.explode) for f in files))
    ours = columns | {"file"} | set(config.fields) | set(config.pools)
    patterns = [p for p in (config.image_pattern, config.video_pattern) if p]
    templates = [config.one_per, config.system, *(_listed(p)[-1] for p in patterns if not _fits(p, ours))]
    if not config.messages:
        templates += [*_listed(config.user), *_listed(config.assistant or "")]
    options = config.options if isinstance(config.options, str) else ""
    for key, used, known in (
        ("fields", {c if c in columns else first_name(c) for c in config.fields.values()}, columns),
        ("where", set(config.where), columns),
        ("explode", set(config.explode), columns),
        ("messages", {config.messages} - {""}, ours),
        ("history", {config.history} - {""}, ours),
        ("options", {options} - {""}, ours),
        ("a template", set().union(*map(names, templates)), ours),
    ):
        strange = sorted(used - known)
        if strange:
            hint = "; the first line of a CSV file must name them" if files[0].name.endswith((".csv", ".tsv")) else ""
            raise DataError(
                f"table: {files[0].name}: {key} names {', '.join(map(repr, strange))}, "
                f"but the columns are {', '.join(sorted(map(str, columns)))}{hint}",
                fix="set build_info.fields, user or assistant" if key == "a template" else f"correct build_info.{key}",
            )
    there = dict.fromkeys([*columns, *config.fields], True)
    if patterns or media_column(there, "image") or media_column(there, "video"):
        return
    likely = sorted(c for c in columns if re.search("image|img|picture|photo|video|file_?name", c, re.IGNORECASE))
    if config.image_path or likely:
        log.warning(
            "table: %s: samples are text only, because no field is named image or video; the fields are %s.\n"
            "  fix: set build_info.fields: {image: %s}",
            files[0].name,
            ", ".join(sorted(columns)),
            likely[0] if likely else "COLUMN",
        )


def _fits(pattern: str | list[str], columns: set[str]) -> bool:
    return any(names(p) <= columns for p in _listed(pattern))


def _listed(template: str | list[str]) -> list[str]:
    return [template] if isinstance(template, str) else template
