"""Language models in a GGUF file, by transformers' own rules for it: configuration, tokenizer, names and numbers.

A file is checked by :mod:`vlm.models.llm.gguf_header` before anything else is given it. Numbers are dequantised tensor
by tensor by the package ``gguf`` of llama.cpp.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm.common.errors import ConfigError, WeightsError
from vlm.models.llm.conversion import planned
from vlm.models.llm.gguf_header import AGAIN, DeclaredTensor, GGUFHeader, read_gguf
from vlm.models.llm.headed import causal_class

if TYPE_CHECKING:
    import numpy as np

INSTALL = "pip install gguf (or vlm[gguf])"
OTHER = "use the Hugging Face folder that it was converted from"
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies; part of the configuration."""
STATED = {"attention.key_length": "head_dim", "expert_feed_forward_length": "moe_intermediate_size"}
"""Metadata -> options of configurations."""
FAULTS = (ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError, OSError, OverflowError)
"""What transformers and gguf raise for values that they do not expect."""


def checked(path: str | Path) -> GGUFHeader:
    """The header of a GGUF file whose tensors are all there, of types that can be dequantised.

    Raises WeightsError: as :func:`~vlm.models.llm.gguf_header.read_gguf`, a cut-off file, an unknown quantisation, or
        the package ``gguf`` is missing.
    """
    header = read_gguf(path)
    known = _block_sizes()
    for name, tensor in header.tensors.items():
        if tensor.kind not in known or not _dequantises(tensor.kind):
            kinds = ", ".join(sorted(kind.name for kind in known if _dequantises(kind)))
            text = f"{path}: {name} is of the unknown quantisation {tensor.kind} (known: {kinds})"
            raise WeightsError(text, fix=f"{OTHER}, or a file of another quantisation, such as Q8_0")
        per_block, _ = known[tensor.kind]
        if tensor.shape[-1] % per_block:
            raise WeightsError(f"{path}: {name} {list(tensor.shape)} is not in blocks of {per_block}", fix=AGAIN)
        if (end := tensor.start + _bytes_of(tensor)) > header.size:
            text = f"{path}: cut off: {name} ends at byte {end:,}, the file has {header.size:,}"
            raise WeightsError(text, fix=AGAIN)
    return header


def _block_sizes() -> Mapping[Any, tuple[int, int]]:
    """Numbers and bytes of a block, by type."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise WeightsError("a GGUF file needs the package gguf, which is not installed", fix=INSTALL) from error
    return GGML_QUANT_SIZES  # type: ignore[no-any-return]


@lru_cache
def _dequantises(kind: Any) -> bool:
    import numpy
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        dequantize(numpy.zeros((1, _block_sizes()[kind][1]), numpy.uint8), GGMLQuantizationType(kind))
    except (NotImplementedError, ValueError):
        return False
    return True


def _bytes_of(tensor: DeclaredTensor) -> int:
    numbers, size = _block_sizes()[tensor.kind]  # type: ignore[index]
    return math.prod(tensor.shape) // numbers * size


def read_tensor(header: GGUFHeader, name: str) -> np.ndarray[Any, Any]:
    """A tensor in float32, in the order of torch; its pages of the file are released at once."""
    import numpy
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    tensor = header.tensors[name]
    size = _bytes_of(tensor)
    raw = numpy.memmap(header.path, numpy.uint8, "r", tensor.start, (size,))
    rows = raw.reshape(*tensor.shape[:-1], size // math.prod(tensor.shape[:-1]))
    found = numpy.array(dequantize(rows, GGMLQuantizationType(tensor.kind)), numpy.float32)
    return found.reshape(tensor.shape)


def read_gguf_config(path: str | Path) -> Any:
    """The transformers configuration of a GGUF file.

    Raises:
        WeightsError: as :func:`checked`; transformers does not know the architecture; or the metadata declare a larger
            model than the tensors.
    """
    from transformers import AutoConfig

    header = checked(path)
    try:
        with _alone(header.path) as folder:
            config = AutoConfig.from_pretrained(
                folder, gguf_file=header.path.name, local_files_only=True, trust_remote_code=False
            )
    except FAULTS as error:
        raise _not_read(header, error) from error
    _complete(header, config)
    _check_sizes(header, config)
    return config


def _complete(header: GGUFHeader, config: Any) -> None:
    """Set what transformers leaves at the default of the family, although the file says it."""
    have = config.to_dict()
    for key, option in STATED.items():
        value = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(value, int) and option in have:
            setattr(config, option, value)
    if ROPE_FACTORS in header.tensors:  # per frequency, as the rule of Llama 3.1 has changed them
        factors = read_tensor(header, ROPE_FACTORS).tolist()
        config.rope_parameters = {
            "rope_type": "longrope",
            "rope_theta": have["rope_parameters"]["rope_theta"],
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": have["max_position_embeddings"],
        }


def _not_read(header: GGUFHeader, error: Exception) -> WeightsError:
    architecture, known = header.architecture, _architectures()
    if architecture in known:
        return WeightsError(f"{header.path}: its metadata cannot be read ({type(error).__name__}: {error})", fix=AGAIN)
    text = f"{header.path}: architecture {architecture!r} is not one that transformers reads ({', '.join(known)})"
    return WeightsError(text, fix=OTHER)


def _architectures() -> list[str]:
    """llama.cpp's names of the decoders that transformers reads."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, TENSOR_PROCESSORS

    others = {"general", "tokenizer", "t5", "t5encoder", "umt5"}
    return sorted({*GGUF_SUPPORTED_ARCHITECTURES, *TENSOR_PROCESSORS, *_by_rules()} - others)


def _check_sizes(header: GGUFHeader, config: Any) -> None:
    """Raise WeightsError if the model of ``config`` has more parameters than the file, before any is allocated."""
    have = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    try:
        layers = config.get_text_config().num_hidden_layers
        if not isinstance(layers, int) or not 0 < layers <= len(header.tensors):
            raise ValueError(f"{layers} layers, but the file has {len(header.tensors)} tensors")
        want = sum(parameter.numel() for parameter in _empty(config).parameters())
    except (*FAULTS, RuntimeError, ConfigError) as error:
        raise WeightsError(f"{header.path}: no model has the sizes of its metadata ({error})", fix=AGAIN) from error
    if want > 1.01 * have + 10_000:
        text = f"{header.path}: its metadata declare {want:,} parameters, its tensors have {have:,}"
        raise WeightsError(text, fix=AGAIN)


def _empty(config: Any) -> Any:
    with torch.device("meta"):
        return causal_class(config)._from_config(config)


def gguf_tokenizer(path: str | Path) -> Path:
    """A folder with the tokenizer of a GGUF file as Hugging Face stores it; it goes when the process ends.

    Raises WeightsError: as :func:`read_gguf_config`, or it has no tokenizer that transformers reads.
    """
    header = checked(path)
    return Path(_tokenizer(header.path, header.size, header.path.stat().st_mtime_ns).name)


@lru_cache(maxsize=4)
def _tokenizer(path: Path, size: int, changed: int) -> tempfile.TemporaryDirectory[str]:
    from transformers import AutoTokenizer

    target = tempfile.TemporaryDirectory(prefix="vlm_gguf_")
    try:
        with _alone(path) as folder:
            made: Any = AutoTokenizer.from_pretrained(
                folder, gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
    except UNNAMED as error:
        if not isinstance(error, FAULTS) and type(error) is not UNNAMED:
            raise
        raise _not_read(checked(path), error) from error
    metadata = read_gguf(path).metadata
    for role in ("bos", "eos"):  # not every version takes them over
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        token = made.convert_ids_to_tokens(index) if isinstance(index, int) and index < len(made) else None
        if token is not None:
            made.add_special_tokens({f"{role}_token": token})
    made.save_pretrained(target.name)
    return target


UNNAMED = Exception
"""What the package tokenizers raises: it has no class of its own for faults of a vocabulary."""


class _alone:
    """A folder that has a link to a file and nothing else, so that nothing beside it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> str:
        self.folder = tempfile.TemporaryDirectory(prefix="vlm_gguf_")
        (Path(self.folder.name) / self.path.name).symlink_to(self.path.resolve())
        return self.folder.name

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


@dataclass(frozen=True)
class GGUFTensors:
    """Tensors of a file that make one or more of a model's.

    Attributes:
        name: of the (first) tensor of the file.
        shapes: name in the model -> shape.
        make: reads and converts them.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    make: Callable[[], dict[str, Tensor]]


def plan(header: GGUFHeader, config: Any) -> tuple[list[GGUFTensors], list[str]]:
    """How the tensors of a file become those of transformers' model, and names that have no place in it.

    Raises WeightsError: transformers has no rules for the architecture, or tensors do not fit one another.
    """
    model = _empty(config)
    try:
        if header.architecture in _by_rules():
            return _plan_by_rules(header, model), []
        return _plan_by_names(header, model)
    except (*FAULTS, RuntimeError) as error:
        raise _not_read(header, error) from error


def _by_rules() -> Iterable[str]:
    """Architectures for which transformers (since 5.24) has conversion rules, as for its own older files."""
    try:
        from transformers.integrations.gguf import GGUF_ARCHS
    except ImportError:
        return ()
    return tuple(GGUF_ARCHS)


def _plan_by_rules(header: GGUFHeader, model: Any) -> list[GGUFTensors]:
    from transformers.integrations.gguf import get_gguf_conversion_mapping

    rules = get_gguf_conversion_mapping(header.architecture, model.config)
    result = []
    for step in planned(model, header.tensors, set(model.state_dict()), rules):
        facts = step.make(model, lambda name: torch.empty(header.tensors[name].shape, device="meta"), str(header.path))

        def read(name: str) -> Tensor:
            return torch.from_numpy(read_tensor(header, name))

        make = partial(step.make, model, read, str(header.path))
        result.append(GGUFTensors(step.sources[0][0], {name: tuple(t.shape) for name, t in facts.items()}, make))
    return result


def _plan_by_names(header: GGUFHeader, model: Any) -> tuple[list[GGUFTensors], list[str]]:
    import numpy
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    stated = model.config.to_dict()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=stated)
    places = get_gguf_hf_weights_map(model, processor)
    groups: dict[str, list[str]] = {}
    strangers = []
    for name in header.tensors:
        place = places.get(name, places.get(name.removesuffix(".weight")))
        if name == ROPE_FACTORS:
            continue
        if place is None:
            strangers.append(name)
        else:
            groups.setdefault(place, []).append(name)

    def made(names: list[str], read: Callable[[str], np.ndarray[Any, Any]]) -> dict[str, Tensor]:
        found: dict[str, Any] = {"config": stated, "tensors": {}}
        for name in names:
            done = processor.process(read(name), name, tensor_key_mapping=places, parsed_parameters=found)
            if done.name is not None:
                found["tensors"][places[done.name]] = torch.from_numpy(numpy.ascontiguousarray(done.weights))
        return dict(found["tensors"])

    def shape(name: str) -> np.ndarray[Any, Any]:
        return numpy.broadcast_to(numpy.float32(0), header.tensors[name].shape)

    result = []
    for names in groups.values():
        shapes = {name: tuple(t.shape) for name, t in made(names, shape).items()}
        result.append(GGUFTensors(names[0], shapes, partial(made, names, partial(read_tensor, header))))
    return result, strangers
