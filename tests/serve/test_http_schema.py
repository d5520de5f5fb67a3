"""Requests made from the server's own openapi.json, valid and not: none is answered with 5xx."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from vlm.serve.http.app import create_app
from vlm.serve.http.guard import Guard
from vlm.serve.http.limits import Limits
from vlm.serve.http.models import Models

from .http_server import small_engine

LIMITS = Limits(tokens=8, choices=2)
OPERATIONS = 6
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def cases(total: int) -> Counter[int]:
    """Statuses of at least ``total`` requests, over all operations, made to fit the schema and to break it."""
    app = create_app(Models({"small": small_engine()}), LIMITS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", Guard(app, LIMITS))
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    made = [(o, mode) for o in operations for mode in (MODES if o.body else MODES[:1])]
    found: Counter[int] = Counter()

    def check(case: Any) -> None:
        response = case.call()
        found[response.status_code] += 1
        assert response.status_code < 500, (case.method, case.path, response.text)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    chosen = settings(
        max_examples=-(-total // (len(made) - 1)),  # one operation has a single form
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation, mode in made:
        chosen(given(case=operation.as_strategy(generation_mode=mode))(check))()
    return found


@pytest.mark.slow
def test_fifty_cases() -> None:
    found = cases(50)
    assert found.total() >= 50 and found[200] > 0


@pytest.mark.heavy
def test_a_thousand_cases() -> None:
    found = cases(1000)
    assert found.total() >= 1000 and found[200] > 10 and found[400] > 100
