"""Runs of the tiny published composition, and a small model for many questions."""

from collections.abc import Iterator

import pytest
import torch

from vlm.inference.engine import Engine

from .batching_subjects import SUBJECTS
from .tiny import Tiny


@pytest.fixture
def tiny(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tiny(tmp_path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with a LLaMA of random weights, one for each module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SUBJECTS["llama"].make(tmp_path_factory.mktemp("model"))
    torch.set_num_threads(threads)
