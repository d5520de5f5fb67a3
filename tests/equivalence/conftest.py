"""Runs of the tiny published composition."""

import pytest
import torch

from .tiny import Tiny


@pytest.fixture
def tiny(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tiny(tmp_path)
    torch.set_num_threads(threads)
