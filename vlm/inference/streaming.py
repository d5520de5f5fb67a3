"""The cleaned text of an answer while its tokens arrive."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.inference.generation import Cleanup
    from vlm.processors.templates.base import BaseTemplate
    from vlm.processors.tokenizer.tokenizer import Tokenizer


class StreamedText(str):
    """The next piece of a streamed answer.

    ``is_restart`` is True when the clean-up rule threw away what was sent before (a model that writes
    another ``Assistant:`` in the middle of its answer): this piece then restarts the text.
    """

    is_restart: bool = False


def join(deltas: Iterable[str]) -> str:
    """The text of a whole stream: the pieces one after another, from the last replacement on."""
    return functools.reduce(extend, deltas, "")


def extend(text: str, delta: str) -> str:
    """The text after one more piece."""
    return str(delta) if isinstance(delta, StreamedText) and delta.is_restart else text + delta


def before(text: str, stops: Iterable[str]) -> str:
    """The text up to the stop text that is complete first, which is where a stream of it ends, too."""
    found = [(at + len(stop), at) for stop in filter(None, stops) if (at := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


def cleaner(template: BaseTemplate, rule: Cleanup) -> Callable[[str], str]:
    """Raw decoded text -> answer, by the rule's name (see ``Generation.cleanup``)."""
    if rule == "chat":
        return template.clean
    return template.clean_batch if rule == "answer" else str.strip


def marks_of(template: BaseTemplate) -> list[str]:
    """Texts that a clean-up rule acts on; a stream holds back what may become one."""
    return [*template.stop, *template.config.truncate_at, *template.config.strip_before, "</s>", "[/INST]"]


class StopWatch:
    """Tells when one of some texts is complete in an answer whose tokens arrive."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        """``stops``: none of them empty."""
        self._decoder = tokenizer.stream()
        self._stops = stops
        self._kept = max(map(len, stops)) - 1
        self._end = ""  # of the text, in which one may have begun

    def push(self, token: int) -> bool:
        """Whether the text of ``token`` completes one."""
        if not (new := self._decoder.push(token)):
            return False
        text = self._end + new
        self._end = text[-self._kept :] if self._kept else ""
        return any(stop in text for stop in self._stops)


class TextStream:
    """Turns token ids into pieces of cleaned text; joined they equal the clean-up of the whole text.

    Held back: a character whose bytes are incomplete, white space at the end (clean-up strips it), and
    an end that could become a delimiter of the clean-up rule.

    Attributes:
        raw: the text before clean-up, up to the first of ``stops``.
        sent: the pieces so far, joined.
        is_cut: whether one of ``stops`` was found; nothing follows it.
        is_finished: whether :meth:`finish` was called.
    """

    def __init__(
        self, tokenizer: Tokenizer, clean: Callable[[str], str], texts: Sequence[str], stops: Sequence[str] = ()
    ) -> None:
        """``texts``: those that ``clean`` acts on, and ``stops``: those that the answer ends before."""
        self._decoder = tokenizer.stream()
        self._clean = clean
        self._texts = [t for t in texts if t]
        self._stops = [t for t in stops if t]
        self.raw = ""
        self.sent = ""
        self.is_cut = False
        self.is_finished = False

    def push(self, tokens: int | list[int]) -> StreamedText:
        """The piece that the next token, or several, complete; may be empty."""
        self._read(self._decoder.push(tokens))
        held = 0 if self.is_cut else self._held()
        return self._send(self._clean(self.raw[: len(self.raw) - held]))

    def finish(self) -> StreamedText:
        """What was held back; call once, at the end."""
        self.is_finished = True
        self._read(self._decoder.flush())
        return self._send(self._clean(self.raw))

    def _read(self, text: str) -> None:
        """Add to the raw text, as far as no stop text is complete."""
        if self.is_cut:
            return
        new = len(self.raw)
        self.raw += text
        found = [(at + len(t), at) for t in self._stops if (at := self.raw.find(t, max(0, new - len(t) + 1))) >= 0]
        if found:
            self.raw, self.is_cut = self.raw[: min(found)[1]], True

    def _held(self) -> int:
        """Length of the longest end of the raw text, after the last whole delimiter, that begins a delimiter."""
        whole = max((self.raw.rfind(m) + len(m) for m in self._texts if m in self.raw), default=0)
        rest = self.raw[whole:]
        return max((n for m in self._texts for n in range(1, len(m)) if rest.endswith(m[:n])), default=0)

    def _send(self, text: str) -> StreamedText:
        before, self.sent = self.sent, text
        piece = StreamedText(text.removeprefix(before))
        piece.is_restart = not text.startswith(before)
        return piece
