"""Log-probabilities in the two forms of the API.

They are those of the tokens that a client sees: an end token, and tokens of a stop text, have none. The text of a token
that is a part of a character is written ``bytes:\\xe4``.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.inference.batching.answer import Answer, TokenLogprob
    from vlm.processors.tokenizer.tokenizer import Tokenizer

LOWEST = -9999.0
"""What is written for minus infinity, which JSON does not have."""


class Shown:
    """How many tokens of an answer its text shows, as far as the text was sent."""

    def __init__(self, answer: Answer, tokenizer: Tokenizer) -> None:
        self._answer, self._tokenizer = answer, tokenizer
        self._taken = 0

    def take(self, text: str, is_whole: bool) -> list[TokenLogprob]:
        """Of the tokens that ``text``, the answer so far, shows, those that were not taken yet.

        ``is_whole``: the answer is over, so that a token counts of which ``text`` shows only the beginning.
        """
        first, more = self._taken, 0 if is_whole else 1

        def length(index: int) -> int:
            """Of the text before a token, or with it."""
            return len(self._tokenizer.decode(self._answer.ids[: index + more]).lstrip().rstrip("\ufffd"))

        places = range(first, len(self._answer.logprobs))
        self._taken += bisect_left(places, len(text) + more, key=length)
        return self._answer.logprobs[first : self._taken]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text."""
    data = tokenizer.bytes_of(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def for_chat(found: list[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = list(tokenizer.bytes_of(token))
        return {"token": token_text(tokenizer, token), "logprob": max(LOWEST, logprob), "bytes": data}

    content = [{**entry(t.token, t.logprob), "top_logprobs": [entry(*other) for other in t.top]} for t in found]
    return {"content": content, "refusal": None}


def for_completion(found: list[TokenLogprob], tokenizer: Tokenizer, offset: int) -> tuple[dict[str, Any], int]:
    """``choices[].logprobs`` of a completion whose first token begins at ``offset``, and where the next one begins."""
    texts = [token_text(tokenizer, t.token) for t in found]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    top = [{token_text(tokenizer, token): max(LOWEST, value) for token, value in t.top} or None for t in found]
    body = {
        "tokens": texts,
        "token_logprobs": [max(LOWEST, t.logprob) for t in found],
        "top_logprobs": top if any(top) else None,
        "text_offset": offsets,
    }
    return body, offset
