from __future__ import annotations

from pathlib import Path

import pytest

from vlm.processors.tokenizer.tokenizer import Tokenizer

OPEN = Path(__file__).parents[1] / "golden" / "minigpt4" / "open"


@pytest.fixture(scope="session")
def llm_folder() -> Path:
    """A small LLaMA folder with sentencepiece files."""
    return OPEN / "llm"


@pytest.fixture(scope="session")
def tokenizer(llm_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(llm_folder)
