"""The weights of a composition, read from its files one tensor at a time."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vlm.checkpoint.load import RANDOM, infer, random_parts, resolve_path, unfilled
from vlm.checkpoint.quantised.rounded import RoundedBase
from vlm.checkpoint.strict import NamedTensors, check_numbers, fit_strictly, is_finite, not_finite
from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.models.build import build_model
from vlm.models.lora import ADAPTER, is_lora
from vlm.models.quantized.llm import gradients_pass, mode_of, plain_llm
from vlm.models.vlm import VLM

OPEN_BYTES = 2**26
"""Bytes read before a file is closed and opened again: mapped pages count as memory of the process."""
LORA_A, LORA_B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def _rounded(model: VLM, model_cfg: Any) -> RoundedBase:
    mode = mode_of(model_cfg)
    if not gradients_pass(mode, training=True):
        raise ConfigError(
            f"--base quantised: model.llm.quantize is {mode or 'null'}, so the LLM was trained on the full weights",
            fix="leave --base out",
        )
    return RoundedBase(model.llm, str(mode), model_cfg.llm.config.quantize_options, model)


class StoredWeights:
    """What ``load_model`` would load, without loading it: names, shapes and single tensors.

    Names are those of the composition without LoRA: a wrapped layer's ``x.base_layer.weight`` is ``x.weight``.

    Attributes:
        model: the composition on the device ``meta``.
        model_cfg: its configuration, with what the files say filled in.
        facts: name -> shape and dtype (a tensor on ``meta``).
        merge: whether :meth:`read` adds the LoRA updates.
        rounded: what the matrices of a quantised LLM go through before that; None: nothing.
    """

    def __init__(self, cfg: Any, *, merge: bool = True, quantised: bool = False) -> None:
        """Open every file of ``cfg.model.weights`` and check it strictly.

        Args:
            cfg: a ``Config``.
            merge: see the attribute.
            quantised: give the LLM the numbers that it has as ``llm.quantize`` stores it.

        Raises:
            ConfigError: ``quantised``, but the composition's LLM is not.
            WeightsError: as ``load_model``; or a parameter that no file fills.
        """
        self.merge = merge
        entries = [w for w in cfg.model.weights if w.path and w.format != RANDOM]
        self._loaders = [(w, resolve("checkpoint_format", w.format)(w.into)) for w in entries]
        self.model_cfg, _ = infer(plain_llm(cfg.model), self._loaders)
        self.model: VLM = build_model(self.model_cfg, device="meta")
        self.rounded = _rounded(self.model, cfg.model) if quantised else None
        self._filled: list[frozenset[str]] = []
        self._owner: dict[str, int] = {}
        self._open: tuple[int, NamedTensors | None] = (-1, None)
        self._used = 0
        for number in range(len(entries)):
            self._filled.append(frozenset(self._owner))
            self._owner |= dict.fromkeys(self._placement(number).tensors, number)
        if bare := unfilled(self.model, set(self._owner)):
            raise random_parts(bare, cfg.run.output_dir)
        self.model.random = frozenset()
        have = self.model.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        self._same = {name: first.setdefault(id(t), name) for name, t in have.items()}
        self._inner = {name.replace(".base_layer.", "."): name for name in have if not is_lora(name)}
        self.facts: dict[str, Tensor] = {name: have[inner].detach() for name, inner in self._inner.items()}
        self.lora = sorted({name.removesuffix(LORA_A) for name in have if name.endswith(LORA_A)})

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of the tensor ``name`` with the update of its layer, in ``dtype`` (None: as it is stored).

        Raises WeightsError: numbers that are not finite, or that ``dtype`` cannot hold.
        """
        layer = name.rpartition(".")[0]
        if self.rounded is not None and name in self.rounded.names:
            return self._merged_rounded(name, dtype)
        if not (self.merge and name.endswith(".weight") and layer in self.lora):
            return self._copy(self._inner[name], dtype)
        base = self._copy(self._inner[name])
        return base.float().add_(self._update(layer)).to(dtype or base.dtype)

    def _update(self, layer: str) -> Tensor:
        """What LoRA adds to the matrix of a layer of :attr:`lora`, in float32."""
        module: Any = self.model.get_submodule(layer)
        a, b = self.matrices(layer)
        update = (b @ a).mul_(module.scaling[ADAPTER])
        return update.T if module.fan_in_fan_out else update

    def _merged_rounded(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """As :meth:`read`, for a matrix that is quantised and made again."""
        assert self.rounded is not None
        base, layer = self._copy(self._inner[name]), name.rpartition(".")[0]
        whole = self.rounded.through(name, base)
        if self.merge and layer in self.lora:
            whole = whole + self._update(layer)
        return whole.to(dtype or base.dtype)

    def matrices(self, layer: str) -> tuple[Tensor, Tensor]:
        """LoRA's A ``[r, in]`` and B ``[out, r]`` of a layer of :attr:`lora`, in float32."""
        a, b = (self._copy(layer + matrix, torch.float32) for matrix in (LORA_A, LORA_B))
        return a, b

    def release(self) -> None:
        """Close the open file."""
        self._open, self._used = (-1, None), 0

    @cached_property
    def _fixed(self) -> dict[str, Tensor]:
        """Norms and gates that no file holds, at the values that they start with."""
        lists = [f"{kind}.{i}" for kind in ("bridge", "inserts") for i in range(len(getattr(self.model_cfg, kind)))]
        built = build_model(self.model_cfg, uninitialised=["vision", "llm", *lists])  # takes no memory until it is read
        filled = {self._same[key] for key in self._owner}
        return {k: t.clone() for k, t in built.state_dict().items() if self._same[k] not in filled}

    def _copy(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        if key not in self._owner:
            if key in self._fixed:
                return self._fixed[key].to(dtype or self._fixed[key].dtype, copy=True)
            key = next(k for k in self._owner if self._same[k] == self._same[key])
        number = self._owner[key]
        placement = self._placement(number)
        source = placement.sources.get(key)
        tensor = placement.tensors[key] if source is None else source()
        copied = tensor.to(dtype or tensor.dtype, copy=source is None)
        if not (is_finite(copied) or self._loaders[number][0].allow_nonfinite):
            raise not_finite(placement.file, placement.theirs.get(key, key), tensor, copied.dtype)
        self._used += tensor.nbytes if source is None else 0  # what reads one tensor closes its files itself
        if self._used > OPEN_BYTES:
            self.release()
        return copied

    def _placement(self, number: int) -> NamedTensors:
        """The tensors of file ``number`` by our names, mapped from disk; the file read before is closed."""
        if self._open[0] != number or self._open[1] is None:
            self.release()
            weight, loader = self._loaders[number]
            path = resolve_path(weight.path)
            tensors = loader.read(path)
            placement = loader.rename(self.model, tensors, str(path), self._filled[number])
            check_numbers(placement, tensors)
            self._open = number, fit_strictly(self.model, placement, loader.hint)
        assert self._open[1] is not None
        return self._open[1]
