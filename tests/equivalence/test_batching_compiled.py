"""``run.serving.compile``: compiled layers write the same answers, and without a compiler the plain ones do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from . import batching_asking
from .batching_asking import GREEDY, alone, check_ids, in_time, submitted
from .batching_subjects import SUBJECTS, again, distinct, questions


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(
            pytest.param(n, "eager", marks=pytest.mark.heavy)
            for n in ("llama", "gpt2", "mistral", "gemma2", "gpt_oss", "Lynx")
        ),
        *(pytest.param(n, "inductor", marks=pytest.mark.heavy) for n in ("gemma2", "OpenFlamingo")),
    ],
)
def test_compiled_layers_change_no_answer(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced (``eager``), and compiled in earnest."""
    calls, compile_ = [], torch.compile

    def counted(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = compile_(function, backend=backend, **options)
        return lambda *args, **kwargs: (compiled(*args, **kwargs), calls.append(1))[0]

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setattr(batching_asking, "PATIENCE", 500.0)
    subject = SUBJECTS[name]
    plain = subject.make(tmp_path)
    asked, greedy = questions(subject.images), GREEDY.replace(**subject.options)
    want = [alone(plain, c, greedy) for c in asked]
    assert distinct(want)
    engine = again(plain, compile=True)
    got = in_time(lambda: submitted(engine, asked, [greedy] * 7))
    check_ids(engine, asked, [a.ids for a in got], want)
    assert len(calls) >= len(list(engine.model.llm.layers())) * 12  # compiled, not fallen back


def test_without_a_compiler_the_plain_layers_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*args: object, **kwargs: object) -> None:
        raise TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    plain = SUBJECTS["llama"].make(tmp_path)
    want = [alone(plain, c) for c in questions()[:3]]
    engine = again(plain, compile=True)
    with caplog.at_level(logging.WARNING):
        got = in_time(lambda: submitted(engine, questions()[:3], [GREEDY] * 3))
    check_ids(engine, questions()[:3], [a.ids for a in got], want)
    said = [r.getMessage() for r in caplog.records if "run.serving.compile" in r.getMessage()]
    assert said == ["run.serving.compile: the decoder layers are not compiled (no C++ compiler)"]
