"""``vlm serve`` as a process of its own, and clients that tell what became of each of their requests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
RANDOM = ("--options", "model.ckpt=", "--allow-random")
"""The bridge of the model that ships with the package is random; what it answers does not matter here."""


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait_until_writing(self, seconds: float = 60) -> None:
        """Return while answers are being written."""
        end = time.monotonic() + seconds
        while not re.search(r"^vlm_answers_running\{.*\} [1-9]", httpx.get(f"{self.url}/metrics").text, re.MULTILINE):
            assert time.monotonic() < end

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)


@contextmanager
def served(
    folder: Path, *arguments: str, models: Sequence[str] = ("tiny/eval",), name: str = "server"
) -> Iterator[Served]:
    """A server on a free port; it is ended with the block."""
    log = folder / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as out:
        command = [sys.executable, "-m", "vlm.cli", "serve", *models, *RANDOM, "--port", "0", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, text=True, cwd=folder)
    try:
        end = time.monotonic() + 240
        while not (found := re.search(r"at (http://[^/\s]+)/v1", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield Served(process, found[1], log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def body(number: int, tokens: int, stream: bool) -> dict[str, Any]:
    return {
        "prompt": f"Number {number} is",  # raw: the chat template would end answers after a few tokens
        "max_tokens": tokens,
        "min_tokens": tokens,
        "stop": ["no such text"],
        "temperature": 0,
        "stream": stream,
    }


class Clients:
    """Clients that ask one question after another, half of them streaming, until they are refused or stopped.

    Attributes:
        ends: how requests ended: ``answered``, ``refused`` (503, or nobody listens), or what else was seen, which no
            client should see.
        late: answers that came after :attr:`since` was set.
    """

    def __init__(self, url: str, count: int, tokens: int = 24) -> None:
        self.url, self.tokens = url, tokens
        self.ends: Counter[str] = Counter()
        self.since: float | None = None
        self.late = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def start(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def wait_for(self, answers: int, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self.ends["answered"] < answers:
            assert time.monotonic() < end, self.ends
            time.sleep(0.02)

    def join(self, stop: bool = False) -> None:
        if stop:
            self._stop.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as client:
            asked = 0
            while not self._stop.is_set():
                asked += 1
                end = self._ask(client, body(100 * number + asked, self.tokens, stream=number % 2 == 0))
                with self._lock:
                    self.ends[end] += 1
                    self.late += end == "answered" and self.since is not None
                if end != "answered":
                    return

    @staticmethod
    def _ask(client: httpx.Client, request: dict[str, Any]) -> str:
        try:
            response = client.post("/v1/completions", json=request)
        except httpx.ConnectError:
            return "refused"
        except httpx.HTTPError as error:
            return f"lost: {type(error).__name__}: {error}"
        if response.status_code == 503:
            return "refused" if "retry-after" in response.headers else "503 without Retry-After"
        if response.status_code != 200:
            return f"{response.status_code}: {response.text[:200]}"
        whole = response.text.endswith("data: [DONE]\n\n") if request["stream"] else "usage" in response.json()
        return "answered" if whole else f"cut: {response.text[-200:]}"
