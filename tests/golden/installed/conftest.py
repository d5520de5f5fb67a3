"""Every case of the modules beside this one, loaded here and by the installed transformers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.installed.folders import Case
from vlm.common.types import Example, Message
from vlm.inference.architectures.against import image_token_of, prompts, text_of
from vlm.inference.architectures.reference import Reference
from vlm.inference.architectures.source import architecture_of
from vlm.inference.engine import Engine

MODULES = sorted(
    f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith(("test_", "folders", "conftest"))
)
CASES = [case for name in MODULES for case in importlib.import_module(f"tests.golden.installed.{name}").CASES]


@dataclass
class Pair:
    """A folder loaded both ways, and three conversations: one, no and two images."""

    case: Case
    folder: Path
    engine: Engine
    reference: Reference
    conversations: list[list[Message]]

    @cached_property
    def inputs(self) -> list[Mapping[str, Any]]:
        """Of transformers' model, for each conversation."""
        token = self.engine.processor.tokenizer.piece(image_token_of(self.engine))
        texts: list[str | None] = [None] * len(self.conversations)
        if not self.reference.has_template:
            kind = architecture_of(self.folder)
            texts = [kind.prompt_text(text_of(self.engine, c, token), token) for c in self.conversations]
        return [self.reference.inputs(c, text) for c, text in zip(self.conversations, texts, strict=True)]

    @cached_property
    def examples(self) -> list[Example]:
        """Ours."""
        return self.engine.examples(self.conversations)

    def logits(self) -> tuple[list[Tensor], list[Tensor]]:
        """Ours and theirs of each conversation, at its positions."""
        batch = self.engine.batch(self.examples)
        ours = self.engine.model(batch, return_logits=True).logits
        lengths = (self.engine.fuse(self.examples).segments > 0).sum(1).tolist()
        theirs = [self.reference.model(**inputs).logits[0] for inputs in self.inputs]
        return [row[:length] for row, length in zip(ours, lengths, strict=True)], theirs


@pytest.fixture(scope="session", params=CASES, ids=[case.name for case in CASES])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    case.build(folder)
    engine = Engine.load(folder, "cpu")
    return Pair(case, folder, engine, Reference(folder, torch.device("cpu")), prompts(3, 0, architecture_of(folder)))
