"""Verdicts on answers: options and prompt of a judge, reading what it wrote, agreement with people's labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from vlm.common import trust
from vlm.common.bounds import Count, Natural, Positive, Seed
from vlm.common.errors import ConfigError, DataError

PROMPT = """You are given a question about an image, the reference answer, and the answer of a model.
Question: {question}
Reference answer: {reference}
Answer of the model: {answer}
Does the answer of the model agree with the reference answer? Reply with one word, yes or no."""

FIELDS = ("question", "reference", "answer")
_YES = frozenset(("yes", "right", "correct", "true", "1"))
_NO = frozenset(("no", "wrong", "incorrect", "false", "0"))
_VERDICT = re.compile(r"(?:verdict|judg(?:e)?ment|final answer)\W{1,5}(\w+)", re.IGNORECASE)


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_trusted: set[tuple[str, str]] = set()


def check_trust(url: str, key_env: str) -> None:
    """Let a file send answers to another machine, or read a key, only if it is trusted; once given, trust stays.

    Raises ConfigError: it is not.
    """
    if trust.is_given():
        _trusted.add((url, key_env))
    if (url, key_env) in _trusted:
        return
    if key_env:
        raise trust.refused(f"judge: key_env {key_env!r:.60}", "read the environment")
    if urlsplit(url).hostname not in _LOOPBACK:
        raise trust.refused(f"judge: {url!r:.80}", "send questions and answers to another machine")


@dataclass(frozen=True)
class JudgeOptions:
    """A language model as judge: one of our compositions (``model``), or an OpenAI-compatible address (``http``)."""

    kind: Literal["model", "http"]
    run: str = ""  # model: run folder, YAML file or name of a composition
    url: str = ""  # http: address up to /v1
    model: str = ""  # http: name of the model there
    prompt: str = PROMPT  # with {question}, {reference} and {answer}
    seed: Seed = 0
    max_new_tokens: Count = 16
    batch_size: Count = 16  # answers that are judged together; http: requests at a time
    key_env: str = ""  # http: environment variable that holds the key; the key itself is never written
    timeout: Positive = 60.0  # http: seconds
    retries: Natural = 3  # http: how often a request that failed is sent again

    def __post_init__(self) -> None:
        """Raises ConfigError: something that this kind needs is missing, no ``{answer}``, or an untrusted address."""
        if self.kind == "model" and not self.run:
            raise ConfigError("judge: kind model needs run", fix="e.g. run: output/judge")
        if self.kind == "http" and not (urlsplit(self.url).scheme in ("http", "https") and self.model):
            raise ConfigError(
                f"judge: kind http needs url and model, found {self.url!r} and {self.model!r}",
                fix="e.g. url: http://127.0.0.1:8000/v1, model: judge",
            )
        if "@" in urlsplit(self.url).netloc:
            raise ConfigError("judge: url has a user or a password, which results would show", fix="use key_env")
        if "{answer}" not in self.prompt:
            raise ConfigError("judge: the prompt has no {answer}", fix="also {question} and {reference} are filled in")
        if self.kind == "http":
            check_trust(self.url, self.key_env)

    def __str__(self) -> str:
        """As it is shown on a card."""
        where = f"{self.model} at {self.url}" if self.kind == "http" else self.run
        return f"{where}, seed {self.seed}, asked: {self.prompt}"

    def facts(self) -> dict[str, Any]:
        """What results record; the key is not among it."""
        named = {"run": self.run} if self.kind == "model" else {"url": self.url, "model": self.model}
        return {"kind": self.kind, **named, "prompt": self.prompt, "seed": self.seed, "limit": self.max_new_tokens}


@dataclass(frozen=True)
class Case:
    """One answer to judge."""

    question: str
    answer: str
    reference: str

    def prompt(self, template: str) -> str:
        """The template with this case's fields, whatever braces they hold."""
        fields: Mapping[str, str] = vars(self)
        return re.sub("{(" + "|".join(FIELDS) + ")}", lambda found: fields[found[1]].strip(), template)


@dataclass(frozen=True)
class Verdict:
    """What a judge said; ``right`` is None, with the reason in ``error``, where no verdict can be read."""

    right: bool | None
    text: str = ""
    error: str = ""


def read_verdict(text: str) -> Verdict:
    """The verdict of a reply: its first word, the word after "Verdict:", or its last line, if that is yes or no."""
    words = re.findall(r"\w+", text.lower())
    declared = _VERDICT.findall(text)
    last = re.findall(r"\w+", text.strip().lower().splitlines()[-1]) if words else []
    for word in (*words[:1], *(w.lower() for w in declared[-1:]), *(last if len(last) == 1 else ())):
        if word in _YES | _NO:
            return Verdict(word in _YES, text)
    return Verdict(None, text, f"the verdict cannot be read: {text.strip()[:80]!r}")


def label_of(value: Any, where: str) -> bool:
    """A person's label of an answer. Raises DataError: neither right nor wrong."""
    word = str(int(value) if isinstance(value, bool) else value).strip().lower()
    word = {"1.0": "1", "0.0": "0"}.get(word, word)
    if word not in _YES | _NO:
        raise DataError(f"{where}: label {value!r}", fix=f"allowed are true, false, {', '.join(sorted(_YES | _NO))}")
    return word in _YES


def agreement(verdicts: Sequence[bool | None], labels: Sequence[bool]) -> dict[str, Any]:
    """How far verdicts agree with people's labels.

    Returns:
        ``count``, ``accuracy`` and ``kappa`` (Cohen's; None where chance alone explains all) over the labels that have
        a verdict, and ``unreadable``, the number of the others.
    """
    pairs = [(verdict, label) for verdict, label in zip(verdicts, labels, strict=True) if verdict is not None]
    result: dict[str, Any] = {
        "count": len(pairs),
        "unreadable": len(labels) - len(pairs),
        "accuracy": None,
        "kappa": None,
    }
    if pairs:
        same = sum(a == b for a, b in pairs) / len(pairs)
        yes = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
        result |= {"accuracy": same, "kappa": round((same - chance) / (1 - chance), 12) if chance < 1 else None}
    return result
