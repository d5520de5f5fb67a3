"""Dialogues about images in JSON files (the layout of LLaVA-Instruct)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm.common.registry import register_dataset
from vlm.common.types import Image, Role, Sample
from vlm.datasets.base import field
from vlm.datasets.formats.table.media import sources
from vlm.datasets.formats.table.read import RowDataset
from vlm.datasets.formats.table.templates import fill
from vlm.datasets.formats.turns import Medium, attach_media, check_order, read_turns


@register_dataset("conversation_json")
class ConversationJson(RowDataset):
    r"""A list of dialogues; every turn is used.

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

    ``image`` may be a list; the k-th ``<image>`` placeholder is the k-th image. Without placeholders all images come
    first. Without an ``image`` field the dialogue is text only, unless ``image_pattern`` names the image.
    """

    @dataclass
    class Config:
        """Where the files are and how images are named."""

        ann_path: str | list[str]  # files of dialogues, concatenated
        image_path: str = ""
        image_pattern: str = ""  # e.g. COCO_train2014_{id}.jpg for records without an image field
        image_first: bool = True  # as published: the image comes before the text of its turn
        drop_newlines: bool = False  # as published: newlines in questions are deleted
        first_pair_only: bool = False
        overlapping_pairs: bool = False  # as in Multimodal-GPT: see _overlapping
        text_roles: Sequence[str] = ()

    def __getitem__(self, index: int) -> Sample:
        record, where = self._rows[index]
        name = record.get("image")
        if name is None and self.config.image_pattern:
            name = fill(self.config.image_pattern, record, where)
        media: list[Medium] = [Image(s) for s in sources(name, self.config.image_path, where)]
        turns = read_turns(field(record, "conversations", where), where)
        check_order(turns, where)
        turns = _overlapping(turns) if self.config.overlapping_pairs else turns
        messages = attach_media([self._cleaned(*turn) for turn in turns], media, where, self.config.image_first)
        used = messages[:2] if self.config.first_pair_only else messages
        return Sample(messages=tuple(used), id=str(record.get("id", index)))

    def _cleaned(self, role: Role, text: str) -> tuple[Role, str]:
        if role != "user":
            return role, text
        return role, (text.replace("\n", "") if self.config.drop_newlines else text).strip()


def _overlapping(turns: Sequence[tuple[Role, str]]) -> list[tuple[Role, str]]:
    """Turn k asks with message k and answers with message k + 1, for half as many turns as there are messages.

    So every second question is an answer of the assistant. Multimodal-GPT's code pairs dialogues this way.
    """
    pairs = zip(turns[: len(turns) // 2], turns[1:])
    return [declared for (_, asked), (_, answer) in pairs for declared in (("user", asked), ("assistant", answer))]  # type: ignore[misc]
