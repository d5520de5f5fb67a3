"""A judge at an OpenAI-compatible address: plain requests, several at a time, sent again when they fail."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from threading import Lock
from typing import Any

from vlm.common.errors import ConfigError, UserError
from vlm.tasks.judging.base import Case, JudgeOptions, Verdict, read_verdict

AGAIN = frozenset((408, 409, 429, 500, 502, 503, 504))
"""Statuses that may be different next time."""
LARGEST = 1 << 20
"""Bytes of a reply that are read; a verdict has a few hundred."""
PAUSE = 0.5
"""Seconds before a request is sent again, twice as many each time."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the named address and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class HttpJudge:
    """Asks ``{url}/chat/completions``. ``retries``: requests that were sent again so far."""

    def __init__(self, options: JudgeOptions, pause: float = PAUSE) -> None:
        """Raises ConfigError: the variable of the key is not set."""
        self.options, self.retries, self._pause, self._lock, self._key = options, 0, pause, Lock(), ""
        self._headers = {"Content-Type": "application/json"}
        if options.key_env:
            self._key = os.environ.get(options.key_env, "").strip()
            if not (self._key.isascii() and self._key.isprintable() and self._key):
                raise ConfigError(f"judge: the environment variable {options.key_env} is not set, or is not a key")
            self._headers["Authorization"] = f"Bearer {self._key}"

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """One per case, in order; equal cases are asked once.

        Raises UserError: the address refuses the request itself, e.g. its key or its model.
        """
        distinct = list(dict.fromkeys(cases))
        with ThreadPoolExecutor(max_workers=self.options.batch_size) as pool:
            found = dict(zip(distinct, pool.map(self._verdict, distinct), strict=True))
        return [found[case] for case in cases]

    def _verdict(self, case: Case) -> Verdict:
        problem = ""
        for attempt in range(self.options.retries + 1):
            if attempt:
                with self._lock:
                    self.retries += 1
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                return read_verdict(self._ask(case))
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}"
                if error.code not in AGAIN:
                    raise UserError(
                        f"judge: {self.options.url} answers {error.code}: {self._shown(error)}",
                        fix="check url, model and key_env of run.benchmark.judge",
                    ) from None
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                problem = str(error) or type(error).__name__
        return Verdict(None, "", f"the judge did not answer after {self.options.retries + 1} attempts ({problem})")

    def _ask(self, case: Case) -> str:
        """The text of a reply. Raises ValueError: it is not one of a chat completion."""
        options = self.options
        body = {
            "model": options.model,
            "messages": [{"role": "user", "content": case.prompt(options.prompt)}],
            "temperature": 0,
            "seed": options.seed,
            "max_tokens": options.max_new_tokens,
        }
        address = options.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), self._headers)
        with _OPENER.open(request, timeout=options.timeout) as response:
            reply = response.read(LARGEST + 1)
        if len(reply) > LARGEST:
            raise ValueError(f"the reply has more than {LARGEST:,} bytes")
        found: Any = json.loads(reply)
        try:
            text = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"no chat completion: {self._without_key(str(found))[:80]}") from None
        return self._without_key(str(text or ""))

    def _shown(self, error: urllib.error.HTTPError) -> str:
        """The beginning of what an address says with an error."""
        try:
            return self._without_key(error.read(2000).decode("utf-8", "replace"))[:300]
        except (OSError, HTTPException):
            return "nothing that can be read"

    def _without_key(self, text: str) -> str:
        """What an address says goes into logs and results, and some repeat the key."""
        return text.replace(self._key, "(key)") if self._key else text
