"""Judges that are language models: prompts, verdicts, agreement with people, and an address that answers here."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vlm.common.errors import ConfigError, DataError, UserError
from vlm.common.trust import trusting
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.question_answering import QuestionAnswering
from vlm.tasks.judging.ask import AnyJudge
from vlm.tasks.judging.base import PROMPT, Case, JudgeOptions, agreement, label_of, read_verdict
from vlm.tasks.judging.http import HttpJudge
from vlm.tasks.judging.local import ModelJudge

from .asked import Asked
from .test_question_answering import ROWS, Engine, Rows

CASE = Case("What color?", "crimson", "red")


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that hung up."""

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def stand_in(reply: Any) -> Iterator[tuple[str, list[dict]]]:
    """An address whose replies are ``reply(request, number)``: a text, or a status."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            found = reply(body, len(seen))
            text = json.dumps({"choices": [{"message": {"content": found}}]} if isinstance(found, str) else {"no": 1})
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def http(url: str, **more: Any) -> JudgeOptions:
    return JudgeOptions("http", url=url, model="judge", **more)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Yes", True),
        ("no.", False),
        ("**Correct**, because", True),
        ("Incorrect.", False),
        ("The answer says crimson.\nVerdict: yes", True),
        ("Both name a color.\nNo", False),
        ("I am not sure, yes or no", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_an_error(text: str, right: bool | None) -> None:
    found = read_verdict(text)
    assert found.right is right and bool(found.error) is (right is None)


def test_a_prompt_is_filled_once() -> None:
    assert Case("{answer}?", "a{b}", "{question}").prompt("{question} {answer} {reference} {x}") == (
        "{answer}? a{b} {question} {x}"
    )
    assert "Reference answer: red\n" in CASE.prompt(PROMPT)


def test_agreement_and_kappa() -> None:
    found = agreement([True, True, False, False, None], [True, False, False, False, True])
    assert found == {"count": 4, "unreadable": 1, "accuracy": 0.75, "kappa": 0.5}
    assert agreement([True, True], [True, True])["kappa"] is None
    assert agreement([None], [True]) == {"count": 0, "unreadable": 1, "accuracy": None, "kappa": None}
    assert [label_of(v, "r") for v in (True, 0, "Right", "no", 1.0)] == [True, False, True, False, True]
    with pytest.raises(DataError, match="r: label 'maybe'"):
        label_of("maybe", "r")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "model"}, "needs run"),
        ({"kind": "http", "url": "http://x/v1"}, "needs url and model"),
        ({"kind": "http", "url": "file:///etc/passwd", "model": "m"}, "needs url and model"),
        ({"kind": "model", "run": "x", "prompt": "Good?"}, "no {answer}"),
        ({"kind": "http", "url": "http://me:secret@localhost/v1", "model": "m"}, "a user or a password"),
    ],
)
def test_options_that_do_not_fit(more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JudgeOptions(**more)


def test_a_file_needs_trust_to_send_answers_away_or_to_read_a_key() -> None:
    with pytest.raises(ConfigError, match=r"http://far.example/v1.*another machine: only with --trust"):
        http("http://far.example/v1")
    with pytest.raises(ConfigError, match=r"'HOME'.*read the environment: only with --trust"):
        http("http://localhost:1/v1", key_env="HOME")
    with trusting():
        http("http://near.example/v1")
    assert http("http://near.example/v1").model == "judge"


def test_an_address_gets_prompt_seed_and_key_and_each_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with stand_in(lambda body, _: "yes" if "crimson" in body["messages"][0]["content"] else "no") as (url, seen):
        with trusting():
            options = http(url, seed=7, key_env="JUDGE_KEY")
        found = HttpJudge(options).verdicts([CASE, Case("q", "blue", "red"), CASE])
    assert [v.right for v in found] == [True, False, True] and len(seen) == 2
    assert {(s["path"], s["seed"], s["temperature"], s["key"], s["model"]) for s in seen} == {
        ("/v1/chat/completions", 7, 0, "Bearer secret", "judge")
    }
    assert "secret" not in f"{options} {options.facts()}"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        HttpJudge(options)


def test_a_request_that_fails_is_sent_again_and_counted() -> None:
    with stand_in(lambda _, number: 503 if number < 3 else "yes") as (url, _):
        judge = HttpJudge(http(url), pause=0.001)
        assert judge.verdicts([CASE])[0].right is True and judge.retries == 2
    with stand_in(lambda *_: None) as (url, seen):
        found = HttpJudge(http(url, retries=1), pause=0.001).verdicts([CASE])[0]
    assert found.right is None and "after 2 attempts (no chat completion" in found.error and len(seen) == 2
    gone = HttpJudge(http(url, retries=1, timeout=0.5), pause=0.001).verdicts([CASE])[0]
    assert gone.right is None and "did not answer" in gone.error


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_refusal_is_one_message(status: int) -> None:
    with stand_in(lambda *_: status) as (url, seen), pytest.raises(UserError, match=f"answers {status}"):
        AnyJudge(http(url), None).verdicts([CASE])  # type: ignore[arg-type]
    assert len(seen) == 1


def test_the_key_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " secret7\n")  # as a file with a line end gives it
    replies: list[Any] = ["yes, secret7", "x" * (1 << 20)]
    with stand_in(lambda *_: replies.pop(0)) as (url, seen), trusting():
        judge = HttpJudge(http(url, key_env="JUDGE_KEY", retries=0))
        said, huge = [judge.verdicts([Case("q", str(k), "a")])[0] for k in range(2)]
    assert said.right is True and said.text == "yes, (key)" and seen[0]["key"] == "Bearer secret7"
    assert huge.right is None and "more than 1,048,576 bytes" in huge.error
    monkeypatch.setenv("JUDGE_KEY", "sec\nret")
    with pytest.raises(ConfigError, match="is not a key") as raised, trusting():
        HttpJudge(http(url, key_env="JUDGE_KEY"))
    assert "ret" not in str(raised.value).replace("JUDGE_KEY", "")


def test_a_slow_address_is_given_up() -> None:
    waiting = threading.Event()
    with stand_in(lambda *_: str(waiting.wait(2))) as (url, _):
        found = HttpJudge(http(url, timeout=0.05, retries=0)).verdicts([CASE])[0]
        waiting.set()
    assert found.right is None and "timed out" in found.error


class Judging(Asked):
    """A composition that judges: yes where the answer is in the reference's line."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def generate(self, conversations: Any, generation: Any, batch_size: int = 16) -> list[str]:
        self.seen += [(c[-1].text, generation) for c in conversations]
        return ["Yes." if "model: red" in c[-1].text else "Hm" for c in conversations]


def test_a_composition_judges_greedily_with_the_seed() -> None:
    engine = Judging()
    judge = ModelJudge(JudgeOptions("model", run="x", seed=3, max_new_tokens=5), engine)  # type: ignore[arg-type]
    found = judge.verdicts([Case("q", "red", "red"), CASE, CASE])
    assert [v.right for v in found] == [True, None, None] and len(engine.seen) == 2
    text, generation = engine.seen[0]
    assert text == Case("q", "red", "red").prompt(PROMPT)
    assert (generation.seed, generation.do_sample, generation.max_new_tokens) == (3, False, 5)


def test_a_judge_that_never_gives_a_verdict_is_one_message() -> None:
    with stand_in(lambda *_: "Let me think.") as (url, _), pytest.raises(DataError, match=r"no verdict on any of 1"):
        AnyJudge(http(url), None).verdicts([CASE])  # type: ignore[arg-type]


def answered(rows: list[dict], **options: Any) -> Any:
    return QuestionAnswering().run(Engine(), Questions(Rows(rows)), QuestionAnswering.Config(**options))


def test_an_unreadable_verdict_is_an_error_and_never_a_wrong_answer() -> None:
    def reply(body: dict, _: int) -> str:
        text = body["messages"][0]["content"]
        return "yes" if "model: red" in text else "no" if "model: blue" in text else "perhaps"

    with stand_in(reply) as (url, _):
        found = answered(ROWS, judge=http(url, seed=5))
    scores = found.scores
    assert (scores["overall"], scores["count"], scores["unusable"]) == (1 / 3, 3, 1)
    assert scores["judge"]["prompt"] == PROMPT and scores["judge"]["seed"] == 5
    assert (scores["judge"]["unreadable"], scores["judge"]["retries"]) == (1, 0)
    assert [p.id for p in found.predictions if p.error] == ["d"] and "perhaps" in found.predictions[3].error
    assert list(found.metrics[0].units) == ["a", "b", "c"] and found.metrics[0].value() == 1 / 3


def test_labels_of_people_are_compared_with_the_judge() -> None:
    rows = [
        ROWS[0] | {"label": True},
        ROWS[1] | {"label": "wrong"},
        ROWS[2] | {"label": 0, "labelled_answer": "green"},
        ROWS[3],
    ]
    found = answered(rows, judge="exact")
    assert found.scores["agreement"] == {
        "count": 3, "unreadable": 0, "accuracy": pytest.approx(2 / 3), "kappa": pytest.approx(0.4),
    }  # fmt: skip
    assert [(s.label, s.count) for s in found.table][-2:] == [("judge as people", 3), ("kappa", None)]
    assert "agreement" not in answered(ROWS, judge="exact").scores
