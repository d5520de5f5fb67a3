"""Answers that follow a JSON schema: for each token, those that may come next (home of llguidance)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm.common.errors import PromptError, UserError
from vlm.common.types import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.processors.tokenizer.tokenizer import Tokenizer

BLANKS = r"\x20|\x0A\x20{0,16}"
"""White space between the signs of JSON: a blank, or a new line and its indentation; without a limit a weak model
may write little else."""

MAX_SCHEMA = 1 << 18
"""Characters of a schema."""


class Vocabulary:
    """The vocabulary of an engine as llguidance reads it; make one per engine, and share it among threads.

    Attributes:
        size: rows of the language model's head, the length of every mask.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int], banned: Sequence[int] = ()) -> None:
        """``banned``: tokens that the engine never writes.

        Raises UserError: llguidance is not installed, or nothing ends an answer.
        """
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise UserError(
                "answers in JSON need the package llguidance", fix='pip install "vlm-compose[serve]"'
            ) from None
        self.size, self.ends = size, tuple(end for end in ends if 0 <= end < size)
        if not self.ends:
            raise UserError("this model has no end token, so it cannot end an answer in JSON")
        never = {*banned, *self.ends}
        tokens = [tokenizer.bytes_of(i) if i not in never and tokenizer.is_plain(i) else b"" for i in range(size)]
        spelled = _Spelled(tokenizer, tokens, self.ends)
        if not spelled.spells(bytes(range(32, 127))):
            raise UserError("this model's vocabulary cannot write every letter of JSON")
        self._tokens = LLTokenizer(TokenizerWrapper(spelled), eos_token=list(self.ends))

    @classmethod
    def of(cls, engine: Engine) -> Vocabulary:
        """The vocabulary of an engine, with whatever ends its answers."""
        tokenizer = engine.processor.tokenizer
        begin = tokenizer.pad if tokenizer.bos is None else tokenizer.bos
        generation = engine.default_generation()
        prompt = engine.prompt([Example([begin], [IGNORE_INDEX])], generation)
        _, stopping = engine.limits(generation, prompt)
        return cls(tokenizer, engine.model.llm.vocab_size, stopping.eos, stopping.banned)

    def constraint(self, schema: Mapping[str, Any] | bool) -> SchemaConstraint:
        """What one answer must follow.

        Raises PromptError: a schema that is not valid, that asks for what llguidance does not know, or that this
            vocabulary cannot spell.
        """
        from llguidance import LLMatcher

        try:
            text = json.dumps(schema, allow_nan=False)
            if len(text) > MAX_SCHEMA:
                raise PromptError(f"JSON schema: {len(text):,} characters, allowed are {MAX_SCHEMA:,}")
            grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": BLANKS})
        except (ValueError, RecursionError) as error:
            raise _refused(str(error) or type(error).__name__) from None
        if reason := LLMatcher.validate_grammar(grammar, self._tokens):
            raise _refused(reason)
        result = SchemaConstraint(LLMatcher(self._tokens, grammar, log_level=0), self)
        if not bool(result.allowed().any()):
            raise PromptError("JSON schema: this model's vocabulary cannot spell an answer that follows it")
        return result


class SchemaConstraint:
    """A :class:`~vlm.inference.batching.answer.TokenConstraint` of one answer."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._over = False

    def allowed(self) -> Tensor:
        """Bool ``[vocab]``. Where nothing can follow, end tokens are allowed, complete or not."""
        if not self._over:
            found = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) != 0
            if bool(found.any()) and not self._matcher.is_error():
                return found
        found = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        found[list(self._vocabulary.ends)] = True
        return found

    def accept(self, token: int) -> None:
        """Take note of the next token; after one that was not allowed, the answer may only end."""
        if not self._over:
            self._over = token in self._vocabulary.ends or not self._matcher.consume_token(token)

    @property
    def may_end(self) -> bool:
        """Whether what was accepted so far follows the schema as it is."""
        return bool(self._matcher.is_accepting())


class _Spelled:
    """What llguidance reads of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], ends: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens))) if token}
        self._longest = max(map(len, self._ids), default=0)
        self.tokens = tokens
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos
        self.special_token_ids = list(ends)

    def spells(self, text: bytes) -> bool:
        """Whether every byte has a token of its own."""
        return all(bytes([byte]) in self._ids for byte in text)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text that must come next."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode_inside(data.decode("utf-8", "replace"))
        if b"".join(self.tokens[i] if i < len(self.tokens) else b"" for i in ids) == data:
            return ids
        return self._longest_first(data)  # e.g. a tokenizer that always begins with a space

    def _longest_first(self, data: bytes) -> list[int]:
        ids, place = list[int](), 0
        while place < len(data):
            ends = range(min(place + self._longest, len(data)), place, -1)
            end = next((end for end in ends if data[place:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[place:end]])
            place = end
        return ids


def _refused(reason: str) -> PromptError:
    return PromptError(f"JSON schema: {' '.join(reason.split())[:500]}", fix="change the schema, or leave that out")
