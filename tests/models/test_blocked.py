"""Imports without bitsandbytes and torchao."""

import importlib.util
import subprocess
import sys

import pytest
from transformers.utils import import_utils

from vlm.models.hf.blocked import QUANTISERS, without_quantisers

LORA = """
import sys, warnings
from vlm.inference.engine import Engine
from torch import nn
from vlm.models.lora import LoraOptions, inject_lora
inject_lora(nn.Sequential(nn.Linear(8, 8)), LoraOptions(targets=["0"]))
assert "peft" in sys.modules and "transformers.modeling_utils" in sys.modules
assert not {"bitsandbytes", "torchao"} & set(sys.modules), "loaded on the way"
"""


def test_the_quantisers_can_be_imported_afterwards() -> None:
    there = {name: sys.modules.get(name) for name in QUANTISERS}
    found = {name: importlib.util.find_spec(name) is not None for name in QUANTISERS}
    known = import_utils.is_bitsandbytes_available(), import_utils.is_torchao_available()
    with without_quantisers():
        for name, module in there.items():
            assert (importlib.util.find_spec(name) is not None) == (module is not None)
        import_utils.is_torchao_available()
    assert {name: sys.modules.get(name) for name in QUANTISERS} == there
    assert {name: importlib.util.find_spec(name) is not None for name in QUANTISERS} == found
    assert (import_utils.is_bitsandbytes_available(), import_utils.is_torchao_available()) == known


@pytest.mark.heavy
def test_neither_answers_nor_lora_load_them() -> None:
    done = subprocess.run([sys.executable, "-c", LORA], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr and "pytree" not in done.stderr
