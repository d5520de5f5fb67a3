"""Rows of token ids in the exact layouts of training and chat, with a written note where the image stands.

The image block has ``NOTE_WORDS`` positions. In text the note's tokens stand there; in alignment the
projected queries do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from foundations.tokenizer import Words
from vlm.datasets.synthetic.language import (
    INSTRUCTIONS,
    NOTE_WORDS,
    QUESTION_TYPES,
    Question,
    ask,
    caption,
    dialogue,
    note,
)
from vlm.datasets.synthetic.scene import COLORS, KINDS, SPLITS, Scene, random_scene

IGNORE = -100
OPEN, CLOSE = "###Human: <Img>", "</Img> "
BOS = 1
TYPES = (*QUESTION_TYPES, "exist", "bind", "exist", "bind")
"""The yes-no types come more often: they are learnt last."""


@dataclass
class Row:
    """Ids, which of them are trained, and where the image block starts (-1: none)."""

    ids: list[int] = field(default_factory=lambda: [BOS])
    trained: list[bool] = field(default_factory=lambda: [False])
    image: int = -1

    def add(self, ids: tuple[int, ...] | list[int], trained: bool = False) -> Row:
        """Append a segment."""
        self.ids += ids
        self.trained += [trained] * len(ids)
        return self

    def add_image(self, ids: tuple[int, ...]) -> Row:
        """Append the image block."""
        self.image = len(self.ids)
        return self.add(ids)


def stage1_row(words: Words, block: tuple[int, ...], text: str) -> Row:
    """``<s>`` image caption newline."""
    return Row().add_image(block).add(words.encode(text + "\n"), True)


def open_row(words: Words, block: tuple[int, ...] | None, question: str, gap: str = "") -> Row:
    """First turn up to the answer. ``block`` None leaves the image out: ``<Img></Img>``.

    ``gap`` is what stands between the question and ``###``: a space in the published training prompt.
    """
    after = f"{CLOSE}{question}{gap}###Assistant: "
    if block is None:
        return Row().add(words.encode(OPEN + after))
    return Row().add(words.encode(OPEN)).add_image(block).add(words.encode(after))


def training_row(words: Words, block: tuple[int, ...] | None, turns: list[Question], gap: str = "") -> Row:
    """A dialogue as it is trained: every answer is a segment of its own."""
    row = open_row(words, block, turns[0].text, gap)
    for number, turn in enumerate(turns):
        if number:
            row.add(words.encode(f"Human: {turn.text}{gap}###Assistant: "))
        row.add(words.encode(f"{turn.answer}###"), True)
    return row


def chat_row(words: Words, block: tuple[int, ...] | None, turns: list[Question]) -> Row:
    """A dialogue as a chat reads it: all earlier turns in one segment; only the last answer is trained."""
    text = CLOSE
    for number, turn in enumerate(turns):
        text += f"{'###Human: ' if number else ''}{turn.text}###Assistant: "
        text += turn.answer if number < len(turns) - 1 else ""
    row = Row()
    if block is None:
        row.add(words.encode(OPEN + text))
    else:
        row.add(words.encode(OPEN)).add_image(block).add(words._encode(text))
    return row.add(words.encode(f"{turns[-1].answer}###"), True)


def blind_row(words: Words, turns: list[Question]) -> Row:
    """A dialogue without any image mark."""
    row = Row()
    for turn in turns:
        row.add(words.encode(f"###Human: {turn.text}###Assistant: ")).add(words.encode(f"{turn.answer}###"), True)
        if turn is turns[0]:
            break
    return row


_MARKS = {
    "color": "color", "shape": "shape", "letter": "letter", "position": "Where", "size": "size", "exist": "there",
    "bind": "there",
}  # fmt: skip


def drill_row(words: Words, block: tuple[int, ...], scene: Scene, rng: np.random.Generator, items: int) -> Row:
    """A note and many shortest questions, ``color circle`` -> ``red``: finding words is learnt here first."""
    row, asked = Row().add_image(block), set()
    for _ in range(3 * items):
        question = ask(scene, TYPES[int(rng.integers(len(TYPES)))], rng)
        if question is None or question.type not in _MARKS:
            continue
        said = question.text.rstrip("?").split()
        keys = [word for word in said if word in COLORS] if question.type == "bind" else []
        text = " ".join((_MARKS[question.type], *keys, said[-1]))
        if text not in asked and len(asked) < items:
            asked.add(text)
            row.add(words.encode(text)).add(words.encode(question.answer), True)
    return row


class TextWorld:
    """Endless rows for the language model.

    Args:
        words: the tokenizer.
        seed: of the scenes, questions and renamings.
        rename: share of rows whose colour and kind words are replaced by random other tokens, which teaches
            to copy words rather than to know them.
        hide: share of rows without an image block or with a meaningless one.
    """

    def __init__(self, words: Words, seed: int, rename: float = 0.1, hide: float = 0.12) -> None:
        self.words, self.rename, self.hide = words, rename, hide
        self.drill = 0.0  # share of rows that are drills; the trainer lowers it
        self.rng = np.random.default_rng((seed, SPLITS["foundation"]))
        self.content = [words.id(word) for word in (*COLORS, *KINDS)]
        fixed = (OPEN, CLOSE, "Human: ###Assistant: ", "yes", "no")
        used = {*self.content, *(token for text in fixed for token in words.encode(text))}
        self.pool = np.array([i for i in range(259, words.size) if i not in used])[::8]

    def block(self, scene: Scene) -> tuple[int, ...]:
        """The note's tokens.

        Raises:
            ValueError: the note does not fill the block.
        """
        ids = self.words.encode(" ".join(note(scene)))
        if len(ids) != NOTE_WORDS:
            raise ValueError(f"a note has {len(ids)} tokens, not {NOTE_WORDS}")
        return ids

    def row(self) -> tuple[Row, str]:
        """A row and how its image block is to be treated: ``note`` or ``noise``."""
        rng = self.rng
        scene = random_scene(rng, mix=(0.2, 0.45, 0.35))
        block: tuple[int, ...] | None = self.block(scene)
        if rng.random() < self.drill:
            row = drill_row(self.words, block, scene, rng, 12)
            return (self._renamed(row) if rng.random() < self.rename else row), "note"
        form, hidden = rng.random(), rng.random()
        kind = "note"
        if hidden < self.hide:
            style = hidden / self.hide
            if style < 0.2:
                return blind_row(self.words, dialogue(scene, rng, 1, describe=0.05)), kind
            if style < 0.45:
                block = None
            elif style < 0.6:
                block = tuple(int(i) for i in rng.choice(self.pool, NOTE_WORDS))
            else:
                kind = "noise"
            turns = dialogue(scene, rng, 2, describe=0.05)
            return (training_row if form < 0.5 else chat_row)(self.words, block, turns), kind
        if form < 0.12:
            row = stage1_row(self.words, block, caption(scene))
        elif form < 0.20:
            text = INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))]
            row = training_row(self.words, block, [Question("describe", text, caption(scene))], " ")
        elif form < 0.80:
            row = training_row(self.words, block, dialogue(scene, rng, 6, types=TYPES), " " if form < 0.32 else "")
        else:
            row = chat_row(self.words, block, dialogue(scene, rng, int(rng.integers(1, 5)), types=TYPES))
        return (self._renamed(row) if rng.random() < self.rename else row), kind

    def _renamed(self, row: Row) -> Row:
        table = dict(zip(self.content, self.rng.choice(self.pool, len(self.content), replace=False), strict=True))
        row.ids = [int(table.get(i, i)) for i in row.ids]
        return row

    def batches(self, rows: int, pool: int = 12) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches of rows of like length.

        Yields:
            ``ids [b, s]``, ``labels [b, s]`` (-100: not trained), ``image [b]``, ``noise [b]`` bool.
        """
        while True:
            drawn = [self.row() for _ in range(rows * pool)]
            drawn.sort(key=lambda item: len(item[0].ids) + 12 * self.rng.random())
            for start in self.rng.permutation(pool) * rows:
                part = drawn[start : start + rows]
                yield pad_rows([row for row, _ in part]) | {"noise": np.array([kind == "noise" for _, kind in part])}


def pad_rows(rows: list[Row]) -> dict[str, np.ndarray]:
    """Pad at the right: ``ids [b, s]``, ``labels [b, s]``, ``image [b]``."""
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        labels[i, : len(row.ids)] = np.where(row.trained, row.ids, IGNORE)
    return {"ids": ids, "labels": labels, "image": np.array([row.image for row in rows])}


def exam(words: Words, world: TextWorld, scenes: list[tuple[Scene, Question]]) -> list[Row]:
    """One single-turn row for each question, for measuring."""
    return [training_row(words, world.block(scene), [question]) for scene, question in scenes]
