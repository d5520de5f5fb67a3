"""``vlm weights export RUN --to gguf OUT``: a language model and a projector for llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlm.common.errors import UserError, WeightsError
from vlm.common.registry import register_export
from vlm.config.api import Config as WholeConfig
from vlm.inference.export import new_folder, refuse_existing
from vlm.inference.gguf import language, tower
from vlm.inference.gguf.vocabulary import add_vocabulary
from vlm.inference.hub.contents import Contents
from vlm.inference.hub.export import HubExport

INSTALL = "pip install gguf (or vlm-compose[gguf])"
FILE_TYPES = {torch.float32: 0, torch.float16: 1}
"""``general.file_type``."""
Plan = dict[str, tuple[str, Callable[[Tensor], Tensor]]]


@register_export("gguf")
class GGUFExport:
    """Two files of llama.cpp: a language model, and a CLIP or SigLIP tower with its MLP."""

    @dataclass
    class Config:
        """``dtype`` of the matrices; vectors are float32. Null: fp32 of an LLM in fp32, else fp16.

        ``form: class-token`` writes a CLIP tower although llama.cpp computes it otherwise.
        """

        dtype: Literal["fp32", "fp16"] | None = None
        form: Literal["", "class-token"] = ""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def write(self, source: Path | WholeConfig, target: Path) -> list[str]:
        """Write ``model.gguf`` and ``mmproj.gguf`` into the folder ``target``, which appears when both are written.

        Raises:
            UserError: ``target`` exists, the composition is not of llama.cpp's LLaVA form, its LLM is of a family that
                is not written, or the package gguf is not installed.
        """
        refuse_existing(target)
        dtype = self.config.dtype
        if dtype not in (None, "fp32", "fp16"):
            raise UserError(f"--dtype {dtype}: GGUF is written in fp32 or fp16", fix="leave it out, or quantise later")
        contents = HubExport().contents(source)
        if reason := tower.misfit(contents):
            text = f"the composition is not of llama.cpp's LLaVA form: {reason}"
            raise WeightsError(text, fix="write a folder for transformers: --to hf")
        notes = [] if contents.processor.image.config.resize == "pad" else [NOT_PADDED]
        if tower.has_class_token(contents):
            if self.config.form != "class-token":
                raise WeightsError(f"llama.cpp computes CLIP otherwise: {CLASS_TOKEN}", fix=CLASS_TOKEN_FIX)
            notes.append(f"llama.cpp computes the image otherwise: {CLASS_TOKEN}")
        architecture = language.check_family(contents)
        full = contents.dtype is torch.float32 if dtype is None else dtype == "fp32"
        contents.dtype = torch.float32 if full else torch.float16
        with new_folder(target) as folder:
            self._language(contents, architecture, folder / "model.gguf")
            self._tower(contents, folder / "mmproj.gguf")
        kind = "F32" if full else "F16"
        return [f"{target}: model.gguf ({architecture}, {kind}) and mmproj.gguf (mlp)", *notes]

    def _language(self, contents: Contents, architecture: str, file: Path) -> None:
        with writing(file, architecture, contents) as (writer, put):
            language.add_sizes(writer, contents)
            add_vocabulary(writer, contents, contents.llm_config.model_type)
            put(language.plan(contents, architecture))

    def _tower(self, contents: Contents, file: Path) -> None:
        with writing(file, "clip", contents) as (writer, put):
            tower.add_sizes(writer, contents)
            own = [name for name in contents.weights.facts if not name.startswith("llm.")]
            put({str(tower.NAMES.theirs(name)): (name, language.unchanged) for name in own})


@contextmanager
def writing(file: Path, architecture: str, contents: Contents) -> Iterator[tuple[Any, Callable[[Plan], None]]]:
    """A writer of the package gguf for the metadata, and what then writes the planned tensors one by one.

    Raises WeightsError: the package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise WeightsError("a GGUF file needs the package gguf, which is not installed", fix=INSTALL) from error
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(contents.source.resolve().name)
    writer.add_file_type(FILE_TYPES[contents.dtype])

    def put(plan: Plan) -> None:
        import numpy

        kinds: dict[torch.dtype, Any] = {torch.float32: numpy.dtype("float32"), torch.float16: numpy.dtype("float16")}
        for theirs, (name, _) in plan.items():
            fact = contents.weights.facts[name]
            kind = language.stored(name, fact, contents.dtype).dtype
            writer.add_tensor_info(theirs, list(fact.shape), kinds[kind], fact.numel() * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, turn in plan.values():
            tensor = turn(contents.weights.read(name, torch.float32))
            writer.write_tensor_data(language.stored(name, tensor, contents.dtype).contiguous().numpy())

    try:
        yield writer, put
    finally:
        writer.close()


CLASS_TOKEN = "its LLaVA graph puts the class token after the patches, but reads the rows as if it were first"
"""Seen in the build b11549 (October 2026): the rows of an image are those of patches 1 to n - 1 and of the class token,
each with the position of its neighbour. A SigLIP tower, without class token, gives the same ids there as here."""
CLASS_TOKEN_FIX = "use a SigLIP tower, or --to hf; where your llama.cpp has mended it: --form class-token"
NOT_PADDED = "llama.cpp pads an image to a square, this composition does not: answers about long images differ"
