"""What the engine remembers and limits changes no answer: prefixes, blocks, budgets, guesses, priorities, rules.

Where an answer could come from memory it is compared with an engine whose memory is empty, to the last bit.
"""

from __future__ import annotations

import time

import pytest
import torch

from vlm.common.errors import BusyError, NotFiniteError
from vlm.common.types import MEDIA_TOKEN, Example, Message, Text
from vlm.inference.batching.answer import Answer, Asking
from vlm.inference.engine import Engine
from vlm.inference.streaming import extend, join

from .batching_asking import GREEDY, alone, check_ids, in_threads, in_time, submitted
from .batching_subjects import LONG, SUBJECTS, again, ask, distinct, picture, questions

BARE = {"prefix_mib": 0, "feature_mib": 0}
HEAVY = pytest.mark.heavy
REMEMBERING = [n for n, s in SUBJECTS.items() if not s.runs_alone]


@pytest.fixture(scope="module")
def wanted(model: Engine) -> list[list[int]]:
    """Greedy answers to the seven questions."""
    rows = [alone(model, c) for c in questions()]
    assert distinct(rows)
    return rows


def answered(engine: Engine, conversation: list[Message], tenant: str = "", **options) -> Answer:
    """An answer with the log-probabilities of all its tokens, when it is over."""
    answer = engine.submit(conversation, GREEDY.replace(**options), Asking(tenant=tenant, logprobs=3))
    in_time(answer.result)
    return answer


def afresh(engine: Engine, conversation: list[Message], tenant: str = "", **options) -> Answer:
    """An answer of an engine that remembers nothing; it divides prompts as one that does."""
    engine.forget()
    return answered(engine, conversation, tenant, **options)


def same_bits(cached: Answer, bare: Answer) -> None:
    """Raises AssertionError: another token, or a log-probability that differs in any bit."""
    assert bare.usage.cached == 0
    assert cached.ids == bare.ids
    assert cached.logprobs == bare.logprobs
    assert [found.token for found in cached.logprobs] == cached.ids


# ---- memory


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("llama", "OpenFlamingo") else HEAVY) for n in REMEMBERING]
)
def test_remembered_equals_read_again(name: str, tmp_path) -> None:
    """The same question twice, a second question about the images, and the next turn."""
    subject = SUBJECTS[name]
    engine = subject.make(tmp_path)
    warm, bare, off = again(engine, block=16), again(engine, block=16), again(engine, block=16, **BARE)
    images = (3, 4)[: subject.images]
    first = ask(LONG + "What is in the image?", *images)
    answer = answered(warm, first, **subject.options)
    assert answer.usage.cached == 0
    turn = [*first, Message("assistant", (Text(answer.text),)), Message("user", (Text("And what else is there?"),))]
    other = [Message("user", (*first[0].parts[:-1], Text("Is it large?")))]
    hits = []
    for conversation in (first, turn, other, turn):
        remembered = answered(warm, conversation, **subject.options)
        hits.append(remembered.usage.cached)
        same_bits(remembered, afresh(bare, conversation, **subject.options))
        assert answered(off, conversation, **subject.options).ids == remembered.ids
        assert remembered.usage.cached < remembered.usage.prompt
    assert [hits[0] > 0, hits[3] > 0, warm.stats().prefix_bytes > 0] == [not subject.whole] * 3
    assert warm.stats().cached_tokens == sum(hits)
    assert off.stats().prefix_bytes == off.stats().feature_bytes == off.stats().cached_tokens == 0


def test_a_second_question_about_an_image_skips_it(model: Engine) -> None:
    warm, bare = again(model, block=16), again(model, block=16)
    answered(warm, ask("What is in the image?", 1, 2))
    second = ask("How many animals are there?", 1, 2)
    cached = answered(warm, second)
    same_bits(cached, afresh(bare, second))
    assert cached.usage.cached > 0
    assert warm.stats().feature_misses == 2 and warm.stats().feature_hits == 2


def test_a_tenant_never_gets_what_another_left(model: Engine) -> None:
    """The same question of another tenant, another image, another text: nothing is taken from memory but the own."""
    warm, bare = again(model, block=16), again(model, block=16)
    question = ask(LONG + "What is in the image?", 1)
    for tenant in ("one", "two"):
        assert answered(warm, question, tenant).usage.cached == 0
        same_bits(answered(warm, question, tenant), afresh(bare, question, tenant))
        assert answered(warm, question, tenant).usage.cached > 0
    pictured = [Message("user", (picture(n), Text(LONG + "What is in the image?"))) for n in (1, 5)]
    found = [answered(warm, c, "one") for c in pictured]
    for answer, conversation in zip(found, pictured, strict=True):
        same_bits(answer, afresh(bare, conversation))
    assert found[0].ids != found[1].ids
    [example] = model.examples([pictured[1]])
    assert found[1].usage.cached <= example.ids.index(MEDIA_TOKEN)  # the text before the image, at most


def test_memory_has_a_budget(model: Engine) -> None:
    """A cache of a MiB forgets what was used long ago, and answers stay the same."""
    warm = again(model, block=16, prefix_mib=1)
    for number in range(12):
        conversation = ask(f"{number}. " + LONG * 3, 1)
        answered(warm, conversation, max_new_tokens=9)
        assert warm.stats().prefix_bytes <= 2**20
    assert answered(warm, ask("11. " + LONG * 3, 1)).usage.cached > 0
    first = ask("0. " + LONG * 3, 1)
    same_bits(answered(warm, first), answered(again(model, block=16), first))


# ---- limits and switches


@pytest.mark.parametrize(
    "serving",
    [
        {"block": 16},
        {"block": 1000, "prefill": 1000},
        {"prefill": 1, "block": 16},
        {"kv_mib": 1},
        {"max_batch": 1},
        {"lookup": 4, "max_batch": 2, "prefill": 32},
        {"lookup": 1, "prefix_mib": 0, "feature_mib": 0},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_switches_change_no_answer(model: Engine, wanted: list[list[int]], serving) -> None:
    engine = again(model, **serving)
    for _ in range(2):
        answers = in_time(lambda: submitted(engine, questions(), [GREEDY] * 7))
        check_ids(engine, questions(), [a.ids for a in answers], wanted)
    stats = engine.stats()
    assert (stats.asked, stats.stopped + stats.at_length, stats.running, stats.waiting) == (14, 14, 0, 0)
    assert stats.written_tokens == sum(len(row) for row in wanted) * 2


@pytest.mark.parametrize(
    ("name", "serving"),
    [
        pytest.param(name, {"prefill": 16, "block": 16, "max_batch": 3}, marks=() if name == "OpenFlamingo" else HEAVY)
        for name in REMEMBERING
    ]
    + [pytest.param(name, more, marks=HEAVY) for name in REMEMBERING for more in ({"lookup": 4}, {"kv_mib": 1})],
)
def test_switches_change_no_answer_of_any(name: str, serving, tmp_path) -> None:
    subject = SUBJECTS[name]
    engine = again(subject.make(tmp_path), **serving)
    asked, greedy = questions(subject.images), GREEDY.replace(**subject.options)
    want = [alone(engine, c, greedy) for c in asked]
    for _ in range(2):
        answers = in_time(lambda: submitted(engine, asked, [greedy] * 7))
        check_ids(engine, asked, [a.ids for a in answers], want)


def test_guesses_are_made_and_change_nothing(model: Engine) -> None:
    """An answer that repeats what it was told is guessed; greedy, drawn or with a penalty it stays the same."""
    plain, guessing = again(model), again(model, lookup=4)
    long = {"max_new_tokens": 36, "min_length": 1}
    for more in ({}, {"repetition_penalty": 1.2}, {"do_sample": True, "seed": 3, "temperature": 0.3}):
        for conversation in questions()[:2]:
            want = answered(plain, conversation, **long, **more)
            got = answered(guessing, conversation, **long, **more)
            assert got.ids == want.ids and len(got.logprobs) == len(got.ids)
            close = zip(got.logprobs, want.logprobs, strict=True)
            assert all(abs(a.logprob - b.logprob) < 1e-4 and a.token == b.token for a, b in close)
    stats = guessing.stats()
    assert stats.guessed > 0 and 0 <= stats.guessed_right <= stats.guessed


def test_rows_share_their_steps(model: Engine) -> None:
    """Seven answers take fewer calls of the language model together than one after another."""
    apart, together = again(model), again(model)
    for conversation in questions():
        in_time(apart.submit(conversation, GREEDY).result)
    in_time(lambda: submitted(together, questions(), [GREEDY] * 7))
    assert together.stats().steps * 2 < apart.stats().steps


def test_rows_that_cannot_share_take_turns(tmp_path) -> None:
    engine = SUBJECTS["mamba"].make(tmp_path)
    first, second = (engine.submit(questions()[i], GREEDY.replace(max_new_tokens=30)) for i in (0, 2))
    pieces = iter(first)
    next(pieces)
    assert len(first.ids) < 30 and len(second.ids) > 0
    in_time(lambda: (join(pieces), second.result()))


# ---- what is told, ruled and refused


def test_log_probabilities(model: Engine) -> None:
    """Those of the whole conversation read at once, before any rule changed them."""
    for name, options in (("plain", {}), ("ruled", {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2})):
        conversation = questions()[2]
        answer = answered(again(model), conversation, **options)
        [example] = model.examples([conversation])
        ids = [*example.ids, *answer.ids]
        whole = Example(ids, [-100] * len(ids), example.media)
        with torch.no_grad():
            logits = model.model(model.batch([whole]), return_logits=True).logits[0]
        length = model.length(conversation)
        known = logits[length - 1 : length - 1 + len(answer.ids)].log_softmax(-1)
        for found, token, row in zip(answer.logprobs, answer.ids, known, strict=True):
            assert found.token == token and abs(found.logprob - float(row[token])) < 1e-4, name
            assert len(found.top) == 3
            values, best = row.topk(3)
            assert all(abs(value - float(want)) < 1e-4 for (_, value), want in zip(found.top, values, strict=True))
            assert found.top[0][0] == int(best[0])
    none = model.submit(questions()[0], GREEDY)
    own = model.submit(questions()[0], GREEDY, Asking(logprobs=0))
    in_time(lambda: (none.result(), own.result()))
    assert none.logprobs == [] and [len(p.top) for p in own.logprobs] == [0] * len(own.ids)


class OnlyEven:
    """Even ids alone, and the end after five of them."""

    def __init__(self, vocab: int, end: int) -> None:
        self.seen: list[int] = []
        self.even = torch.arange(vocab) % 2 == 0
        self.even[end] = False
        self.last = torch.zeros(vocab, dtype=torch.bool)
        self.last[end] = True

    def allowed(self) -> torch.Tensor:
        return self.last if len(self.seen) == 5 else self.even

    def accept(self, token: int) -> None:
        self.seen.append(token)


@pytest.mark.parametrize("lookup", [0, 4])
def test_constraints(model: Engine, wanted: list[list[int]], lookup: int) -> None:
    """One answer follows a constraint, the ones beside it do not; greedy and drawn."""
    engine, end = again(model, lookup=lookup), model.processor.tokenizer.eos
    rules = [OnlyEven(model.model.llm.vocab_size, end) for _ in range(2)]
    free = GREEDY.replace(min_length=1)
    held = [
        engine.submit(questions()[0], free, Asking(constraint=rules[0])),
        engine.submit(questions()[1], free.replace(do_sample=True, seed=1), Asking(constraint=rules[1])),
    ]
    beside = [engine.submit(questions()[i], GREEDY) for i in (2, 3)]
    in_time(lambda: [a.result() for a in (*held, *beside)])
    check_ids(engine, [questions()[2], questions()[3]], [a.ids for a in beside], [wanted[2], wanted[3]])
    for answer, rule in zip(held, rules, strict=True):
        assert answer.finish == "stop" and len(answer.ids) == 6 and answer.ids[-1] == end
        assert all(token % 2 == 0 for token in answer.ids[:5]) and rule.seen == answer.ids


def test_the_urgent_come_first(model: Engine) -> None:
    engine = again(model, max_batch=1)
    asked = [engine.submit(questions()[i % 7], GREEDY, Asking(priority=p)) for i, p in enumerate((0, 0, 2, 1, 0))]
    in_time(lambda: [a.result() for a in asked])
    order = sorted(range(5), key=lambda i: asked[i].times.first)
    assert order in ([2, 3, 0, 1, 4], [0, 2, 3, 1, 4])  # the first may have begun before the others came


def test_a_full_queue_refuses(model: Engine, wanted: list[list[int]]) -> None:
    engine = again(model, max_batch=1, queue=2)
    kept: list[Answer] = []
    with pytest.raises(BusyError) as caught:
        for number in range(7):
            kept.append(engine.submit(questions()[number], GREEDY))
    assert len(kept) in (2, 3) and caught.value.retry_after > 0
    in_time(lambda: [a.result() for a in kept])
    numbers = range(len(kept))
    check_ids(engine, [questions()[i] for i in numbers], [a.ids for a in kept], [wanted[i] for i in numbers])
    in_time(engine.submit(questions()[6], GREEDY).result)  # there is room again


def test_counts(model: Engine) -> None:
    engine = again(model)
    done = engine.submit(questions()[0], GREEDY)
    late = engine.submit(questions()[1], GREEDY, Asking(timeout=0.0))
    gone = engine.submit(questions()[2], GREEDY)
    gone.cancel()
    [example] = engine.examples([questions()[0]])
    bad = engine.submit(Example(example.ids, example.labels, [m * torch.nan for m in example.media]), GREEDY)
    in_time(lambda: [a.result() for a in (done, late, gone)])
    with pytest.raises(NotFiniteError):
        in_time(bad.result)
    stats = engine.stats()
    assert (stats.asked, stats.at_length, stats.timed_out, stats.cancelled, stats.failed) == (4, 1, 1, 1, 1)
    assert (stats.running, stats.waiting) == (0, 0) and stats.kv_bytes > 0


def test_whole_answers_stop_where_pieces_do(model: Engine, wanted: list[list[int]]) -> None:
    """``generate``, ``stream`` and ``chat`` know the stop texts that ``submit`` knows, however they are divided."""
    engine, decode = again(model), model.processor.tokenizer.decode
    tried = 0
    for number in range(7):
        text = decode(wanted[number])
        ends = [len(decode(wanted[number][: n + 1])) for n in range(len(wanted[number]))]
        stop = text[ends[5] - 1 : ends[6] + 1]
        if "\ufffd" in text or len(stop.strip()) < 2 or text.find(stop) != ends[5] - 1:
            continue
        tried += 1
        cut = GREEDY.replace(stop=(stop,))
        want = text[: ends[5] - 1].strip()
        assert in_time(engine.submit(questions()[number], cut).result) == want
        assert engine.generate([questions()[number]], cut) == [want]
        shown = ""
        for piece in engine.stream(questions()[number], cut):
            shown = extend(shown, piece)
            assert want.startswith(shown)
        assert shown == want
    assert tried


# ---- what an answer that failed or went leaves behind


def spoilt(engine: Engine, conversation: list[Message]) -> Example:
    """The prompt of a conversation, its images not numbers."""
    [example] = engine.examples([conversation])
    return Example(example.ids, example.labels, [torch.full_like(m, torch.nan) for m in example.media])


@pytest.mark.parametrize("way", ["cancelled", "late"])
def test_a_prompt_that_was_left_spoils_nobody(model: Engine, wanted: list[list[int]], way: str) -> None:
    """Whoever gets its place, though nobody has seen that its values are not numbers."""
    engine = again(model, prefill=48, block=48, prefix_mib=0)
    writer = engine.submit(questions()[3], GREEDY.replace(max_new_tokens=30, min_length=30))
    bad = engine.submit(spoilt(engine, questions()[4]), GREEDY, Asking(timeout=600.0))
    for _ in writer:
        if len(writer.ids) >= 2:  # most of it has been read
            if way == "cancelled":
                bad.cancel()
            else:
                bad.times.asked = time.monotonic() - 1000
    assert bad.ids == [] and bad.finish == {"late": "timeout"}.get(way, way)
    order = [4, 3, 0, 6]  # a short one in its place, beside longer ones
    answers = in_time(lambda: submitted(engine, [questions()[i] for i in order], [GREEDY] * 4))
    check_ids(engine, [questions()[i] for i in order], [a.ids for a in answers], [wanted[i] for i in order])


def test_a_prompt_that_is_overtaken_spoils_nobody(model: Engine, wanted: list[list[int]]) -> None:
    """A shorter one that comes later is over first, beside an answer that reaches further."""
    engine = again(model, prefill=32, block=16, prefix_mib=0)
    writer = engine.submit(questions()[6], GREEDY.replace(max_new_tokens=30, min_length=30))
    pieces = iter(writer)
    next(pieces)
    bad, before = engine.submit(spoilt(engine, ask(LONG * 3, 2)), GREEDY), len(writer.ids)
    while len(writer.ids) < before + 3:
        next(pieces)
    short = engine.submit(questions()[3], GREEDY)
    in_time(lambda: (join(pieces), short.result()))
    check_ids(engine, [questions()[3]], [short.ids], [wanted[3]])
    with pytest.raises(NotFiniteError):
        in_time(bad.result)
    answers = in_time(lambda: submitted(engine, questions(), [GREEDY] * 7))
    check_ids(engine, questions(), [a.ids for a in answers], wanted)


def test_memory_is_flat(model: Engine) -> None:
    """Keys and values of many answers take the room of those that run together."""
    engine = again(model, max_batch=4)

    def some(thread: int) -> None:
        for turn in range(5):
            engine.submit(questions()[(thread + turn) % 7], GREEDY.replace(max_new_tokens=9)).result()

    in_threads([lambda thread=thread: some(thread) for thread in range(4)])
    once = engine.stats().kv_bytes
    in_threads([lambda thread=thread: some(thread) for thread in range(4)])
    assert engine.stats().kv_bytes == once and engine.stats().running == 0
