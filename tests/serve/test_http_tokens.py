"""What the engine tells and is told of single tokens: log-probabilities, and answers that follow a JSON schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from vlm.inference.batching.answer import Answer, TokenLogprob
from vlm.inference.engine import Engine
from vlm.serve.http.api import logprobs
from vlm.serve.http.app import create_app
from vlm.serve.http.models import Models

from .http_server import IMAGE, image_part, running, small_engine

QUESTION: Any = {"role": "user", "content": "What is in the image?"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["a", "ü", 3]},
        "boxes": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "kind", "boxes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    app = create_app(Models({"small": engine}))
    with running(app) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "small", "messages": [QUESTION], **GREEDY, **options})


def test_logprobs_of_a_chat(client: openai.OpenAI, engine: Engine) -> None:
    plain = ask(client).choices[0].message.content
    with_three: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    assert ask(client, **with_three).choices[0].message.content == plain
    with_three["extra_body"] = {"repetition_penalty": 1.0}  # no rule changes the order
    choice = ask(client, **with_three).choices[0]
    plain = choice.message.content
    content = choice.logprobs.content
    told = b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace")
    assert told.strip().startswith(plain) and len(content) <= 12
    for token in content:
        best = [other.logprob for other in token.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and token.logprob <= 0
        assert math.isclose(token.logprob, best[0], abs_tol=1e-5)
    chunks = list(ask(client, **with_three, stream=True))
    streamed = [t for c in chunks for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    assert streamed == content
    assert all(not t.top_logprobs for t in ask(client, logprobs=True).choices[0].logprobs.content)


def test_logprobs_are_those_of_the_model(client: openai.OpenAI, engine: Engine) -> None:
    prompt = engine.processor.encode_prompt("The box")
    choice = client.completions.create(model="small", prompt=prompt.ids, logprobs=2, **GREEDY).choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    assert found.text_offset[0] == 0 and found.text_offset[-1] + len(found.tokens[-1]) == sum(map(len, found.tokens))
    assert all(1 <= len(top) <= 2 for top in found.top_logprobs)
    with torch.inference_mode():
        scores = engine.model.llm.model(torch.tensor([prompt.ids])).logits[0, -1].log_softmax(-1)
    assert math.isclose(found.token_logprobs[0], float(scores.max()), abs_tol=1e-4)


def test_stop_texts_have_no_logprobs(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    stop = text[5:8]
    choice = ask(client, stop=stop, logprobs=True).choices[0]
    told = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode("utf-8", "replace").strip()
    assert told.startswith(choice.message.content) and len(told) < 8 + len(stop)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_follow_a_schema(client: openai.OpenAI, temperature: float) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    form = {"type": "json_schema", "json_schema": {"name": "boxes", "strict": True, "schema": SCHEMA}}
    content = [image_part(IMAGE), {"type": "text", "text": "Boxes?"}]
    options = {"response_format": form, "max_tokens": 200, "temperature": temperature, "seed": 3, "n": 3}
    for choice in ask(client, messages=[{"role": "user", "content": content}], **options).choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    streamed = ask(client, **{**options, "n": 1, "stream": True})
    jsonschema.validate(json.loads("".join(c.choices[0].delta.content or "" for c in streamed)), SCHEMA)
    cut = ask(client, **{**options, "max_tokens": 5}).choices[0]
    assert cut.finish_reason == "length" and cut.message.content.startswith("{")


def test_json_object(client: openai.OpenAI) -> None:
    found = ask(client, response_format={"type": "json_object"}, max_tokens=250, temperature=2, seed=1, n=4).choices
    whole = [choice for choice in found if choice.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(choice.message.content), dict) for choice in whole)
    assert all(choice.message.content.startswith("{") for choice in found)


def answer_of(engine: Engine, text: str, stops: tuple[str, ...] = ()) -> Answer:
    """An answer that was written, with a log-probability for each token."""
    answer = Answer(engine.processor.tokenizer, str.strip, list, stops)
    for k, token in enumerate([*engine.processor.tokenizer.encode(text), 2]):
        if answer.push(token, TokenLogprob(token, -k / 10, ((token, -k / 10), (5, -math.inf)))):
            break
    answer.end("stop")
    return answer


def test_tokens_that_a_text_shows(engine: Engine) -> None:
    tokenizer = engine.processor.tokenizer
    answer = answer_of(engine, "A red 日本 box")
    shown = logprobs.Shown(answer, tokenizer)
    assert [t.token for t in shown.take("A red", False)] == answer.ids[: len(tokenizer.encode("A red"))]
    rest = shown.take(answer.text, True)
    assert [t.token for t in rest] == answer.ids[len(tokenizer.encode("A red")) : -1]  # no end token
    stopped = answer_of(engine, "A red box", (" box",))
    assert stopped.text == "A red"
    assert [t.token for t in logprobs.Shown(stopped, tokenizer).take("A red", True)] == tokenizer.encode("A red")


def test_parts_of_characters(engine: Engine) -> None:
    tokenizer = engine.processor.tokenizer
    answer = answer_of(engine, "日")
    found = logprobs.for_chat(answer.logprobs[:-1], tokenizer)["content"]
    parts = [entry for entry in found if entry["token"].startswith("bytes:")]
    assert [entry["token"] for entry in parts] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"]
    assert bytes(b for entry in parts for b in entry["bytes"]).decode() == "日"
    assert found[0]["top_logprobs"][1]["logprob"] == -9999.0  # JSON has no infinity
    body, end = logprobs.for_completion(answer.logprobs[:-1], tokenizer, 7)
    assert body["text_offset"][0] == 7 and end == 7 + sum(map(len, body["tokens"]))
