"""Jinja chat templates, rendered in transformers' sandbox and within bounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from vlm.common.errors import PromptError

MOST_MEMORY = 2**30
"""Bytes by which the memory of this process may grow meanwhile."""
MOST_STEPS = 1_000_000
"""Steps of a template, as lines of the Python that Jinja makes of it; a long conversation takes some ten thousand."""
COMPILED = "<template>"
"""The file that Jinja names for the code of a template."""

OFF: dict[str, Any] = {"tools": None, "documents": None}


class EndlessTemplate(ValueError):
    """A rendering that took more than :data:`MOST_STEPS` or :data:`MOST_MEMORY`."""


@dataclass(frozen=True)
class JinjaTemplate:
    """A chat template.

    Attributes:
        text: the Jinja text.
        name: what messages call it, e.g. its file.
        values: names that the template may read, besides ``messages`` and ``add_generation_prompt``.
    """

    text: str
    name: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Mapping[str, Any]], open_turn: bool) -> str:
        """The text of a conversation; ``open_turn``: it ends where the assistant begins to write.

        Raises PromptError: the template fails, refuses the conversation, or does not end.
        """
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        from vlm.processors.templates.sandbox import use_bounds

        use_bounds()
        # what the operations of a template may raise, besides jinja2's own errors
        faults = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)
        options = {**OFF, **self.values, "add_generation_prompt": open_turn}
        try:
            with _bounded():
                given = [dict(message) for message in messages]
                rendered: Any = render_jinja_template(conversations=[given], chat_template=self.text, **options)
        except TemplateSyntaxError as error:
            raise self._fault(f"is not a Jinja template: line {error.lineno}: {error.message}") from error
        except (TemplateError, SyntaxError, *faults) as error:
            reason = str(error).strip() or type(error).__name__
            raise self._fault(f"cannot write this conversation: {reason}") from error
        return rendered[0][0]  # of the first conversation; then come the stretches of generation tags

    def _fault(self, what: str) -> PromptError:
        return PromptError(
            f"the chat template ({self.name}) {what:.500}",
            fix="change the conversation (many templates want questions and answers in turn, some no system text), "
            "or set model.template.chat_template to a .jinja file of your own",
        )


def _peak() -> int:
    """Bytes that this process has had at most; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource  # no such module on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _bounded() -> Iterator[None]:
    """Within the block, more than :data:`MOST_STEPS` steps of a template, or MOST_MEMORY, raise EndlessTemplate."""
    left, highest = MOST_STEPS, _peak() + MOST_MEMORY

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise EndlessTemplate(f"it takes more than {MOST_STEPS:,} steps")
        if _peak() > highest:
            raise EndlessTemplate(f"it takes more than {MOST_MEMORY:,} bytes of memory")
        return count

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        return count if frame.f_code.co_filename == COMPILED else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
