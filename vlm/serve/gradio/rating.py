"""Thumbs and corrections of the chat page: what a visitor thinks of an answer, and what the page shows of it."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlm.common.errors import PromptError, UserError
from vlm.common.types import Image, Video
from vlm.inference.session import ChatSession
from vlm.serve.feedback.folder import LEFT_OUT
from vlm.serve.feedback.record import Rating, facts_of, fault_of, record_of
from vlm.serve.gradio.display import has_answer, told, turn_at
from vlm.serve.gradio.theme import static

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlm.inference.engine import Engine
    from vlm.serve.feedback.folder import FeedbackFolder
    from vlm.serve.gradio.branches import Reply, Turn
    from vlm.serve.gradio.session import PageChat

log = logging.getLogger(__name__)

UP, DOWN = "Like", "Dislike"
"""What Gradio calls the thumbs."""
THUMBS = {True: UP, False: DOWN, None: None}
FAILED = "The feedback was not kept"
ABOUT = {
    "up": "is kept with a thumb up. Would other words have been better?",
    "down": "is kept with a thumb down. What would have been right?",
    "corrected": "is kept with your correction.",
    None: "is not kept.",
}
"""What the page says of an answer that was rated, by its verdict."""
USELESS = "is kept with a thumb up, but cannot be trained on ({}). What would have been right?"
SHOWN = 60
"""Characters of the answer that are repeated beside it."""


class Ratings:
    """The page's ratings; whatever cannot be kept is told in a notice, and the conversation goes on."""

    def __init__(self, folder: FeedbackFolder, engines: Mapping[str, Engine]) -> None:
        self.folder = folder
        self._engines = engines
        self._facts = {name: facts_of(name, engine) for name, engine in engines.items()}

    @property
    def line(self) -> str:
        """What is kept and where, as the page says it."""
        return static("feedback.html").format(folder=escape(self.folder.path.name))

    @staticmethod
    def thumbs(turns: Sequence[Turn], name: str) -> list[str | None]:
        """The thumb of each answer that the page shows of a model."""
        replies = [turn.replies.get(name) for turn in turns if has_answer(turn, name)]
        ratings = [None if reply is None else reply.rating for reply in replies]
        return [None if rating is None else THUMBS[rating.thumb] for rating in ratings]

    def row(self, mine: PageChat | None) -> list[Any]:
        """The row below the conversation, which is about the answer that was rated last, and its text."""
        shown = mine.branches.shown if mine is not None else []
        turn, name = mine.rated if mine is not None and mine.rated is not None else (None, "")
        reply = turn.replies.get(name) if turn is not None and turn in shown else None
        if reply is None or reply.rating is None:
            return [gr.update(visible=False), ""]
        words = " ".join(reply.text.split())
        short = words if len(words) <= SHOWN else f"{words[:SHOWN]}..."
        rating = reply.rating
        useless = rating.verdict == "up" and rating.left_out
        state = USELESS.format(escape(rating.left_out)) if useless else ABOUT[rating.verdict]
        whose = f"{escape(name)}: " if len(self._engines) > 1 else ""
        about = f"{whose}<q>{escape(short)}</q> {state}"
        return [gr.update(visible=True), about]

    def like(self, event: gr.LikeData, name: str, mine: PageChat | None) -> str | None:
        """A thumb was clicked, or taken back; the correction to show, None where nothing was kept."""
        thumb = event.liked if isinstance(event.liked, bool) else None
        turns = mine.branches.shown if mine is not None else []
        turn = turn_at(turns, name, event.index) if isinstance(event.index, int) else None
        if mine is None or turn is None or not self._rate(mine, turn, name, thumb, ""):
            return None
        mine.rated = (turn, name)
        return ""

    def correct(self, text: str | None, mine: PageChat | None) -> None:
        """The words that the answer which was rated last should have had; without any, only its thumb counts."""
        turn, name = mine.rated if mine is not None and mine.rated is not None else (None, "")
        rating = turn.replies[name].rating if turn is not None and name in turn.replies else None
        if mine is not None and turn is not None and rating is not None:
            self._rate(mine, turn, name, rating.thumb, (text or "").strip())

    def _rate(self, mine: PageChat, turn: Turn, name: str, thumb: bool | None, correction: str) -> bool:
        """Keep a rating in place of the former one of the same answer; whether it was kept."""
        try:
            reply = turn.replies.get(name)
            if reply is None or not reply.given or reply.generation is None:
                raise PromptError("there is no complete answer yet", fix="wait until it is written")
            if correction and (why := fault_of([*QUESTION, {"from": "gpt", "value": correction}])):
                raise PromptError(f"this correction cannot be trained on ({why})", fix="use other words")
            key = reply.rating.key if reply.rating is not None else secrets.token_hex(8)
            rating = self._written(Rating(key, thumb, correction), reply, name)
        except UserError as error:
            log.info("feedback: %s", error)
            gr.Warning(told(error), title=FAILED)
            return False
        reply.rating = rating
        return True

    def _written(self, rating: Rating, reply: Reply, name: str) -> Rating:
        """The rating, once its record is written, or deleted where it was taken back."""
        if rating.verdict is None:
            self.folder.drop(rating.key)
            return rating
        assert reply.generation is not None
        original = ChatSession(self._engines[name]).original
        media = [
            dataclasses.replace(m, source=original(m)) if not isinstance(m.source, str) else m
            for message in reply.given
            for m in message.media
            if isinstance(m, Image | Video)
        ]
        complete = reply.record is None or reply.record.finish == "stop"
        record = record_of(rating, reply.given, reply.text, reply.generation, self._facts[name], complete)
        self.folder.keep(record, media)
        return dataclasses.replace(rating, left_out=record.get(LEFT_OUT, ""))


QUESTION = ({"from": "human", "value": "?"},)
"""Before an answer that is looked at on its own."""
