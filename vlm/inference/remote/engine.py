"""An engine whose language model runs in a vLLM server."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlm.common.errors import BusyError, NotFiniteError, PromptError, UserError
from vlm.common.types import MEDIA_TOKEN
from vlm.inference.batching.answer import Answer, Asking, Finish, TokenLogprob
from vlm.inference.batching.prompts import Prompts
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.inference.ranking import Normaliser, Ranking
from vlm.inference.remote.client import Events, RemoteError, Server
from vlm.inference.remote.request import (
    check_options,
    ids_field,
    lacking,
    options_of,
    rows_field,
    without_lacking,
)
from vlm.inference.stopping import StopCriteria, StopSequences, ends_with
from vlm.inference.streaming import cleaner, marks_of
from vlm.processors.messages import Conversation, to_messages

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.common.types import Features
    from vlm.config.api import Config
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

log = logging.getLogger(__name__)

SAMPLE = "The image shows a red boat on the river, 37 people and a café."
"""Text that the server must split and continue as this composition expects."""

NEAR = 0.1
"""How much the log-probability of a token may differ between a prompt of ids and the same as rows."""


class RemoteAnswer(Answer):
    """An answer that the server writes; to cancel it is to hang up."""

    events: Events | None = None

    def cancel(self) -> None:
        """Write no more; what was written stays. From any thread."""
        super().cancel()
        if self.events is not None:
            self.events.close()


class RemoteEngine(Engine):
    """Images become rows here; a vLLM server continues them. Made by :func:`vlm.inference.remote.connect`.

    Attributes:
        server: where the language model runs.
    """

    def __init__(
        self,
        model: VLM,
        processor: Processor,
        server: Server,
        *,
        config: Config | None = None,
        device: torch.device | str = "cpu",
        allow_urls: bool = False,
    ) -> None:
        super().__init__(model, processor, config=config, device=device, allow_urls=allow_urls)
        self.server = server
        self._counting = threading.Lock()
        base = super().default_generation()
        if dropped := lacking(base):
            named = "; ".join(f"{name} {vars(base)[name]}: {why}" for name, why in dropped.items())
            log.warning("%s: answers are written without %s", server.address, named)

    def __repr__(self) -> str:
        return f"<vlm.RemoteEngine: {' -> '.join(self.composition)} at {self.server.address}>"

    @property
    def positions(self) -> int | None:
        """The shorter of the language model's context and what the server takes."""
        known = [n for n in (super().positions, self.server.positions) if n]
        return min(known, default=None)

    def default_generation(self, base: Generation = CHAT) -> Generation:
        """As of any engine, without what vLLM has no equal for."""
        return without_lacking(super().default_generation(base))

    def _encode(self, pixels: Tensor, *more: Any) -> Features:
        return Prompts._encode(self, pixels, *more)  # nothing else is computed here

    @property
    def batches(self) -> bool:
        """The server writes answers together."""
        return True

    # ---- asking

    def submit(
        self,
        messages: Conversation,
        generation: Generation | None = None,
        asking: Asking | None = None,
        *,
        image: Any = None,
        video: Any = None,
        **options: Any,
    ) -> Answer:
        """See ``Engine.submit``. Images are encoded before this returns; a fault of the server fails the answer."""
        conversation = to_messages(messages, image, video, allow_urls=self.allow_urls)
        return self._ask(conversation, self.options(generation, **options), asking or Asking())

    def submit_all(
        self, conversations: Sequence[Conversation], generation: Generation, asking: Asking | None = None
    ) -> list[Answer]:
        """See ``Engine.submit_all``; asked one after the other."""
        answers: list[Answer] = []
        try:
            for conversation in conversations:
                answers.append(self.submit(conversation, generation, asking))
        except UserError:
            for answer in answers:
                answer.cancel()
            raise
        return answers

    def _together(self, generation: Generation) -> bool:
        """Always; raises UserError where the server cannot."""
        check_options(generation, Asking())
        return True

    def _written(
        self,
        conversations: Sequence[Conversation],
        generation: Generation,
        at_once: int,
        stops: StopSequences | None = None,
    ) -> Iterator[Answer]:
        pending: deque[Answer] = deque()
        try:
            for conversation in conversations:
                if len(pending) == at_once:
                    yield self._finished(pending.popleft())
                pending.append(self._ask(conversation, generation, Asking(), stops))
            while pending:
                yield self._finished(pending.popleft())
        finally:
            for answer in pending:
                answer.cancel()

    def _finished(self, answer: Answer, *_: Any) -> Answer:
        answer.result()
        return answer

    def rank(
        self,
        conversations: Sequence[Conversation],
        candidates: Sequence[Sequence[str]],
        normalise: Normaliser = "published",
    ) -> list[Ranking]:
        """Raises UserError: vLLM tells no log-probabilities of a prompt that has rows."""
        raise _untold()

    def log_likelihoods(
        self, conversations: Sequence[Conversation], endings: Sequence[Sequence[str]], *, end: bool = False
    ) -> list[list[float]]:
        """Raises UserError: as :meth:`rank`."""
        raise _untold()

    def _ask(
        self, conversation: Conversation, generation: Generation, asking: Asking, stops: StopSequences | None = None
    ) -> Answer:
        check_options(generation, asking)
        ((prompt, ids),) = self.rows([conversation], generation, asking.tenant)
        rows = prompt.embeds[0]
        if self.positions is not None and len(rows) >= self.positions:
            raise PromptError(f"the question takes {len(rows)} positions, but the model has {self.positions}")
        with_media = MEDIA_TOKEN in ids or len(ids) != len(rows)  # or something was cut
        if with_media:
            try:
                field = rows_field(rows, self.model.llm.hidden_size)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}", fix="run the language model here: it names the part") from error
        else:
            field = ids_field(ids, self.model.llm.vocab_size)
        limited, ends = self.limits(generation, prompt, stops)
        template = self.processor.template
        cuts = [*(generation.stop or ()), *(template.config.truncate_at if generation.cleanup == "chat" else ())]
        answer = RemoteAnswer(
            self.processor.tokenizer,
            cleaner(template, generation.cleanup),
            lambda: marks_of(template),
            tuple(filter(None, cuts)) if stops is None else (),
        )
        answer.usage.prompt = len(rows)
        body = {"model": self.server.model, **field, **options_of(limited, ends, asking)}
        self._count(asked=1, running=1, prompt_tokens=len(rows))
        threading.Thread(
            target=self._write, args=(answer, body, limited, ends, asking), name="vlm-remote", daemon=True
        ).start()
        return answer

    # ---- what comes back

    def _write(
        self, answer: RemoteAnswer, body: dict[str, Any], generation: Generation, ends: StopCriteria, asking: Asking
    ) -> None:
        """Read one answer to its end."""
        deadline = None if asking.timeout is None else answer.times.asked + asking.timeout
        try:
            with Events(self.server, self.server.patience) as events:
                answer.events = events
                if answer.is_wanted:
                    events.ask("POST", "/v1/completions", body, deadline)
                    self._read(answer, events.until(deadline), ends, asking.logprobs)
            whole: Finish = "length" if len(answer.ids) >= generation.max_new_tokens else "stop"
            answer.end(whole if answer.is_wanted else "cancelled")
        except TimeoutError:
            answer.end("timeout")
        except (RemoteError, BusyError) as error:
            if answer.is_wanted:
                answer.fail(error)
            else:  # it hung up itself
                answer.end("cancelled")
        finally:
            if not answer.is_over:  # a bug: whoever waits must hear of it, too
                answer.fail(sys.exc_info()[1] or RuntimeError("the answer was left"))
            self._counted(answer)

    def _read(
        self, answer: RemoteAnswer, events: Iterator[dict[str, Any]], ends: StopCriteria, logprobs: int | None
    ) -> None:
        """Push the tokens of the events into the answer, and end it where a text or sequence stops it."""
        for event in events:
            if usage := event.get("usage"):
                answer.usage.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            for choice in event.get("choices") or ():
                for token, logprob in _tokens(choice, logprobs):
                    if not answer.is_wanted:
                        answer.end("cancelled")
                        return
                    if answer.push(token, logprob) or token in ends.eos or ends_with(answer.ids, ends.stops):
                        answer.end("stop")
                        return
                if (finish := choice.get("finish_reason")) not in (None, "stop", "length"):
                    raise RemoteError(f"{self.server.address} ended an answer: {finish}")

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, number in more.items():
                setattr(self._stats, name, vars(self._stats)[name] + number)

    def _counted(self, answer: Answer) -> None:
        names = {"stop": "stopped", "length": "at_length", "cancelled": "cancelled", "timeout": "timed_out"}
        ended = names[answer.finish] if answer.finish is not None else "failed"
        tokens = {"written_tokens": answer.usage.written, "cached_tokens": answer.usage.cached}
        self._count(running=-1, **{ended: 1}, **tokens)

    # ---- whether it is the right server

    def check_server(self) -> None:
        """Check that the server splits text into the same tokens, and has the LLM of this composition.

        Raises UserError: it does not, or was started without ``--enable-prompt-embeds``.
        """
        tokenizer, where = self.processor.tokenizer, self.server.address
        body = {"model": self.server.model, "prompt": SAMPLE, "add_special_tokens": False}
        theirs = [int(i) for i in self.server.call("POST", "/tokenize", body).get("tokens") or ()]
        if any(not 0 <= i < tokenizer.vocab_size for i in theirs) or tokenizer.decode(theirs).strip() != SAMPLE:
            raise UserError(
                f"{where} has another tokenizer: it splits {SAMPLE!r} into {theirs[:12]}...",
                fix="serve the LLM that model.llm of the composition names",
            )
        ids = tokenizer.encode(SAMPLE)
        with torch.inference_mode():
            rows = self.model.llm.embed(torch.tensor(ids, device=self.device))
        by_ids = self._first(ids_field(ids, self.model.llm.vocab_size))
        by_rows = self._first(rows_field(rows, self.model.llm.hidden_size))
        if abs(by_ids.logprob - by_rows.logprob) > NEAR:
            raise UserError(
                f"{where} has another LLM: it goes on with token {by_ids.token} (log-probability {by_ids.logprob:.3f}) "
                f"after the ids of a text, and with {by_rows.token} ({by_rows.logprob:.3f}) after its embeddings here",
                fix="serve the weights that model.weights of the composition names",
            )

    def _first(self, field: dict[str, Any]) -> TokenLogprob:
        """The likeliest first token after a prompt."""
        greedy = Generation(max_new_tokens=1, do_sample=False, repetition_penalty=1.0)
        options = options_of(greedy, StopCriteria((), 0, 0), Asking(logprobs=0))
        body = {"model": self.server.model, **field, **options}
        found: list[tuple[int, TokenLogprob | None]] = []
        with Events(self.server, self.server.patience) as events:
            events.ask("POST", "/v1/completions", body)
            for event in events.until(None):
                found += [one for choice in event.get("choices") or () for one in _tokens(choice, 0)]
        if len(found) != 1 or found[0][1] is None:
            raise RemoteError(f"{self.server.address} answers {len(found)} tokens where one was asked for")
        return found[0][1]


def _tokens(choice: dict[str, Any], logprobs: int | None) -> list[tuple[int, TokenLogprob | None]]:
    """The tokens of a part of an answer. Raises RemoteError: there is text without ids, as older servers send it."""
    ids = choice.get("token_ids")
    if ids is None and choice.get("text"):
        raise RemoteError("the server sends no token ids", fix="use vLLM 0.33 (return_token_ids)")
    ids, told = [int(i) for i in ids or ()], choice.get("logprobs")
    if not told:
        return [(token, None) for token in ids]
    values, tops = told["token_logprobs"], told.get("top_logprobs") or [None] * len(ids)
    return [(t, _logprob(t, p, top or {}, logprobs or 0)) for t, p, top in zip(ids, values, tops, strict=True)]


def _logprob(token: int, value: float, top: dict[str, float], count: int) -> TokenLogprob:
    """vLLM names tokens ``token_id:7``, and lists the written one besides the ``count`` likeliest ones."""
    listed = sorted(((int(name.rpartition(":")[2]), p) for name, p in top.items()), key=lambda one: -one[1])
    return TokenLogprob(token, value, tuple(listed[:count]))


def _untold() -> UserError:
    return UserError(
        "candidates cannot be ranked by a vLLM server: it tells no log-probabilities of a prompt with images",
        fix="run the language model here (without --engine vllm)",
    )
