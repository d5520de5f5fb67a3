"""What tests of the library and of plugins build on: a tiny model, samples for it, recorded cases."""

from vlm.testing.cases import RecordedCase
from vlm.testing.tiny import (
    LLAMA,
    MeanColors,
    composition,
    part,
    tiny_config,
    tiny_engine,
    tiny_example,
    tiny_model,
    weight,
)

__all__ = [
    "LLAMA",
    "MeanColors",
    "RecordedCase",
    "composition",
    "part",
    "tiny_config",
    "tiny_engine",
    "tiny_example",
    "tiny_model",
    "weight",
]
