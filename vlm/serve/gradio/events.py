"""The chat page's events: upload, send, stop, regenerate, restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from vlm.common.errors import UserError
from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.serve.gradio.session import PageChat, Uploads


class Events:
    """Callbacks; each gets the visitor's ``PageChat`` (None before the first question).

    Most return the messages to show, followed by updates of the buttons Send, Stop and Regenerate.
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
        except UserError as error:
            gr.Warning(str(error), title=f"This {kind.__name__.lower()} cannot be read")
            return None
        return gr.skip()

    def ask(
        self, text: str, image: str | None, keep: bool, mine: PageChat | None, video: str | None = None
    ) -> list[Any]:
        """Send: the conversation, its messages, an empty question box, the buttons."""
        mine = mine or PageChat(self.engine, self.uploads)
        try:
            mine.ask(text, image, keep, video)
        except UserError as error:
            raise gr.Error(str(error), title="The question was not sent", print_exception=False) from error
        return [mine, mine.shown, "", *buttons(writing=True)]

    def write(self, mine: PageChat, *values: Any) -> Iterator[list[Any]]:
        """The answer as it grows, or when it is complete; ``values``: options, system text, turns kept."""
        try:
            options = self.generation.replace(**typed(dict(zip(self.names, values, strict=False))))
            for shown in mine.write(options, *self._prompt(*values[len(self.names) :])):
                if self.stream:
                    yield [shown, *buttons(writing=True)]
        except UserError as error:
            gr.Warning(str(error), title="The question was not answered")
        yield [mine.shown, *buttons(writing=False)]

    def _prompt(self, system: str = "", turns: float = -1) -> tuple[str | None, int]:
        """The system text, None where it is the template's own, and the turns to keep."""
        usual = template_option(self.engine, "system", "")
        return (None if system.strip() == usual.strip() else system), int(turns)

    @staticmethod
    def read(mine: PageChat | None) -> str:
        """The prompt of the last answer."""
        return mine.read if mine is not None else ""

    def again(self, mine: PageChat | None) -> list[Any]:
        """Regenerate: the messages without the last answer."""
        try:
            if mine is not None:
                mine.again()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [mine.shown if mine is not None else [], *buttons(writing=True)]

    def stop(self, mine: PageChat | None) -> None:
        """End the answer; ``write`` then restores the buttons."""
        if mine is not None:
            mine.stop()

    def restart(self, mine: PageChat | None) -> list[Any]:
        """Clear messages, image, video and question; only Send stays enabled."""
        if mine is not None:
            mine.restart()
        return [[], None, None, "", *(gr.update(interactive=on) for on in (True, False, False))]


def template_option(engine: Engine, name: str, default: Any) -> Any:
    """An option that only some templates have, or ``default``."""
    return vars(engine.processor.template.config).get(name, default)


def buttons(writing: bool) -> list[Any]:
    """Updates of Send, Stop and Regenerate."""
    return [gr.update(interactive=not writing), gr.update(interactive=writing), gr.update(interactive=not writing)]


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of sliders and boxes as the types of ``Generation``; an empty seed means none."""
    whole = {"num_beams", "max_new_tokens", "top_k", "seed"}
    return {k: int(v) if k in whole and v is not None else v for k, v in values.items()}
