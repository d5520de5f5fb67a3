"""Published architectures over a stand-in for vLLM: the answers of the plain engine, or a reason."""

from __future__ import annotations

import pytest

from tests.golden.installed.conftest import Pair
from vlm.common.errors import ConfigError
from vlm.inference.generation import Generation
from vlm.inference.remote import connect

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.inference.remote.stand_in import StandIn, running

GREEDY = Generation(max_new_tokens=8, do_sample=False, repetition_penalty=1.0)


@pytest.mark.heavy
def test_answers_over_a_server(pair: Pair) -> None:
    stand_in = StandIn(pair.engine, positions=4000)
    fusion = pair.engine.config.model.fusion
    with running(stand_in) as address:
        if fusion.get("attention") != "causal" or fusion.get("positions") != "text":
            with pytest.raises(ConfigError, match=r"vLLM's text models are causal|vLLM counts the positions"):
                connect(pair.folder, address)
            return
        remote = connect(pair.folder, address)
        for conversation in pair.conversations:
            assert remote.generate_ids([conversation], GREEDY) == pair.engine.generate_ids([conversation], GREEDY)
    assert stand_in.faults == [] and stand_in.bodies
