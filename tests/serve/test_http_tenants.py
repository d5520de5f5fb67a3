"""Two tenants of one server: neither gets an answer, or a cached prompt, that belongs to the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")

from vlm.serve.http.app import create_app
from vlm.serve.http.guard import Guard
from vlm.serve.http.keys import Keys
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

from .http_server import IMAGE, OTHER, image_part, small_engine
from .raw_http import serving

KEYS = {"a-key-of-alice-1234": "alice", "a-key-of-bob-123456": "bob"}
LIMITS = Limits()
TEXTS = ("What is in the image?", "Name a colour of the image.")
FILES = (IMAGE, OTHER)


@pytest.fixture
def clients() -> Iterator[list[httpx.Client]]:
    app = create_app(Models({"small": small_engine()}), LIMITS)
    with serving(Guard(app, LIMITS, Keys(KEYS)), LIMITS) as port:
        found = [
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30)
            for key in KEYS
        ]
        yield found
        for client in found:
            client.close()


def ask(client: httpx.Client, text: str, file: Any) -> dict[str, Any]:
    content = [image_part(file), {"type": "text", "text": text}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def text_of(found: dict[str, Any]) -> str:
    return str(found["choices"][0]["message"]["content"])


def cached(found: dict[str, Any]) -> int:
    return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, Any], str]:
    """The answers of an engine that has seen nothing else."""
    options: Any = {"max_new_tokens": 12, "do_sample": False}
    questions = itertools.product(TEXTS, FILES)
    return {(text, file): small_engine().chat(text, image=file, **options) for text, file in questions}


def test_the_questions_have_different_answers(expected: dict[tuple[str, Any], str]) -> None:
    assert len(set(expected.values())) == len(expected)  # else the tests below could not fail


def test_the_same_text_about_different_images_and_the_reverse(
    clients: list[httpx.Client], expected: dict[tuple[str, Any], str]
) -> None:
    alice, bob = clients
    for text, file in expected:
        other = FILES[1 - FILES.index(file)]
        assert text_of(ask(alice, text, file)) == expected[text, file]
        assert text_of(ask(bob, text, other)) == expected[text, other]
    for text, file in expected:
        other = TEXTS[1 - TEXTS.index(text)]
        assert text_of(ask(alice, text, file)) == expected[text, file]
        assert text_of(ask(bob, other, file)) == expected[other, file]


def test_all_at_once(clients: list[httpx.Client], expected: dict[tuple[str, Any], str]) -> None:
    questions = [(client, *question) for question in expected for client in clients] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: text_of(ask(*question)), questions))
    assert found == [expected[text, file] for _, text, file in questions]


def test_a_prompt_is_remembered_for_its_own_tenant(clients: list[httpx.Client]) -> None:
    alice, bob = clients
    assert cached(ask(alice, TEXTS[0], IMAGE)) == 0
    again = cached(ask(alice, TEXTS[0], IMAGE))
    assert again > 0
    assert cached(ask(bob, TEXTS[0], IMAGE)) == 0
    assert cached(ask(bob, TEXTS[0], IMAGE)) == again
    assert cached(ask(alice, TEXTS[0], OTHER)) < again
