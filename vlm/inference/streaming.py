"""The cleaned text of an answer while its tokens arrive."""

from __future__ import annotations

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

    @classmethod
    def restart(cls, text: str) -> StreamedText:
        """A piece that replaces everything sent before."""
        delta = cls(text)
        delta.is_restart = True
        return delta


def join(deltas: Iterable[str]) -> str:
    """The text of a whole stream: the pieces from the last restart on."""
    text = ""
    for delta in deltas:
        text = extend(text, delta)
    return text


def extend(text: str, delta: str) -> str:
    """The text after one more piece."""
    return str(delta) if isinstance(delta, StreamedText) and delta.is_restart else text + delta


def cleaner(template: BaseTemplate, rule: Cleanup) -> Callable[[str], str]:
    """Raw decoded text -> answer, by the rule's name (see ``Generation.cleanup``)."""
    if rule == "chat":
        return template.clean
    return template.clean_batch if rule == "answer" else str.strip


def marks_of(template: BaseTemplate) -> list[str]:
    """Texts that a clean-up rule acts on; a stream holds back what may become one."""
    return [*template.stop, *template.config.truncate_at, *template.config.strip_before, "</s>", "[/INST]"]


class TextStream:
    """Turns token ids into pieces of cleaned text; joined they equal the clean-up of the whole text.

    Held back: a character whose bytes are incomplete, white space at the end (clean-up strips it), and
    an end that could become a delimiter of the clean-up rule.
    """

    def __init__(self, tokenizer: Tokenizer, clean: Callable[[str], str], texts: Sequence[str]) -> None:
        self._decoder = tokenizer.stream()
        self._clean = clean
        self._texts = [t for t in texts if t]
        self.raw = ""
        self.sent = ""

    def push(self, token: int) -> StreamedText:
        """The piece that ``token`` completes; may be empty."""
        self.raw += self._decoder.push(token)
        return self._send(self._clean(self.raw[: len(self.raw) - self._held()]))

    def finish(self) -> StreamedText:
        """What was held back; call once, at the end."""
        self.raw += self._decoder.flush()
        return self._send(self._clean(self.raw))

    def _held(self) -> int:
        """Length of the longest end of the raw text, after the last whole delimiter, that begins a delimiter."""
        longest = max((len(m) for m in self._texts), default=1) - 1
        whole = max((self.raw.rfind(m) + len(m) for m in self._texts if m in self.raw), default=0)
        for length in range(min(longest, len(self.raw) - whole), 0, -1):
            end = self.raw[-length:]
            if any(len(m) > length and m.startswith(end) for m in self._texts):
                return length
        return 0

    def _send(self, text: str) -> StreamedText:
        before, self.sent = self.sent, text
        return StreamedText(text[len(before) :]) if text.startswith(before) else StreamedText.restart(text)
