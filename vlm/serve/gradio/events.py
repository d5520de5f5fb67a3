"""What happens when a visitor of the chat page uploads, sends, stops, regenerates or restarts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vlm.common.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.serve.gradio.session import PageChat


class Events:
    """Callbacks; each gets the visitor's ``PageChat`` (None before the first question).

    Most return the bubbles, followed by updates of the buttons Send, Stop and Regenerate.
    """

    def __init__(self, engine: Engine, generation: Generation, names: Sequence[str], stream: bool = True) -> None:
        """``names``: the options of ``Generation`` whose values ``write`` gets, in order."""
        self.stream = stream
        self.engine = engine
        self.generation = generation
        self.names = list(names)

    def check(self, path: str | None) -> str | None:
        """An upload: kept if it can be decoded, else told and removed."""
        try:
            if path is not None:
                self.engine.processor.image(path, Path(path).name)
        except UserError as error:
            gr.Warning(str(error), title="Not an image that can be read")
            return None
        return path

    def check_clip(self, path: str | None) -> str | None:
        """The same for a video."""
        try:
            if path is not None and self.engine.processor.video is not None:
                self.engine.processor.video(path, Path(path).name, None)
        except UserError as error:
            gr.Warning(str(error), title="Not a video that can be read")
            return None
        return path

    def ask(self, text: str, path: str | None, keep: bool, mine: PageChat | None, clip: str | None = None) -> list[Any]:
        """Send: the chat, its bubbles, an empty question box, the buttons."""
        mine = mine or PageChat(self.engine)
        try:
            mine.ask(text, path, keep, clip)
        except UserError as error:
            raise gr.Error(str(error), title="Not asked", print_exception=False) from error
        return [mine, mine.shown, "", *buttons(writing=True)]

    def write(self, mine: PageChat, *values: Any) -> Iterator[list[Any]]:
        """The answer as it grows, or when it is complete; ``values``: options, text in front, turns kept."""
        try:
            options = self.generation.replace(**typed(dict(zip(self.names, values, strict=False))))
            for shown in mine.write(options, *self._prompt(*values[len(self.names) :])):
                if self.stream:
                    yield [shown, *buttons(writing=True)]
        except UserError as error:
            gr.Warning(str(error), title="Not answered")
        yield [mine.shown, *buttons(writing=False)]

    def _prompt(self, system: str = "", turns: float = -1) -> tuple[str | None, int]:
        """The text in front where it is not the template's own, and the turns to keep."""
        usual = getattr(self.engine.processor.template.config, "system", "")
        return (None if system.strip() == usual.strip() else system), int(turns)

    @staticmethod
    def read(mine: PageChat | None) -> str:
        """The prompt of the last answer."""
        return mine.read if mine is not None else ""

    def again(self, mine: PageChat | None) -> list[Any]:
        """Regenerate: the bubbles without the last answer."""
        try:
            if mine is not None:
                mine.again()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [mine.shown if mine is not None else [], *buttons(writing=True)]

    def stop(self, mine: PageChat | None) -> None:
        """End the answer; ``write`` then puts the buttons back."""
        if mine is not None:
            mine.stop()

    def restart(self, mine: PageChat | None) -> list[Any]:
        """No bubbles, no image, no video, no question; only Send is left."""
        if mine is not None:
            mine.restart()
        return [[], None, None, "", *(gr.update(interactive=on) for on in (True, False, False))]


def buttons(writing: bool) -> list[Any]:
    """Updates of Send, Stop and Regenerate."""
    return [gr.update(interactive=not writing), gr.update(interactive=writing), gr.update(interactive=not writing)]


def typed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of sliders and boxes as the types of ``Generation``; an empty seed means none."""
    whole = {"num_beams", "max_new_tokens", "top_k", "seed"}
    return {k: int(v) if k in whole and v is not None else v for k, v in values.items()}
