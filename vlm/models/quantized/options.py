"""The options beside ``llm.quantize``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vlm.common.errors import ConfigError

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024)
"""Numbers of weights that may share a scale in NF4; with more, bitsandbytes is less exact on a CPU."""


@dataclass
class QuantizeOptions:
    """Options of ``quantize: nf4``, and of ``quantize: int8`` in a run.

    ``block_size`` weights of NF4 share a scale (fewer in a layer whose rows these blocks would not fill), and
    ``double`` stores these scales in 8 bits. ``compute_dtype`` is the type of the products (null: that of the run, or
    of the inputs). ``skip`` is a list of globs: linear layers that stay as they are, by their names within the decoder
    (``layers.0.mlp.down_proj``). ``keep`` is a folder: the quantised weights are written there once, and read from
    there ever after.

    Example: ``quantize_options: {block_size: 128, skip: ["layers.0.*"], keep: /models/llama-nf4}``
    """

    block_size: int = 64
    double: bool = True
    compute_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    skip: list[str] = field(default_factory=list)
    keep: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError: a block size that bitsandbytes does not have."""
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(
                f"quantize_options.block_size is {self.block_size}, allowed: {', '.join(map(str, BLOCK_SIZES))}"
            )

    def block_of(self, width: int) -> int | None:
        """The block size of a layer with ``width`` inputs: the largest that fills its rows; None: there is none.

        Blocks that pass the ends of rows are read wrongly by bitsandbytes 0.50 on a CPU.
        """
        return next((size for size in BLOCK_SIZES[::-1] if size <= self.block_size and width % size == 0), None)
