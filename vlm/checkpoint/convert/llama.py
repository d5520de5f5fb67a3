"""Original shards of LLaMA, Llama 2 and Llama 3 as a Hugging Face folder, joined a tensor at a time.

A folder of the original layout has ``params.json`` and ``consolidated.00.pth``, ``consolidated.01.pth``, ...: one file
per model-parallel process, each with a slice of every matrix. Two things differ besides the names:

* Query and key matrices turn neighbouring dimensions ``(2i, 2i + 1)`` of a head together; the Hugging Face layout turns
  ``(i, i + head/2)``, so their rows change places.
* The token table is split by width up to Llama 2, by rows since Llama 3; the shapes say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.safe import read_json, write_json
from vlm.checkpoint.stream import SHARD_BYTES, TensorReader, write_shards
from vlm.common.errors import WeightsError

LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KEYS = KeyMap(
    (
        *((f"layers.{{i}}.{a}.weight", f"model.layers.{{i}}.{b}.weight") for a, b in LAYER.items()),
        ("tok_embeddings.weight", EMBEDDINGS),
        ("norm.weight", "model.norm.weight"),
        ("output.weight", HEAD),
    ),
    ("rope.freqs", "*.rope.freqs"),
)
BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
"""Matrices whose columns are split; of all others it is the rows. Norms are whole in every shard."""
NORMS = ("input_layernorm", "post_attention_layernorm")
ROPE_THETA = 10000.0
POSITIONS = {10000.0: 4096, 500000.0: 8192, 1000000.0: 16384}
"""Context length by the rotary base, which params.json does not state: Llama 2, Llama 3, Code Llama."""
FIRST_EPS, FIRST_POSITIONS = 1e-6, 2048
"""The first LLaMA has another norm constant (all but 65B) and a context of 2048."""
SCALED_POSITIONS = 131072


@dataclass(frozen=True)
class Sizes:
    """What ``params.json`` states."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    norm_eps: float
    rope_theta: float
    scaled: bool  # rotary frequencies scaled as since Llama 3.1
    scale: float | None  # factor of the scaling, if it is stated

    @property
    def head_size(self) -> int:
        """Dimensions of a head."""
        return self.width // self.heads


def read_sizes(file: Path) -> Sizes:
    """Read ``params.json``. Raises WeightsError: no such file, or a number in it is missing or impossible."""
    params = read_json(file)

    def number(key: str, default: Any = None) -> Any:
        value = params.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise WeightsError(f"{file}: {key} is {value!r}, expected a number above 0", fix="download it again")
        return value

    heads, width = int(number("n_heads")), int(number("dim"))
    kv_heads = int(number("n_kv_heads", heads) if params.get("n_kv_heads") is not None else heads)
    if width % heads or heads % kv_heads:
        raise WeightsError(f"{file}: dim {width}, n_heads {heads} and n_kv_heads {kv_heads} do not fit together")
    scaled = params.get("use_scaled_rope") is True
    factor = float(number("rope_scaling_factor")) if "rope_scaling_factor" in params else None
    eps, theta = float(number("norm_eps")), float(number("rope_theta", ROPE_THETA))
    return Sizes(width, int(number("n_layers")), heads, kv_heads, eps, theta, scaled, factor)


class LlamaShards:
    """The shards of one model, and the tensors that they become.

    Attributes:
        sizes: what ``params.json`` states.
        names: name in the result -> name in the shards.
        tied: whether the head is the token table: it is absent, or has the same numbers.

    Raises:
        WeightsError: a file is missing, damaged, holds code, or the shards do not fit together.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.sizes = read_sizes(self.folder / "params.json")
        self.readers = [TensorReader([file]) for file in _files(self.folder)]
        first = self.readers[0].facts
        for number, reader in enumerate(self.readers):
            odd = [n for n, fact in reader.facts.items() if n not in first or fact.shape != first[n].shape]
            odd += [name for name in first if name not in reader.facts]
            if odd:
                text = (
                    f"{self.folder}: {odd[0]} is not the same in consolidated.00.pth and consolidated.{number:02d}.pth"
                )
                raise WeightsError(text, fix="use shards of one model; download them again")
        self.names, unknown = KEYS.rename(first)
        if unknown:
            raise WeightsError(
                f"{self.folder}: unknown tensor {unknown[0]} ({len(unknown)} in all)",
                fix="only dense models of text with the original names of LLaMA to Llama 3 can be converted",
            )
        self._axes = {name: self._axis(name) for name in self.names}
        self.tied = HEAD not in self.names
        self._check()
        if not self.tied and self._same_tables():
            self.tied = True
            del self.names[HEAD]

    def _axis(self, name: str) -> int | None:
        """The dimension along which shards join; None: every shard has the whole."""
        shape = self.readers[0].facts[self.names[name]].shape
        if len(shape) == 1:
            return None
        if name == EMBEDDINGS:
            return 0 if shape[1] == self.sizes.width else 1
        return 1 if name.endswith(BY_COLUMNS) else 0

    @property
    def facts(self) -> dict[str, Tensor]:
        """Name -> shape and dtype of the result, in the order of the layers."""
        result = {}
        for name in self.names:
            fact, axis = self.readers[0].facts[self.names[name]], self._axes[name]
            shape = list(fact.shape)
            if axis is not None:
                shape[axis] *= len(self.readers)
            result[name] = torch.empty(shape, dtype=fact.dtype, device="meta")
        return result

    def _check(self) -> None:
        facts, sizes = self.facts, self.sizes
        if EMBEDDINGS not in facts:
            raise WeightsError(f"{self.folder}: no tok_embeddings.weight", fix="download it again")
        width, kv, hidden = sizes.width, sizes.kv_heads * sizes.head_size, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (width,)}
        for i in range(sizes.layers):
            inner = {"q_proj": (width, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, width)}
            shapes |= {f"model.layers.{i}.self_attn.{name}.weight": shape for name, shape in inner.items()}
            outer = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
            shapes |= {f"model.layers.{i}.mlp.{name}.weight": shape for name, shape in outer.items()}
            shapes |= {
                f"model.layers.{i}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")
            }
        shapes[EMBEDDINGS] = (facts[EMBEDDINGS].shape[0], width)
        shapes |= {} if self.tied else {HEAD: (facts[EMBEDDINGS].shape[0], width)}
        for name in [*shapes, *facts]:
            found = tuple(facts[name].shape) if name in facts else None
            if found != shapes.get(name):
                theirs = KEYS.theirs(name)
                shown = "missing" if found is None else f"{list(found)} over {len(self.readers)} shards"
                expected = f"expected {list(shapes[name])}" if name in shapes else f"n_layers is {sizes.layers}"
                raise WeightsError(
                    f"{self.folder}: {theirs} is {shown}, by params.json {expected}",
                    fix="use params.json and all shards of one model",
                )

    @property
    def intermediate(self) -> int:
        """Width between the matrices of a feed-forward block, which params.json states only indirectly."""
        name = "layers.0.feed_forward.w1.weight"
        fact = self.readers[0].facts.get(name)
        if fact is None or fact.dim() != 2:
            raise WeightsError(f"{self.folder}: no {name}", fix="download it again")
        return fact.shape[0] * len(self.readers)

    def make(self, name: str) -> Tensor:
        """A tensor of the result."""
        axis, source = self._axes[name], self.names[name]
        if axis is None:
            return self.readers[0].read(source)
        pieces = [reader.read(source) for reader in self.readers]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=axis)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return rotary_halves(joined, self.sizes.head_size)
        return joined

    def _same_tables(self) -> bool:
        if self._axes[EMBEDDINGS] != 0:
            return False
        tables = ("tok_embeddings.weight", "output.weight")
        return all(torch.equal(*(reader.read(name) for name in tables)) for reader in self.readers)

    def positions(self) -> int:
        """The context length that models of these sizes were trained for; the shards do not state it."""
        if self.sizes.scaled:
            return SCALED_POSITIONS
        first = self.sizes.norm_eps == FIRST_EPS
        return FIRST_POSITIONS if first else POSITIONS.get(self.sizes.rope_theta, POSITIONS[ROPE_THETA])

    @property
    def newer(self) -> bool:
        """Whether this is the later of two releases whose tokenizers have one form: Llama 2, or Llama 3.1."""
        return self.sizes.scaled or (self.sizes.norm_eps != FIRST_EPS and self.sizes.rope_theta == ROPE_THETA)

    def config(self, positions: int | None = None) -> dict[str, Any]:
        """``config.json``, without the ids of special tokens; ``positions`` replaces :meth:`positions`."""
        sizes, table = self.sizes, self.facts[EMBEDDINGS]
        result = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": table.shape[0],
            "hidden_size": sizes.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": positions or self.positions(),
            "rms_norm_eps": sizes.norm_eps,
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": str(table.dtype).removeprefix("torch."),
        }
        if sizes.scaled:
            factor = sizes.scale or (32.0 if self.tied else 8.0)  # 3.2, which is tied; else 3.1
            bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
            result["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **bounds}
        return result

    def write(
        self,
        target: Path,
        special: Mapping[str, Any],
        positions: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> list[Path]:
        """Write weights and configurations of a Hugging Face folder; returns the weight files.

        Args:
            target: folder to write into.
            special: ``bos_token_id`` and ``eos_token_id`` of the tokenizer.
            positions: context length; None: :meth:`positions`.
            shard_bytes: largest weight file.
        """
        files = write_shards(target, self.facts, self.make, shard_bytes, safetensors=True)
        for reader in self.readers:
            reader.release()
        write_json(target / "config.json", self.config(positions) | dict(special))
        write_json(target / "generation_config.json", {"_from_model_config": True, **special})
        return files


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("consolidated.*.pth"))
    if not found:
        raise WeightsError(
            f"{folder}: no consolidated.00.pth",
            fix="name the folder with the original shards, e.g. llama/7B; a Hugging Face folder needs no conversion",
        )
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(found))]
    missing = [name for name in expected if name not in {file.name for file in found}]
    if missing:
        raise WeightsError(f"{folder}: {found[-1].name} is there, {missing[0]} is missing", fix="download it again")
    return found


def rotary_halves(matrix: Tensor, head_size: int) -> Tensor:
    """Rows ``[heads * head_size, width]`` of queries or keys, pairs ``(2i, 2i + 1)`` -> ``(i, i + head_size / 2)``."""
    rows, width = matrix.shape
    return matrix.view(rows // head_size, head_size // 2, 2, width).transpose(1, 2).reshape(rows, width)
