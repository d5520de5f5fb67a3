"""Dialogues about images: LLaVA-Instruct's layout, messages with role and content, and their relatives."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlm.common.bounds import Natural
from vlm.common.errors import ConfigError, DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Role, Sample, Video
from vlm.datasets.formats.table.media import sources
from vlm.datasets.formats.table.read import FileType, Record, RowDataset
from vlm.datasets.formats.table.templates import fill, lookup, names
from vlm.datasets.formats.turns import (
    RefusedError,
    Spelling,
    check_order,
    check_refused,
    inline_media,
    read_turns,
    turn_objects,
)
from vlm.datasets.media_columns import Kind, is_missing, media_column
from vlm.processors.placeholders import Medium, attach_media

log = logging.getLogger(__name__)


@register_dataset("conversation_json")
class ConversationJson(RowDataset):
    r"""A list of dialogues; every turn is used, and every answer is trained unless ``trained`` is ``last``.

    Raw record::

        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "No."}]}

    Messages::

        user:      [Image(image_path/000000033471.jpg)] What are the colors of the bus?
        assistant: White and red.
        user:      Is it moving?
        assistant: No.

    Images and videos are in the first column of :data:`vlm.datasets.media_columns.COLUMNS` that has a value (or the one
    that ``fields`` names), else in typed parts of the turns (``{"type": "image", "image": "1.jpg"}``), and may be
    lists. The k-th ``<image>`` is the k-th image; images beyond the placeholders come first, a placeholder without an
    image makes the record unusable. Without any image the dialogue is text only, unless ``image_pattern`` names it.
    Files of any kind that ``table`` reads are read. A record that calls a tool, has an answer that is not to be learned
    (``loss`` or ``weight`` 0) or a value in a column of ``refuse`` cannot be used.
    """

    @dataclass
    class Config:
        """Where the files are and how images are named."""

        ann_path: str | list[str]  # files of dialogues, concatenated
        image_path: str = ""
        image_pattern: str = ""  # e.g. COCO_train2014_{id}.jpg for records without an image field
        records: str = ""  # key of the list, in a JSON object with several
        file_type: FileType = ""  # kind of a file whose name has no known suffix
        first: Natural = 0  # read only this many records; 0: all
        fields: dict[str, str] = field(default_factory=dict)  # our name (image, video, conversations, id): column ...
        # ... and the keys of a turn: role, content
        speakers: dict[str, Role] = field(default_factory=dict)  # name of a speaker: user, assistant or system
        system: str = ""  # template of the system text of dialogues without one, e.g. "{system}"
        refuse: list[str] = field(default_factory=list)  # columns that must be empty
        refused: Literal["quarantine", "drop"] = "quarantine"  # drop: left out and counted at the start
        image_tag: str = ""  # how questions name an image, e.g. <img>{}</img> with the path in place of {}
        image_first: bool = True  # as published: the image comes before the text of its turn
        drop_newlines: bool = False  # as published: newlines in questions are deleted
        first_pair_only: bool = False
        trained: Literal["all", "last"] = "all"  # last: earlier answers are what the last one goes on from, no targets
        overlapping_pairs: bool = False  # as in Multimodal-GPT: see _overlapping
        text_roles: Sequence[str] = ()

        def __post_init__(self) -> None:
            """Raises ConfigError for a tag that does not say where the path is."""
            if self.image_tag and not re.fullmatch(r"[^{}]+\{\}[^{}]+", self.image_tag):
                raise ConfigError("image_tag needs {} between two texts, e.g. <img>{}</img>")

    def __init__(self, config: Config) -> None:
        """Reads the files. Raises DataError if one is missing or malformed, or no record is left."""
        super().__init__(config)
        self._spelling = Spelling(config.fields.get("role", ""), config.fields.get("content", ""), config.speakers)
        self._kept: Sequence[int] = range(len(self._rows))
        if config.refused == "drop":
            self._kept = array("q", filter(self._is_allowed, self._kept))
            log.info("%s: %d of %d records left out", config.ann_path, len(self._rows) - len(self), len(self._rows))
            if not self._kept:
                raise DataError(f"{config.ann_path}: every record is refused", fix="set build_info.refused: quarantine")

    def __len__(self) -> int:
        return len(self._kept)

    def record(self, index: int) -> Record:
        """The raw record, with every field of the file."""
        return self._rows[self._kept[index]][0]

    def __getitem__(self, index: int) -> Sample:
        record, where = self._rows[self._kept[index]]
        found, turns = self._turns(record, where)
        media = self._media(record, found, where)
        if self.config.image_tag:
            turns, named = _untagged(turns, self.config.image_tag)
            media += [Image(s) for s in sources(named, self.config.image_path, where)]
        check_order(turns, where)
        turns = _overlapping(turns) if self.config.overlapping_pairs else turns
        messages = attach_media([self._cleaned(*turn) for turn in turns], media, where, self.config.image_first)
        used = messages[:2] if self.config.first_pair_only else messages
        name = str(record.get(self.config.fields.get("id", "id"), index))
        return Sample(messages=tuple(used), id=name, only_last=self.config.trained == "last")

    def _is_allowed(self, index: int) -> bool:
        """Whether a record may be trained on; one with any other fault stays, for the quarantine."""
        try:
            self._turns(*self._rows[index])
        except RefusedError:
            return False
        except DataError:
            pass
        return True

    def _turns(self, record: Record, where: str) -> tuple[list[Any], list[tuple[Role, str]]]:
        """The turns as the file has them, and as texts."""
        config = self.config
        check_refused(record, config.refuse, where)
        column = config.fields.get("conversations", "conversations")
        found = turn_objects(lookup(column, record, where), where)
        system = fill(config.system, dict.fromkeys(names(config.system)) | record, where)
        return found, read_turns(found, where, self._spelling, system)

    def _media(self, record: Record, turns: Any, where: str) -> list[Medium]:
        """The images, then the videos, of a record."""
        config, result = self.config, list[Medium]()
        kinds: tuple[tuple[Kind, type[Medium], str], ...]
        kinds = (("image", Image, config.image_pattern), ("video", Video, ""))
        for name, kind, pattern in kinds:
            column = config.fields.get(name) or media_column(record, name)
            value = inline_media(turns, name) if column is None else lookup(column, record, where)
            nothing = any(n in record and is_missing(record[n]) for n in (name, *names(pattern)))
            if not value and pattern and not nothing:
                value = fill(pattern, record, where)
            result += [kind(s) for s in sources(value, config.image_path, where)]
        return result

    def _cleaned(self, role: Role, text: str) -> tuple[Role, str]:
        if role != "user":
            return role, text
        return role, (text.replace("\n", "") if self.config.drop_newlines else text).strip()


def _untagged(turns: Sequence[tuple[Role, str]], tag: str) -> tuple[list[tuple[Role, str]], list[str]]:
    """The turns with ``<image>`` in place of every tag of a question, and what the tags name."""
    before, _, after = map(re.escape, tag.partition("{}"))
    pattern, named, result = re.compile(f"{before}(.+?){after}"), list[str](), list[tuple[Role, str]]()
    for role, text in turns:
        if role == "user":
            named += pattern.findall(text)
            text = pattern.sub("<image>", text)
        result.append((role, text))
    return result, named


def _overlapping(turns: Sequence[tuple[Role, str]]) -> list[tuple[Role, str]]:
    """Turn k asks with message k and answers with message k + 1, for half as many turns as there are messages.

    So every second question is an answer of the assistant. Multimodal-GPT's code pairs dialogues this way.
    """
    pairs = zip(turns[: len(turns) // 2], turns[1:])
    return [declared for (_, asked), (_, answer) in pairs for declared in (("user", asked), ("assistant", answer))]  # type: ignore[misc]
