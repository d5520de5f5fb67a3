"""A folder with the quantised weights of an LLM, made once and read ever after.

::

    FOLDER/
      quantised.json       the options, and of each layer its shape and a few numbers of the matrix before
      model.safetensors    LAYER.weight, LAYER.scales, and with 8-bit scales LAYER.nested and LAYER.mean

The files of the full weights stay where they are: their names and shapes are read at each start, and those few numbers
of each matrix, but not the rest of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.convert.folder import new_folder
from vlm.checkpoint.header import header
from vlm.checkpoint.provenance import ROUNDED, SMALLEST
from vlm.checkpoint.safe import read_json, write_json
from vlm.checkpoint.stream import write_safetensors
from vlm.common import VERSION, dist
from vlm.common.errors import ConfigError, WeightsError
from vlm.models.quantized.layers import QuantisedLinear
from vlm.models.quantized.options import QuantizeOptions

log = logging.getLogger(__name__)

INDEX, WEIGHTS = "quantised.json", "model.safetensors"
FORMAT = 1
AGAIN = "name another folder in model.llm.quantize_options.keep, or delete this one so that it is written again"


class KeptWeights:
    """A folder that :func:`keep` wrote.

    Raises:
        WeightsError: something else is there, it is damaged, or of another mode, block size or set of layers.
    """

    def __init__(
        self, folder: Path, mode: str, options: QuantizeOptions, layers: Mapping[str, QuantisedLinear]
    ) -> None:
        self.folder = folder
        index = read_json(folder / INDEX)
        found = {key: index.get(key) for key in _options(mode, options)}
        if index.get("format") != FORMAT:
            raise WeightsError(f"{folder / INDEX}: format {index.get('format')}, known: {FORMAT}", fix=AGAIN)
        if found != _options(mode, options):
            told = "; ".join(f"{k} {found[k]}, here {v}" for k, v in _options(mode, options).items() if found[k] != v)
            raise WeightsError(f"{folder} was quantised otherwise: {told}", fix=AGAIN)
        self.layers: dict[str, Any] = index.get("layers") or {}
        if odd := sorted(set(self.layers) ^ set(layers)):
            text = f"{folder} holds {len(self.layers)} layers, this LLM has {len(layers)} to quantise (first {odd[0]})"
            raise WeightsError(text, fix=AGAIN)
        self._facts = header(folder / WEIGHTS)
        for name, layer in layers.items():
            for part, (shape, dtype) in layer.layout().items():
                fact = self._facts.get(f"{name}.{part}")
                if fact is None or (tuple(fact.shape), fact.dtype) != (shape, dtype):
                    raise WeightsError(f"{folder / WEIGHTS}: {name}.{part} is missing or of another shape", fix=AGAIN)

    def fill(self, layers: Mapping[str, QuantisedLinear], device: torch.device) -> None:
        """Give each of ``layers`` its weights, after comparing what it saw of the full ones.

        Raises WeightsError: the folder belongs to other weights, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        others = [name for name, layer in layers.items() if not self._same(name, layer.probe)]
        if others:
            raise WeightsError(
                f"{self.folder} was made from other weights than model.weights names ({len(others)} of {len(layers)} "
                f"layers differ, first {others[0]})",
                fix=AGAIN,
            )
        try:
            with safe_open(self.folder / WEIGHTS, "pt", device=str(device)) as file:
                for name, layer in layers.items():
                    layer.take({part: file.get_tensor(f"{name}.{part}").clone() for part in layer.layout()})
        except SafetensorError as error:
            raise WeightsError(f"{self.folder / WEIGHTS}: damaged ({error})", fix=AGAIN) from error

    def _same(self, name: str, found: Tensor | None) -> bool:
        if found is None:
            return False
        try:
            was = torch.tensor([float(value) for value in self.layers[name]["probe"]])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{self.folder / INDEX}: {name} is damaged ({error})", fix=AGAIN) from error
        if was.shape != found.shape:
            return False
        near = (found - was).abs() <= ROUNDED * torch.maximum(found.abs(), was.abs()) + SMALLEST
        return bool(near.all())


def open_kept(mode: str, options: QuantizeOptions, layers: Mapping[str, QuantisedLinear]) -> KeptWeights | None:
    """The folder of ``options.keep`` if it is there; None without one, or if it is still to be written.

    All processes must call it: the first one looks whether it is there.

    Raises WeightsError: as :class:`KeptWeights`.
    """
    if options.keep is None:
        return None
    folder = Path(options.keep).expanduser()
    there = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if not dist.broadcast_object(there):
        return None
    if not (folder / INDEX).is_file():
        raise WeightsError(f"{folder} has no {INDEX}: it holds something else than quantised weights", fix=AGAIN)
    return KeptWeights(folder, mode, options, layers)


def keep(mode: str, options: QuantizeOptions, layers: Mapping[str, QuantisedLinear]) -> None:
    """Write the folder of ``options.keep``; it appears as a whole. All processes must call it, the first one writes.

    Raises ConfigError: it cannot be written.
    """
    folder = Path(str(options.keep)).expanduser()
    tensors = {f"{n}.{part}": t for n, layer in layers.items() for part, t in layer.tensors().items()}
    entries = {
        name: {"shape": list(layer.full_shape), "probe": [float(f"{v:.9g}") for v in (layer.probe.tolist())]}
        for name, layer in layers.items()
        if layer.probe is not None
    }
    if not dist.is_main():
        return
    try:
        with new_folder(folder) as work:
            write_safetensors(work / WEIGHTS, tensors, lambda name: tensors[name].cpu())
            head = {"format": FORMAT, "vlm": VERSION, **_options(mode, options)}
            write_json(work / INDEX, {**head, "layers": entries})
    except OSError as error:
        text = f"model.llm.quantize_options.keep: {folder} cannot be written ({error.strerror})"
        raise ConfigError(text, fix="name a folder on a disk with room") from error
    size = sum(tensor.nbytes for tensor in tensors.values())
    log.info("quantised weights kept in %s (%.1f MB)", folder, size / 1e6)


def _options(mode: str, options: QuantizeOptions) -> dict[str, Any]:
    """What the numbers in the files depend on."""
    return {"mode": mode} | ({"block_size": options.block_size, "double": options.double} if mode == "nf4" else {})
