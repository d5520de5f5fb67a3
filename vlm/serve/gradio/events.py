"""The chat page's events: send, stop, undo, regenerate, edit, another branch, restart, download."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlm.common.errors import BusyError, DataError, UserError
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.pages import side_by_side
from vlm.serve.gradio.branches import Turn
from vlm.serve.gradio.display import figures, messages, told, turn_at, unreadable, written
from vlm.serve.gradio.session import PageChat
from vlm.serve.gradio.visitors import visitor_of

if TYPE_CHECKING:
    from vlm.serve.gradio.rating import Ratings

log = logging.getLogger(__name__)

SAME = "These settings write the same answer again. For another one turn on Sample and leave Seed empty."

BUSY = "Too many questions are waiting. Press Regenerate in a moment."


@dataclass(frozen=True)
class Models:
    """The models of a page by name, with the generation options that each starts from."""

    engines: Mapping[str, Engine]
    generation: Mapping[str, Generation]

    @property
    def first(self) -> Engine:
        """The one whose own texts and options the page's settings start from."""
        return next(iter(self.engines.values()))


class Events:
    """Callbacks; each gets the visitor's ``PageChat`` (None before the first question).

    Most return what :meth:`view` shows: the messages of each model, the numbers of its last answer, the place among the
    branches, and which buttons are enabled. What a visitor did wrong is told in a notice and leaves the page as it is.
    """

    def __init__(
        self,
        models: Models,
        names: Sequence[str],
        stream: bool = True,
        admit: Callable[[str], str] = str,
        ratings: Ratings | None = None,
    ) -> None:
        """For the page of some models.

        Args:
            models: answer.
            names: the options of ``Generation`` whose values ``write`` receives, in order.
            stream: show answers as they are written.
            admit: the path of a file that may be opened, see ``UploadFolder.admit``.
            ratings: what keeps feedback; None: the page has none.
        """
        self.models = models
        self.names = list(names)
        self.stream = stream
        self.admit = admit
        self.ratings = ratings

    @property
    def width(self) -> int:
        """How many values :meth:`view` has."""
        return 2 * len(self.models.engines) + 8 + 2 * (self.ratings is not None)

    def view(self, mine: PageChat | None, writing: bool = False) -> list[Any]:
        """Messages and numbers by model; branch row, its text and its two buttons; Send, Stop, Regenerate, Undo.

        With feedback also the row of the answer that was rated last, and its text.
        """
        turns = mine.branches.shown if mine is not None else []
        place, count = mine.branches.place if mine is not None else (1, 1)
        engines = self.models.engines.items()
        answered = bool(turns) and not writing
        row = gr.update(visible=count > 1)
        steps = [gr.update(interactive=on and not writing) for on in (place > 1, place < count)]
        return [
            *(self._messages(turns, name) for name, _ in engines),
            *("" if writing else figures(turns, name, engine.positions) for name, engine in engines),
            *(row, f"Branch {place} of {count}", *steps),
            *(gr.update(interactive=on) for on in (not writing, writing, answered, answered)),
            *(self.ratings.row(mine) if self.ratings is not None else ()),
        ]

    def _messages(self, turns: Sequence[Turn], name: str) -> Any:
        shown = messages(turns, name)
        return (
            shown if self.ratings is None else gr.update(value=shown, feedback_value=self.ratings.thumbs(turns, name))
        )

    def same(self, more: int = 0) -> list[Any]:
        """Nothing changes, nor do ``more`` further values."""
        return [gr.skip() for _ in range(self.width + more)]

    def ask(
        self, box: Any, keep: bool, chosen: Sequence[str], mine: PageChat | None, request: gr.Request | None = None
    ) -> list[Any]:
        """Send: the conversation, an empty question box, the view."""
        mine = mine or PageChat(self.models.engines, visitor_of(request))
        box = box or {"text": "", "files": []}
        mine.chosen = [name for name in mine.engines if name in chosen]
        files: list[str] = []
        try:
            files = list(map(self.admit, box["files"]))
            mine.ask(box["text"] or "", files, bool(keep))
        except DataError as error:
            log.info("question: %s", error)
            text = unreadable(files) if len(files) == len(box["files"]) else told(error)
            gr.Warning(text, title="The question was not sent")
        except UserError as error:
            gr.Warning(told(error), title="The question was not sent")
        else:
            return [mine, None, *self.view(mine, writing=True)]
        return [mine, gr.skip(), *self.same()]

    def edit(self, event: gr.EditData, name: str, chosen: Sequence[str], mine: PageChat | None) -> list[Any]:
        """A question of the conversation was changed on the page: it is asked again, on a branch of its own."""
        try:
            turns = mine.branches.shown if mine is not None else []
            index = event.index[0] if isinstance(event.index, list | tuple) else event.index
            turn = turn_at(turns, name, index) if isinstance(index, int) else None
            if mine is not None and turn is not None and isinstance(event.value, str):
                mine.chosen = [n for n in mine.engines if n in chosen]
                mine.edit(turn, written(event.value))
                return self.view(mine, writing=True)
        except UserError as error:
            gr.Warning(told(error), title="The question was not sent")
        return self.view(mine, self._is_writing(mine))

    def write(self, mine: PageChat | None, *values: Any) -> Iterator[list[Any]]:
        """The answers as they grow, or when they are complete; ``values``: options, system text, turns kept."""
        if mine is None or not mine.is_waiting:  # its question was not sent
            yield self.same()
            return
        asked = mine.branches.here
        try:
            changes = typed(dict(zip(self.names, values, strict=False)))
            options = {name: start.replace(**changes) for name, start in self.models.generation.items()}
            for _ in mine.write(options, *self._prompt(*values[len(self.names) :])):
                if self.stream:
                    yield self.view(mine, writing=True)
        except BusyError as error:
            log.info("busy: %s", error)
            gr.Warning(BUSY, title="The question was not answered")
        except UserError as error:
            mine.give_up()
            gr.Warning(told(error), title="The question was not answered")
        else:
            for name, fault in asked.faults.items() if asked else ():
                gr.Warning(told(fault), title=f"{name} did not answer")
        yield self.view(mine)

    def _prompt(self, system: str | None = "", turns: Any = -1) -> tuple[str | None, int]:
        """The system text, None where it is the template's own, and the turns to keep."""
        usual, system = template_option(self.models.first, "system", ""), system or ""
        return (None if system.strip() == usual.strip() else system), typed({"turns": turns})["turns"]

    @staticmethod
    def read(mine: PageChat | None) -> str:
        """The prompt of the last answer, of each model if there are several."""
        found = mine.read if mine is not None else {}
        if len(found) == 1:
            return next(iter(found.values()))
        return "\n\n".join(f"=== {name} ===\n{text}" for name, text in found.items())

    def again(
        self, chosen: Sequence[str], mine: PageChat | None, sample: bool = True, seed: float | None = None
    ) -> list[Any]:
        """Regenerate: the view without the last answer, which stays on its branch."""
        waited = mine is not None and mine.is_waiting
        try:
            if mine is not None:
                mine.chosen = [name for name in mine.engines if name in chosen]
                mine.again()
        except UserError as error:
            gr.Warning(told(error), title="Nothing to regenerate")
            return self.same()
        if not waited and (not sample or seed is not None):
            gr.Info(SAME, title="Regenerate")
        return self.view(mine, writing=True)

    def undo(self, box: Any, mine: PageChat | None) -> list[Any]:
        """Undo: the view before the last question, which is back in the box unless something is typed there."""
        try:
            turn = mine.undo() if mine is not None else None
        except UserError as error:
            gr.Warning(told(error), title="Nothing to undo")
            return self.same(1)
        empty = not box or not (box["text"] or box["files"])
        back = turn and {"text": turn.text, "files": [medium.source for medium in turn.files]}
        return [back if empty and back else gr.skip(), *self.view(mine)]

    def go(self, step: int, mine: PageChat | None) -> list[Any]:
        """Another branch."""
        try:
            if mine is not None:
                mine.go(step)
        except UserError as error:
            gr.Warning(told(error), title="The branch was not changed")
            return self.same()
        return self.view(mine)

    def stop(self, mine: PageChat | None) -> list[Any]:
        """End the answers, after which ``write`` restores the buttons, or take back a question that still waits."""
        if mine is not None and mine.is_waiting:
            mine.give_up()
            return self.view(mine)
        if mine is not None:
            mine.stop()
        return self.same()

    def restart(self, mine: PageChat | None) -> list[Any]:
        """An empty question box and an empty view."""
        self.forget(mine)
        return [None, *self.view(mine)]

    @staticmethod
    def forget(mine: PageChat | None) -> None:
        """Free what a conversation holds (also called when a visitor was away for long)."""
        if mine is not None:
            mine.restart()

    def like(self, event: gr.LikeData, name: str, mine: PageChat | None) -> list[Any]:
        """A thumb of an answer: the text in the field of its correction, and the view."""
        text = self.ratings.like(event, name, mine) if self.ratings is not None else None
        return [gr.skip() if text is None else text, *self.view(mine, self._is_writing(mine))]

    def correct(self, text: str | None, mine: PageChat | None) -> list[Any]:
        """The correction of the answer that was rated last: the view."""
        if self.ratings is not None:
            self.ratings.correct(text, mine)
        return self.view(mine, self._is_writing(mine))

    @staticmethod
    def _is_writing(mine: PageChat | None) -> bool:
        return mine is not None and mine.is_writing

    def download(self, form: str, mine: PageChat | None) -> str:
        """The conversation that is shown, as the text of an HTML or JSON file; empty where nothing was asked."""
        turns = mine.branches.shown if mine is not None else []
        if not turns:
            gr.Info("Ask a question first.", title="Nothing to download")
            return ""
        names = [name for name in self.models.engines if any(name in turn.replies for turn in turns)]
        asked = [_spoken(turn) for turn in turns]
        return side_by_side.page(names, asked) if form == "html" else side_by_side.json_text(names, asked)


def _spoken(turn: Turn) -> side_by_side.Asked:
    return side_by_side.Asked(turn.text, turn.files, {n: (r.text, r.record) for n, r in turn.replies.items()})


def add_file(path: str | None, box: Any) -> list[Any]:
    """A photo of the camera goes to the question's files; the camera is empty again."""
    box = box or {"text": "", "files": []}
    return [None, {"text": box["text"], "files": [*box["files"], *([path] if path else [])]}]


def template_option(engine: Engine, name: str, default: Any) -> Any:
    """An option that only some templates have, or ``default``."""
    return vars(engine.processor.template.config).get(name, default)


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of sliders and boxes as the types of ``Generation``; an empty seed means none.

    Raises UserError: not a number where a whole one belongs.
    """
    whole = {"num_beams", "max_new_tokens", "top_k", "seed", "turns"}
    try:
        return {k: int(v) if k in whole and v is not None else v for k, v in values.items()}
    except (TypeError, ValueError, OverflowError):
        raise UserError("a setting is not a number", fix="reload the page") from None
