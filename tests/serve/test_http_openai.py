"""The official client against a real server: answers over HTTP are those of the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from vlm.common.types import Image, Message, Video
from vlm.inference.engine import Engine
from vlm.serve.http.app import create_app
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

from .http_server import IMAGE, OTHER, data_url, image_part, running, small_engine, video_file

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
QUESTION = {"role": "user", "content": "What is in the image?"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small_engine()


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with running(create_app(Models({"small": engine, "org/second": engine}), Limits(choices=4))) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as found:
        yield found


def expected(engine: Engine, messages: Any, **options: Any) -> str:
    generation = engine.default_generation().replace(do_sample=False, max_new_tokens=12, **options)
    return engine.generate([messages], generation)[0]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], list[Message]]]:
    """Conversations as a client and as Python writes them."""
    video = video_file(tmp_path_factory.mktemp("video"))
    shown = [image_part(IMAGE), {"type": "text", "text": "What is it?"}]
    return {
        "text": (
            [{"role": "developer", "content": "Be brief."}, QUESTION],
            [Message("system", "Be brief."), Message("user", str(QUESTION["content"]))],
        ),
        "image": ([{"role": "user", "content": shown}], [Message("user", [Image(str(IMAGE)), "What is it?"])]),
        "turns": (
            [
                {"role": "user", "content": shown},
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": [{"type": "text", "text": "And "}, image_part(OTHER, "image/jpeg")]},
            ],
            [
                Message("user", [Image(str(IMAGE)), "What is it?"]),
                Message("assistant", "A cat."),
                Message("user", ["And ", Image(str(OTHER))]),
            ],
        ),
        "video": (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": data_url(video, "video/mp4")}},
                        {"type": "text", "text": "What moves?"},
                    ],
                }
            ],
            [Message("user", [Video(str(video)), "What moves?"])],
        ),
    }


@pytest.mark.parametrize("kind", ["text", "image", "turns", "video"])
def test_answers_are_those_of_the_engine(
    client: openai.OpenAI, engine: Engine, conversations: dict[str, Any], kind: str
) -> None:
    messages, own = conversations[kind]
    wanted = expected(engine, own)
    assert wanted
    whole = client.chat.completions.create(model="small", messages=messages, n=2, **GREEDY)
    assert [choice.message.content for choice in whole.choices] == [wanted, wanted]
    assert whole.usage is not None and whole.usage.prompt_tokens == engine.length(own)
    chunks = list(
        client.chat.completions.create(
            model="small", messages=messages, n=2, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    texts, finished = ["", ""], ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished[choice.index] = choice.finish_reason or finished[choice.index]
    assert texts == [wanted, wanted] and finished == [c.finish_reason for c in whole.choices]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"


def test_finish_reasons(client: openai.OpenAI, engine: Engine) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="small", messages=[QUESTION], **{**GREEDY, **options})  # type: ignore[arg-type]

    cut = ask(max_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    assert ask(max_tokens=9, max_completion_tokens=3).choices == cut.choices
    text = ask().choices[0].message.content
    stop = text[4:6]
    stopped = ask(stop=stop).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == text[: text.index(stop)].rstrip()
    streamed = ask(stop=["never", stop], stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == text[: text.index(stop)].rstrip()


def test_seeds_of_choices(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[Any]:
        found = client.chat.completions.create(
            model="small",
            messages=[QUESTION],
            temperature=1.5,
            seed=seed,
            n=n,
            max_tokens=8,  # type: ignore[list-item]
        )
        return [choice.message.content for choice in found.choices]

    assert len(set(texts(5, 3))) == 3
    assert texts(5, 3) == texts(5, 1) + texts(6, 1) + texts(7, 1)


def test_completions(client: openai.OpenAI, engine: Engine) -> None:
    wanted = [
        expected(engine, engine.processor.encode_prompt(text), cleanup="raw", stop=()) for text in ("The box", "A")
    ]
    found = client.completions.create(model="small", prompt=["The box", "A"], temperature=0, max_tokens=12)
    assert [choice.text for choice in found.choices] == wanted
    ids = [engine.processor.encode_prompt(text).ids for text in ("The box", "A")]
    assert [c.text for c in client.completions.create(model="small", prompt=ids, **GREEDY).choices] == wanted
    assert found.usage is not None and found.usage.prompt_tokens == sum(map(len, ids))
    streamed = list(client.completions.create(model="small", prompt="The box", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in streamed) == wanted[0]
    assert streamed[-1].choices[0].finish_reason == found.choices[0].finish_reason


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small", "org/second"]
    assert client.models.retrieve("org/second").id == "org/second"
    assert client.chat.completions.create(model="org/second", messages=[QUESTION], **GREEDY).model == "org/second"  # type: ignore[list-item]
    with pytest.raises(openai.NotFoundError, match="'larger' does not exist; there are: org/second, small") as caught:
        client.chat.completions.create(model="larger", messages=[QUESTION])  # type: ignore[list-item]
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_tokenize_counts_visual_tokens(address: str, engine: Engine, conversations: dict[str, Any]) -> None:
    messages, own = conversations["turns"]
    found = httpx.post(f"{address}/tokenize", json={"messages": messages}).json()
    assert found["count"] == len(found["tokens"]) == engine.length(own)
    assert found["tokens"].count(-200) == 6 and found["max_model_len"] == engine.positions
    raw = httpx.post(f"{address}/tokenize", json={"prompt": "The box"}).json()["tokens"]
    assert raw == engine.processor.encode_prompt("The box").ids
    assert httpx.post(f"{address}/detokenize", json={"tokens": raw[1:]}).json() == {"prompt": "The box"}


def test_error_in_the_middle_of_a_stream(
    client: openai.OpenAI, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    def failing(*args: Any, **kwargs: Any) -> Any:
        answer = submit(*args, **kwargs)
        push = answer.push

        def second(token: int, logprob: Any = None) -> bool:
            if len(answer.ids) > 3:
                raise RuntimeError("/secret/path")
            return push(token, logprob)

        answer.push = second  # type: ignore[method-assign]
        return answer

    monkeypatch.setattr(engine, "submit", failing)
    stream = client.chat.completions.create(model="small", messages=[QUESTION], stream=True, **GREEDY)  # type: ignore[list-item]
    with pytest.raises(openai.APIError, match="internal error") as caught:
        list(stream)
    assert "secret" not in json.dumps(caught.value.body)
    with pytest.raises(openai.InternalServerError, match="internal error"):
        client.chat.completions.create(model="small", messages=[QUESTION], **GREEDY)  # type: ignore[list-item]


@pytest.mark.parametrize("streamed", [True, False])
def test_client_that_goes_away_cancels(
    address: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    submit, answers = engine.submit, []

    def slow(*args: Any, **kwargs: Any) -> Any:
        answer = submit(*args, **kwargs)
        push = answer.push

        def later(token: int, logprob: Any = None) -> bool:
            time.sleep(0.05)
            return push(token, logprob)

        answer.push = later  # type: ignore[method-assign]
        answers.append(answer)
        return answer

    monkeypatch.setattr(engine, "submit", slow)
    body = {"messages": [QUESTION], "stream": streamed, "temperature": 0, "max_tokens": 200, "min_tokens": 200}
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.stream(
            "POST", f"{address}/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.25)
        ) as response,
    ):
        for _ in response.iter_lines():
            raise httpx.ReadTimeout("the client has enough")
    end = time.monotonic() + 5
    while not answers[0].is_over and time.monotonic() < end:
        time.sleep(0.01)
    assert answers[0].finish == "cancelled" and len(answers[0].ids) < 100
