"""The OpenAI API in front of an engine whose language model runs in another server: the answers of the plain engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from vlm.common.types import Image, Message
from vlm.inference.engine import Engine
from vlm.inference.remote import connect
from vlm.serve.http.app import create_app
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

from ..inference.remote.stand_in import StandIn
from ..inference.remote.stand_in import running as serving
from ..inference.small import write_config
from .http_server import IMAGE, image_part, running

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "model": "small"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, StandIn, Any]]:
    """The plain engine, the language model's server, and a client of the front."""
    torch.set_num_threads(1)
    source: Path = write_config(tmp_path_factory.mktemp("chain"))
    plain = Engine.load(source)
    stand_in = StandIn(plain)
    with (
        serving(stand_in) as address,
        running(create_app(Models({"small": connect(source, address)}), Limits())) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield plain, stand_in, client
    assert stand_in.faults == []


def test_answers_whole_and_streamed(chain) -> None:
    plain, _, client = chain
    greedy = plain.default_generation().replace(do_sample=False, max_new_tokens=8, repetition_penalty=1.0)
    wanted = plain.generate([[Message("user", [Image(str(IMAGE)), "What is it?"])]], greedy)[0]
    asked = [{"role": "user", "content": [image_part(IMAGE), {"type": "text", "text": "What is it?"}]}]
    found = client.chat.completions.create(messages=asked, logprobs=True, top_logprobs=2, **GREEDY)
    assert found.choices[0].message.content == wanted and found.choices[0].finish_reason in ("stop", "length")
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = client.chat.completions.create(messages=asked, stream=True, **GREEDY)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == wanted


def test_what_the_other_server_cannot_do_or_says_is_told(chain) -> None:
    _, stand_in, client = chain
    asked = [{"role": "user", "content": "Hi."}]
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="must follow a schema"):
        client.chat.completions.create(messages=asked, response_format=schema, **GREEDY)
    for refusal, kind in (((503, "overloaded"), openai.RateLimitError), ((500, "/secret/path"), openai.APIStatusError)):
        stand_in.refusal = refusal
        with pytest.raises(kind) as told:
            client.chat.completions.create(messages=asked, **GREEDY)
        assert "/secret/path" not in str(told.value)
        assert told.value.status_code == {503: 429, 500: 502}[refusal[0]]
    stand_in.refusal = None
    assert client.chat.completions.create(messages=asked, **GREEDY).choices
