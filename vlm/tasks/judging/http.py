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
        self.options, self.retries, self._pause, self._lock = options, 0, pause, Lock()
        self._headers = {"Content-Type": "application/json"}
        if options.key_env:
            if options.key_env not in os.environ:
                raise ConfigError(f"judge: the environment variable {options.key_env} is not set")
            self._headers["Authorization"] = f"Bearer {os.environ[options.key_env]}"

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
                    said = error.read(300).decode("utf-8", "replace")
                    raise UserError(
                        f"judge: {self.options.url} answers {error.code}: {said}",
                        fix="check url, model and key_env of run.benchmark.judge",
                    ) from None
            except (OSError, HTTPException, ValueError) as error:
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
            found: Any = json.loads(response.read())
        try:
            text = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"no chat completion: {str(found)[:80]}") from None
        return str(text or "")
