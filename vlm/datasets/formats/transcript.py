"""Text dialogues with speaker labels in the text (the layout of Baize)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.common.bounds import Natural
from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Sample
from vlm.datasets.base import field, message
from vlm.datasets.formats.table.read import FileType, RowDataset


@register_dataset("transcript")
class Transcript(RowDataset):
    r"""A JSON list (or lines) of dialogues; the text before the first label is dropped.

    Raw record::

        {"input": "The conversation ...\n[|Human|] Why?\n[|AI|] So.\n[|Human|] "}

    Messages::

        user:      Why?
        assistant: So.

    A final question without an answer is dropped.
    """

    @dataclass
    class Config:
        """Where the files are, and how speakers are labelled."""

        ann_path: str | list[str]
        records: str = ""  # key of the list, in a JSON object with several
        file_type: FileType = ""  # kind of a file whose name has no known suffix
        first: Natural = 0  # read only this many records; 0: all
        field: str = "input"  # column with the text
        human: str = "[|Human|]"  # spaces after a label belong to it
        assistant: str = "[|AI|]"
        drop_newlines: bool = False  # as Multimodal-GPT does: newlines are deleted, which joins words
        text_roles: Sequence[str] = ()

    def __getitem__(self, index: int) -> Sample:
        record, where = self._rows[index]
        text = str(field(record, self.config.field, where))
        turns = [self._turn(piece, f"{where}: turn {n}") for n, piece in enumerate(self._pieces(text), start=1)]
        if not turns:
            raise DataError(f"{where}: no question with an answer", fix="remove the record")
        pairs = [(message("user", q), message("assistant", a)) for q, a in turns]
        return Sample(messages=tuple(m for pair in pairs for m in pair), id=str(record.get("id", index)))

    def _pieces(self, text: str) -> list[str]:
        """The text after each label of the human; a final piece without an answer is dropped."""
        pieces = _split(text, self.config.human)[1:]
        return pieces[:-1] if pieces and self.config.assistant not in pieces[-1] else pieces

    def _turn(self, piece: str, where: str) -> tuple[str, str]:
        parts = _split(piece, self.config.assistant)
        if len(parts) != 2:
            raise DataError(
                f"{where}: {len(parts) - 1} labels {self.config.assistant!r} after {self.config.human!r}, expected 1",
                fix="remove the record, or set build_info.human and build_info.assistant",
            )
        question, answer = (p.replace("\n", "") if self.config.drop_newlines else p.strip() for p in parts)
        if not question or not answer:
            raise DataError(f"{where}: empty {'answer' if question else 'question'}", fix="remove the record")
        return question, answer


def _split(text: str, label: str) -> list[str]:
    return re.split(re.escape(label) + " *", text)
