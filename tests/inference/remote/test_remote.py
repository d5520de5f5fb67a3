"""The engine over a vLLM server, against a stand-in that runs the same language model: equal answers, clear faults."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from PIL import Image as Images

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from vlm.common.errors import BusyError, ConfigError, NotFiniteError, PromptError, UserError
from vlm.common.types import Image, Message, Text
from vlm.inference.batching.answer import Asking
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.remote import connect
from vlm.inference.remote.client import RemoteError, Server
from vlm.inference.remote.engine import RemoteEngine
from vlm.inference.remote.request import rows_field
from vlm.inference.streaming import join

from ..small import write_config
from .stand_in import StandIn, running

GREEDY = Generation(max_new_tokens=6, do_sample=False, repetition_penalty=1.0)
RED, BLUE = Images.new("RGB", (50, 40), "red"), Images.new("RGB", (40, 60), "blue")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    return write_config(tmp_path_factory.mktemp("remote"))


@pytest.fixture(scope="module")
def plain(source) -> Engine:
    return Engine.load(source)


@pytest.fixture(scope="module")
def address(plain) -> Iterator[tuple[str, StandIn]]:
    stand_in = StandIn(plain)
    with running(stand_in) as where:
        yield where, stand_in


@pytest.fixture
def server(address) -> Iterator[StandIn]:
    stand_in = address[1]
    stand_in.faults.clear(), stand_in.bodies.clear(), stand_in.written.clear()
    stand_in.hung_up, stand_in.pause, stand_in.dies_after, stand_in.refusal = 0, 0.0, None, None
    stand_in.takes_rows, stand_in.key, stand_in.shift = True, None, 0.0
    yield stand_in
    assert stand_in.faults == []


@pytest.fixture(scope="module")
def connected(source, address) -> RemoteEngine:
    return connect(source, address[0])


@pytest.fixture
def remote(connected, server) -> RemoteEngine:
    return connected


def asked() -> list:
    """Text, an image, two of them, and a longer conversation."""
    turns = [
        Message("user", (Image(RED), Text("What is it?"))), Message("assistant", (Text("A field."),)),
        Message("user", (Text("And this?"), Image(BLUE))),
    ]  # fmt: skip
    one = [Message("user", (Image(RED), Text("What color?")))]
    return ["Hello there.", one, [Message("user", (Image(BLUE), Image(RED), Text("Compare them.")))], turns]


def wait_for(done) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_answers_are_those_of_the_plain_engine(plain, remote, server) -> None:
    expected = plain.generate(asked(), GREEDY)
    assert remote.generate(asked(), GREEDY) == expected
    assert [answer.result() for answer in remote.submit_all(asked(), GREEDY)] == expected
    assert remote.generate_ids(asked(), GREEDY) == plain.generate_ids(asked(), GREEDY)
    assert [join(remote.stream(c, GREEDY)) for c in asked()] == expected
    assert remote.chat("What color?", image=RED, generation=GREEDY) == expected[1]
    talk = remote.conversation(generation=GREEDY)
    theirs = plain.conversation(generation=GREEDY)
    for question, image in (("What is it?", RED), ("Why?", None)):
        assert talk.chat(question, image) == theirs.chat(question, image)


def test_text_travels_as_ids_and_images_as_rows(remote, server) -> None:
    remote.generate(asked(), GREEDY)
    assert sorted("prompt" in body for body in server.bodies) == [False, False, False, True]


def test_only_the_embeddings_of_the_llm_are_loaded(remote) -> None:
    own = {name for name, p in remote.model.llm.named_parameters() if not p.is_meta}
    assert own == {"model.model.embed_tokens.weight"}
    assert not any(p.is_meta for part in (remote.model.vision, remote.model.bridge) for p in part.parameters())


def test_many_at_a_time_from_threads_and_tasks(plain, remote, server) -> None:
    expected = plain.generate(asked(), GREEDY)
    found: dict = {}

    async def one(k: int) -> str:
        return join([piece async for piece in remote.submit(asked()[k], GREEDY)])

    async def all_of_them() -> list:
        return await asyncio.gather(*map(one, range(4)))

    threads = [threading.Thread(target=lambda k=k: found.update({k: remote.chat(asked()[k], generation=GREEDY)}))
               for k in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    assert asyncio.run(all_of_them()) == expected
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(4)] == expected
    wait_for(lambda: remote.stats().running == 0)
    stats = remote.stats()
    assert stats.asked == stats.stopped + stats.at_length + stats.cancelled + stats.failed


def test_stop_texts_are_not_shown_and_end_the_servers_work(plain, remote, server) -> None:
    long = GREEDY.replace(max_new_tokens=40)
    whole = remote.chat("Hello there.", generation=long)
    stop = whole[6:9]
    answer = remote.submit("Hello there.", long, stop=(stop,))
    assert answer.result() == whole[: whole.index(stop)].strip() and answer.finish == "stop"
    wait_for(lambda: len(server.written) == 2)
    assert len(answer.ids) < 40


def test_usage_finish_and_log_probabilities(plain, remote, server) -> None:
    answer = remote.submit(asked()[1], GREEDY, Asking(logprobs=3))
    answer.result()
    assert answer.finish == "length" and answer.usage.written == 6 and answer.usage.cached == 3
    assert answer.usage.prompt == plain.length(asked()[1])
    assert [p.token for p in answer.logprobs] == answer.ids
    for one in answer.logprobs:  # greedy: the written token is the likeliest
        assert len(one.top) == 3 and one.top[0] == (one.token, one.logprob) and one.logprob < 0
        assert list(one.top) == sorted(one.top, key=lambda pair: -pair[1])


def test_options_are_mapped(remote, server) -> None:
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 7, "seed": -1, "min_length": 3}
    first = remote.submit("Hi.", GREEDY, Asking(tenant="a@b/c"), **options).result()
    assert first == remote.submit("Hi.", GREEDY, Asking(tenant="a@b/c"), **options).result()
    body = server.bodies[0]
    wanted = {"temperature": 0.7, "top_p": 0.8, "top_k": 7, "min_tokens": 2, "max_tokens": 6}
    assert {name: body[name] for name in wanted} == wanted and body["seed"] == 2**63 - 1
    remote.submit("Hi.", GREEDY, Asking(tenant="other")).result()
    remote.submit("Hi.", GREEDY).result()
    salts = [body.get("cache_salt") for body in server.bodies]
    assert salts[0] == salts[1] and len(set(salts)) == 3 and None in salts
    assert body["ignore_eos"] and remote.processor.tokenizer.eos in body["stop_token_ids"]


def test_what_vllm_cannot_do_is_refused_and_the_default_goes_without(plain, remote, server) -> None:
    assert plain.default_generation().repetition_penalty == 1.05
    assert remote.default_generation().repetition_penalty == 1.0 and remote.chat("Hi.", max_new_tokens=2, seed=1)
    for options, said in (
        ({"repetition_penalty": 1.2}, "also counts the prompt"),
        ({"num_beams": 3}, "beam search counts the length"),
        ({"no_repeat_ngram_size": 2}, "no such rule"),
        ({"do_sample": True, "temperature": 2.5}, "at most 2"),
    ):
        with pytest.raises(UserError, match=said):
            remote.submit("Hi.", GREEDY, **options)
    with pytest.raises(UserError, match="must follow a schema"):
        remote.submit("Hi.", GREEDY, Asking(constraint=object()))
    with pytest.raises(UserError, match="cannot be ranked"):
        remote.rank(["Hi."], [["a", "b"]])
    with pytest.raises(PromptError, match="only .* fit before the answer"):
        remote.chat("word " * 600, generation=GREEDY)


@pytest.mark.parametrize("way", ["cancel", "leave", "event"])
def test_to_cancel_is_to_hang_up(remote, server, way: str) -> None:
    server.pause, long = 0.02, GREEDY.replace(max_new_tokens=400)
    if way == "cancel":
        answer = remote.submit("Hello there.", long)
        wait_for(lambda: len(answer.ids) > 2)
        answer.cancel()
        answer.result()
        assert answer.finish == "cancelled"
    elif way == "leave":
        for _ in remote.submit("Hello there.", long):
            break
    else:
        event = threading.Event()
        for _ in remote.stream("Hello there.", long, event):
            event.set()
    wait_for(lambda: server.hung_up == 1)
    assert server.written[0] < 100


def test_time_runs_out(remote, server) -> None:
    server.pause = 0.05
    answer = remote.submit("Hello there.", GREEDY.replace(max_new_tokens=400), Asking(timeout=0.5))
    answer.result()
    assert answer.finish == "timeout" and 0 < len(answer.ids) < 40
    wait_for(lambda: server.hung_up == 1)


def test_a_server_that_dies_refuses_or_is_busy(remote, server) -> None:
    server.dies_after = 3
    answer = remote.submit("Hello there.", GREEDY)
    with pytest.raises(RemoteError, match="broke off|no vLLM server"):
        answer.result()
    server.dies_after, server.refusal = None, (400, "This model's maximum context length is 7")
    with pytest.raises(RemoteError, match="answers 400: This model's maximum context length is 7"):
        remote.chat("Hello there.", generation=GREEDY)
    server.refusal = (503, "overloaded")
    with pytest.raises(BusyError, match="answers 503: overloaded"):
        remote.chat("Hello there.", generation=GREEDY)
    server.refusal = None
    assert remote.chat("Hello there.", generation=GREEDY)


def test_rows_are_checked_before_they_are_sent(remote, server) -> None:
    width = remote.model.llm.hidden_size
    shapes = ((2, width - 1), (0, width), (1, 2, width))
    for rows in (*map(torch.zeros, shapes), torch.zeros(2, width).int()):
        with pytest.raises(PromptError, match="rows"):
            rows_field(rows, width)
    bridge = remote.model.bridge[-1]
    before = next(bridge.parameters()).data.clone()
    next(bridge.parameters()).data.fill_(torch.nan)
    remote.features.clear()
    try:
        with pytest.raises(NotFiniteError):
            remote.chat("What?", image=Images.new("RGB", (8, 8), "green"), generation=GREEDY)
    finally:
        next(bridge.parameters()).data.copy_(before)
        remote.features.clear()
    assert server.bodies == []


def test_the_server_is_checked_first(source, plain, address, server, monkeypatch) -> None:
    where = address[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match=f"no vLLM server at http://127.0.0.1:{port}.*\n  fix: vllm serve"):
        connect(source, f"127.0.0.1:{port}")
    with pytest.raises(RemoteError, match="has no model 'other'"):
        connect(source, where, model="other")
    with pytest.raises(UserError, match="not the address"):
        Server("ftp://here")
    server.key = "secret"
    with pytest.raises(RemoteError, match="answers 401"):
        connect(source, where)
    assert connect(source, where + "/v1", api_key="secret").positions == 200
    server.key, server.takes_rows = None, False
    with pytest.raises(RemoteError, match="You must set `--enable-prompt-embeds`"):
        connect(source, where)
    server.takes_rows, server.shift = True, 0.5
    with pytest.raises(UserError, match="has another LLM"):
        connect(source, where)
    server.shift = 0.0
    monkeypatch.setattr(type(plain.processor.tokenizer), "encode", lambda self, text, *rest: [5, 6, 7])
    with pytest.raises(UserError, match="has another tokenizer"):
        connect(source, where)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.inserts=[{name: adapter}]", "model.inserts .* work between the layers"),
        ("model.fusion.attention=image", "vLLM's text models are causal"),
        ("model.llm.lora={r: 2}", "lora is apart"),
    ],
)
def test_compositions_that_vllm_cannot_run(source, address, server, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        connect(source, address[0], options=[change])
