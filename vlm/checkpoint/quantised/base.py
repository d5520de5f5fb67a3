"""The quantised layers of a model that is being loaded: placed first, filled a matrix at a time, kept at the end."""

from __future__ import annotations

from typing import Any

import torch

from vlm.checkpoint.quantised.kept import keep, open_kept
from vlm.common import dist
from vlm.models.build import set_precision
from vlm.models.quantized.llm import gradients_pass, mode_of, quantize_llm
from vlm.models.quantized.place import fill_rest, place_layers, report
from vlm.models.quantized.short import quantize_images
from vlm.models.trainable import select_trainable


class QuantisedBase:
    """What becomes of the linear layers of a model's LLM.

    Args:
        model_cfg: the ``ModelConfig``; without ``llm.quantize`` nothing happens.
        device: where the model will be.
        training: whether gradients must pass.

    Attributes:
        mode: ``llm.quantize``.
        streamed: whether files fill quantised layers; else the whole model is quantised in :meth:`finish`.
        meant_for: the device for which storage types are chosen while the model is built; None: where that is.
    """

    def __init__(self, model_cfg: Any, device: torch.device, training: bool) -> None:
        self.mode = mode_of(model_cfg)
        self.streamed = gradients_pass(self.mode, training)
        self.meant_for = device if self.streamed or self.mode is None else None
        self._cfg = model_cfg
        self._options: Any = model_cfg.llm.config.quantize_options if self.streamed else None
        self._device = device
        self._layers: dict[str, Any] = {}

    def place(self, model: Any) -> None:
        """Before a file is read. Raises UserError: as :func:`place_layers`, or a folder of other weights."""
        if not self.streamed:
            return
        self._layers = place_layers(model.llm, str(self.mode), self._options, self._device)
        self._kept = open_kept(str(self.mode), self._options, self._layers)
        for layer in self._layers.values():
            layer.kept = self._kept is not None

    def finish(self, model: Any, dtype: torch.dtype | None) -> None:
        """After the files are read; ``dtype`` as in ``load_model``. Raises UserError: as :func:`quantize_llm`."""
        if self.streamed:
            self._fill()
        elif self.mode:
            other = quantize_llm(model.llm, self.mode, self._device)
            model.to(self._device)
            select_trainable(model, self._cfg.train)
            set_precision(model, self._cfg, dtype)
            model.compute_dtype = other or model.compute_dtype
            if self._cfg.llm.config.quantize_images and self.mode == "int8" and self._device.type == "cpu":
                quantize_images(model)

    def _fill(self) -> None:
        if self._kept is not None:
            self._kept.fill(self._layers, self._device)
            report(list(self._layers.values()))
            return
        fill_rest(self._layers.values())
        if self._options.keep is not None:
            dist.barrier()  # the others have seen that there is no folder yet
            keep(str(self.mode), self._options, self._layers)
