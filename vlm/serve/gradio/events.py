"""The chat page's events: upload, send, stop, regenerate, restart."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from vlm.common.errors import DataError, UserError
from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.serve.gradio.display import messages, told, unreadable
from vlm.serve.gradio.session import PageChat, Uploads

log = logging.getLogger(__name__)

SAME = "These settings write the same answer again. For another one turn on Sample and leave Seed empty."


class Events:
    """Callbacks; each gets the visitor's ``PageChat`` (None before the first question).

    Most return the messages to show, followed by updates of the buttons Send, Stop and Regenerate. What a visitor did
    wrong is told in a notice and leaves the page as it is.
    """

    def __init__(self, engine: Engine, generation: Generation, names: Sequence[str], stream: bool = True) -> None:
        """``names``: the options of ``Generation`` whose values ``write`` receives, in order."""
        self.stream = stream
        self.engine = engine
        self.generation = generation
        self.names = list(names)
        self.uploads = Uploads(engine)

    def check(self, kind: type[Image] | type[Video], path: str | None) -> Any:
        """An upload: kept if it can be decoded, else reported and removed."""
        try:
            if path is not None:
                self.uploads.add(kind(path))
        except DataError as error:
            name = kind.__name__.lower()
            log.info("upload: %s", error)
            gr.Warning(unreadable(name, path or ""), title=f"This {name} cannot be read")
            return None
        return gr.skip()

    def ask(
        self, text: str | None, image: str | None, keep: bool, mine: PageChat | None, video: str | None = None
    ) -> list[Any]:
        """Send: the conversation, its messages, an empty question box, the buttons."""
        mine = mine or PageChat(self.engine, self.uploads)
        try:
            mine.ask(text or "", image, bool(keep), video)
        except DataError as error:
            log.info("question: %s", error)
            gr.Warning(unreadable("image or video", image or video or ""), title="The question was not sent")
        except UserError as error:
            gr.Warning(told(error), title="The question was not sent")
        else:
            return [mine, messages(mine.shown), "", *buttons(writing=True)]
        return [mine, *(gr.skip() for _ in range(5))]

    def write(self, mine: PageChat | None, *values: Any) -> Iterator[list[Any]]:
        """The answer as it grows, or when it is complete; ``values``: options, system text, turns kept."""
        if mine is None or not mine.is_waiting:  # its question was not sent
            yield [gr.skip() for _ in range(4)]
            return
        try:
            options = self.generation.replace(**typed(dict(zip(self.names, values, strict=False))))
            for shown in mine.write(options, *self._prompt(*values[len(self.names) :])):
                if self.stream:
                    yield [messages(shown), *buttons(writing=True)]
        except UserError as error:
            mine.give_up()
            gr.Warning(told(error), title="The question was not answered")
        yield [messages(mine.shown), *buttons(writing=False, answered=bool(mine.shown))]

    def _prompt(self, system: str | None = "", turns: Any = -1) -> tuple[str | None, int]:
        """The system text, None where it is the template's own, and the turns to keep."""
        usual, system = template_option(self.engine, "system", ""), system or ""
        return (None if system.strip() == usual.strip() else system), typed({"turns": turns})["turns"]

    @staticmethod
    def read(mine: PageChat | None) -> str:
        """The prompt of the last answer."""
        return mine.read if mine is not None else ""

    def again(self, mine: PageChat | None, sample: bool = True, seed: float | None = None) -> list[Any]:
        """Regenerate: the messages without the last answer."""
        try:
            if mine is not None:
                mine.again()
        except UserError as error:
            gr.Warning(told(error), title="Nothing to regenerate")
            return [gr.skip() for _ in range(4)]
        if not sample or seed is not None:
            gr.Info(SAME, title="Regenerate")
        return [messages(mine.shown) if mine is not None else [], *buttons(writing=True)]

    @staticmethod
    def stop(mine: PageChat | None) -> list[Any]:
        """End the answer, after which ``write`` restores the buttons, or take back a question that still waits."""
        if mine is not None and mine.is_waiting:
            mine.give_up()
            return [messages(mine.shown), *buttons(writing=False, answered=bool(mine.shown))]
        if mine is not None:
            mine.stop()
        return [gr.skip() for _ in range(4)]

    def restart(self, mine: PageChat | None) -> list[Any]:
        """Clear messages, image, video and question; only Send stays enabled."""
        self.forget(mine)
        return [[], None, None, "", *(gr.update(interactive=on) for on in (True, False, False))]

    @staticmethod
    def forget(mine: PageChat | None) -> None:
        """Free what a conversation holds (also called when a visitor was away for long)."""
        if mine is not None:
            mine.restart()


def template_option(engine: Engine, name: str, default: Any) -> Any:
    """An option that only some templates have, or ``default``."""
    return vars(engine.processor.template.config).get(name, default)


def buttons(writing: bool, answered: bool = True) -> list[Any]:
    """Updates of Send, Stop and Regenerate."""
    return [gr.update(interactive=on) for on in (not writing, writing, answered and not writing)]


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of sliders and boxes as the types of ``Generation``; an empty seed means none.

    Raises UserError: not a number where a whole one belongs.
    """
    whole = {"num_beams", "max_new_tokens", "top_k", "seed", "turns"}
    try:
        return {k: int(v) if k in whole and v is not None else v for k, v in values.items()}
    except (TypeError, ValueError, OverflowError):
        raise UserError("a setting is not a number", fix="reload the page") from None
