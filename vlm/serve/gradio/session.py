"""What one visitor of the chat page asked and was answered; knows nothing of the page's widgets."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from vlm.common.errors import BusyError, PromptError, UserError
from vlm.common.types import Image, Message, Video
from vlm.inference.batching.answer import Asking
from vlm.inference.session import ChatSession
from vlm.serve.gradio import branches as tree
from vlm.serve.gradio.branches import Branches, Medium, Reply, Turn
from vlm.serve.gradio.lanes import Lane, write_together

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation


class PageChat:
    """A visitor's conversation with one or several models, all of which get the same questions.

    Attributes:
        engines: the models by name.
        chosen: names of those that the next question goes to.
        branches: the questions and answers.
        read: model -> the prompt of its last answer as text.
        rated: the answer that was rated last, by its turn and model.
    """

    def __init__(self, engines: Mapping[str, Engine], visitor: str = "") -> None:
        """``visitor``: whose questions these are; what they leave in an engine's caches is used for nobody else's."""
        self.engines = dict(engines)
        self.chosen = list(engines)
        self.branches = Branches()
        self.read: dict[str, str] = {}
        self.rated: tuple[Turn, str] | None = None
        self._visitor = visitor
        self._writing: Turn | None = None
        self._lanes: list[Lane] = []

    # ---- questions

    def ask(self, text: str, paths: Sequence[str] = (), keep: bool = False) -> None:
        """Add a question about images and videos. One with any begins a new conversation, unless ``keep``.

        Raises:
            PromptError: no text, no model chosen, an answer is being written, or the conversation is too long.
            DataError: an image or video that cannot be read by any of the models; the conversation is unchanged.
        """
        self._check_idle()
        if not text.strip():
            raise PromptError("type a question first")
        self.give_up()  # a question that was asked before, and never answered
        before = self.branches.here if keep or not paths else None
        self._add(text.strip(), tuple(map(_medium, paths)), before, {})

    def edit(self, turn: Turn, text: str) -> None:
        """Ask a question in other words, about the same images; the answers to the first stay on their branch.

        Raises: see :meth:`ask`.
        """
        self._check_idle()
        if not text.strip():
            raise PromptError("type a question first")
        self.give_up()
        if turn not in self.branches.turns:
            raise PromptError("this question was restarted or is no longer kept")
        self._add(text.strip(), turn.files, turn.before, turn.asked)

    def again(self) -> None:
        """Ask the last question again; its answers stay on their branch. One that is still open is not asked twice.

        Raises PromptError: there is no answer yet, or one is being written.
        """
        self._check_idle()
        last = self.branches.here
        if self.is_waiting:
            return
        if last is None or not last.replies:
            raise PromptError("there is no answer to regenerate", fix="ask first")
        self._add(last.text, last.files, last.before, last.asked)

    def undo(self) -> Turn:
        """Return to before the last question, which stays on its branch. Raises PromptError: nothing was asked."""
        self._check_idle()
        last = self.branches.here
        if last is None:
            raise PromptError("there is no question to undo", fix="ask first")
        if self.is_waiting:
            self.give_up()
        else:
            self.branches.here = last.before
        return last

    def go(self, step: int) -> None:
        """Show the next branch, or the one before for -1. Raises PromptError: an answer is being written."""
        self._check_idle()
        self.branches.go(step)

    def restart(self) -> None:
        """Forget everything; answers that are being written end and are dropped."""
        self.stop()
        self.branches = Branches()
        self.read = {}
        self.rated = None
        self._writing = None

    def _add(self, text: str, files: tuple[Medium, ...], before: Turn | None, known: Mapping[str, Message]) -> None:
        if not self.chosen:
            raise PromptError("no model is chosen", fix="choose one under Models")
        turn = Turn(text, files, before)
        if not self.branches.fits(turn):
            most = f"{tree.TURNS} questions and {tree.MEDIA} images"
            raise PromptError(f"a conversation on this page has at most {most}", fix="press Restart")
        for name in self.chosen:
            try:
                media = known[name].media if name in known else [*_unseen(before, name), *files]
                turn.asked[name] = self._decoded(name, text, media)
            except UserError as error:
                turn.faults[name] = error
        if not turn.asked:
            raise next(iter(turn.faults.values()))
        self.branches.add(turn)

    def _decoded(self, name: str, text: str, media: Sequence[Medium]) -> Message:
        session = ChatSession(self.engines[name])
        session.ask(text, media)
        return session.messages[-1]

    def _check_idle(self) -> None:
        if self._writing is not None:
            raise PromptError("an answer is being written", fix="wait until it is complete, or press Stop")

    # ---- answers

    def write(
        self, generation: Mapping[str, Generation], system: str | None = None, keep_turns: int = -1
    ) -> Iterator[None]:
        """Answer the open question with every model it was put to; yields when there is something new to show.

        Args:
            generation: options by model.
            system, keep_turns: as in :class:`ChatSession`.

        Raises:
            BusyError: too many questions are waiting; this one stays open.
            UserError: none of the models can answer; the question is taken back.
        """
        turn = self.branches.here
        if turn is None or not self.is_waiting:
            raise PromptError("there is no open question", fix="ask first")
        self._writing = turn
        lanes = {name: Lane(self._session(name, turn, system, keep_turns), generation[name]) for name in turn.asked}
        self._lanes = list(lanes.values())
        turn.replies = {name: Reply() for name in lanes}
        turn.faults = {name: fault for name, fault in turn.faults.items() if name not in lanes}
        given = {name: tuple(lane.session.prompt()) for name, lane in lanes.items()}
        try:
            self.read = {name: self.engines[name].text(prompt) for name, prompt in given.items()}
            with closing(write_together(self._lanes)) as steps:
                for _ in steps:
                    for name, lane in lanes.items():
                        turn.replies[name].text = lane.text
                    yield
        finally:
            answered = {name: lane for name, lane in lanes.items() if not lane.session.is_open}
            turn.replies = {
                name: Reply(lane.text, lane.session.last, given[name], generation[name])
                for name, lane in answered.items()
            }
            turn.faults |= {name: lane.error for name, lane in lanes.items() if isinstance(lane.error, UserError)}
            is_current = self._writing is turn
            if is_current:
                self._writing, self._lanes = None, []
        if bugs := [lane.error for lane in lanes.values() if lane.error and not isinstance(lane.error, UserError)]:
            raise bugs[0]
        if not turn.replies and turn.faults:
            fault = next(
                (f for f in turn.faults.values() if isinstance(f, BusyError)), next(iter(turn.faults.values()))
            )
            if is_current and not isinstance(fault, BusyError):
                self.branches.take_back()
            raise fault
        yield

    def _session(self, name: str, turn: Turn, system: str | None, keep_turns: int) -> ChatSession:
        session = ChatSession(self.engines[name], system=system)
        session.keep_turns = keep_turns
        session.asking = Asking(tenant=self._visitor)
        for earlier in turn.path[:-1]:
            if (reply := earlier.replies.get(name)) is not None:
                session.messages += [earlier.asked[name], Message("assistant", reply.text)]
        session.messages.append(turn.asked[name])
        return session

    def stop(self) -> None:
        """End the answers that are being written."""
        for lane in self._lanes:
            lane.stop()

    @property
    def is_writing(self) -> bool:
        """Whether a question is being answered."""
        return self._writing is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a question is open and nobody is answering it."""
        last = self.branches.here
        return last is not None and not last.replies and self._writing is not last

    def give_up(self) -> None:
        """Take back a question that cannot be answered, with its media; nothing where none is open."""
        if self.is_waiting:
            self.branches.take_back()


def _medium(path: str) -> Medium:
    kind = mimetypes.guess_type(path)[0] or ""
    return Video(path) if kind.startswith("video/") else Image(path)


def _unseen(before: Turn | None, name: str) -> list[Medium]:
    """Images and videos of earlier questions that a model, which was chosen later, was not given."""
    path = before.path if before is not None else []
    return [medium for turn in path if name not in turn.replies for medium in turn.files]
