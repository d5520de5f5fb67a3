"""A composition without its language model: vision encoder, bridges, and the token embeddings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlm.checkpoint.formats.base import CheckpointFormat
from vlm.checkpoint.load import (
    RANDOM,
    check_base,
    check_frozen,
    declared_random,
    infer,
    load_file,
    load_model,
    random_parts,
    resolve_path,
    unfilled,
)
from vlm.common.dist import pick_device
from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.config.api import Config
from vlm.inference.load import read_source, warn_of_run
from vlm.models.build import build_model, build_visual, set_precision
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.trainable import select_trainable

if TYPE_CHECKING:
    from vlm.models.vlm import VLM
    from vlm.processors.processor import Processor

log = logging.getLogger(__name__)


def load_without_llm(
    source: str | Path | Config,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    options: Sequence[str] = (),
    *,
    allow_random: bool = False,
) -> tuple[VLM, Processor, Config, torch.device]:
    """Model, processor, configuration and device; the LLM has its token embeddings, all else of it no memory.

    Args: see ``Engine.load``.

    Raises:
        UserError: as ``Engine.load``.
        ConfigError: a composition that vLLM cannot run on rows of embeddings alone.
    """
    from vlm.processors.processor import build_processor

    cfg = source if isinstance(source, Config) else read_source(source, options)
    check_composition(cfg.model)
    where = device if isinstance(device, torch.device) else pick_device(device or cfg.run.device)
    processor = build_processor(cfg.model)
    model = _filled(cfg, where, dtype, allow_random)
    warn_of_run(cfg)
    return model.eval(), processor, cfg, where


def check_composition(model: Any) -> None:
    """Check that a text model which reads rows is all that a composition (``ModelConfig``) needs.

    Raises ConfigError: it is not; each reason is named.
    """
    reasons = []
    if model.inserts:
        names = ", ".join(part.name for part in model.inserts)
        reasons.append(f"model.inserts ({names}) work between the layers of the LLM, which vLLM keeps to itself")
    fusion = resolve("fusion", model.fusion.name)
    if not issubclass(fusion, Splice):
        reasons.append(f"model.fusion {model.fusion.name} does not put images into the sequence of the text")
    if model.fusion.get("attention") not in (None, "causal"):
        reasons.append("model.fusion.attention lets visual tokens see later ones, and vLLM's text models are causal")
    if model.fusion.get("positions") not in (None, "text"):
        reasons.append("model.fusion.positions is grid, but vLLM counts the positions of rows one after the other")
    if not isinstance(model.llm.config, HFCausalLM.Config):
        reasons.append(
            f"model.llm {model.llm.name} is not a causal LLM of transformers, of which vLLM has its own form"
        )
    elif model.llm.config.lora is not None:
        reasons.append("model.llm.lora is apart from the weights that the server reads; merge it (vlm weights export)")
    if reasons:
        text = "".join(f"\n  - {reason}" for reason in reasons)
        raise ConfigError(
            f"a vLLM server cannot run the language model of this composition:{text}",
            fix="serve it without --engine vllm",
        )


def _filled(cfg: Config, device: torch.device, dtype: torch.dtype | None, allow_random: bool) -> VLM:
    """See :func:`load_without_llm`; as ``vlm.checkpoint.load.load_model`` otherwise."""
    files = [w for w in cfg.model.weights if w.path or w.format == RANDOM]
    loaders = [(w, resolve("checkpoint_format", w.format)(w.into)) for w in files if w.format != RANDOM]
    model_cfg, _ = infer(cfg.model, loaders)
    check_composition(model_cfg)
    model_cfg = _plain(model_cfg)
    full = [loader for _, loader in loaders if isinstance(loader, CheckpointFormat)]
    covered = [part for loader in full for part in loader.covered_parts(model_cfg)]
    model = _built(model_cfg, device, dtype, covered)
    if model is None:
        return load_model(
            dataclasses.replace(cfg, model=model_cfg), device=device, dtype=dtype, allow_random=allow_random
        )
    declared = declared_random(model, [w for w in files if w.format == RANDOM])
    loaded: set[str] = set()
    for weight, loader in loaders:
        path = resolve_path(str(weight.path))
        loaded |= load_file(model, loader, path, declared | loaded, weight.allow_nonfinite)
        if isinstance(loader, CheckpointFormat) and loader.holds_trained:
            here = {name for name, p in model.named_parameters() if not p.is_meta}
            check_base(model, path, loaded & here, cfg.run.allow_other_base)
    bare = unfilled(model, loaded)
    check_frozen(model, [name for name in bare if name not in declared])
    if bare and not allow_random:
        raise random_parts(bare, cfg.run.output_dir)
    if trained := [name for name, p in model.named_parameters() if p.is_meta and p.requires_grad]:
        log.warning("the run trained the LLM (%s, ...): the server must serve what it became", trained[0])
    return model


def _plain(model_cfg: Any) -> Any:
    """The composition with an LLM that is not quantised: whether it is, is up to the server."""
    llm = dataclasses.replace(model_cfg.llm, config=dataclasses.replace(model_cfg.llm.config, quantize=None))
    return dataclasses.replace(model_cfg, llm=llm)


def _built(model_cfg: Any, device: torch.device, dtype: torch.dtype | None, covered: Sequence[str]) -> VLM | None:
    """The modules; what is not needed has no memory (device ``meta``). None: the embeddings are more than a table."""
    model = build_model(model_cfg, device="meta", dtype=dtype, uninitialised=covered)
    inner = model.llm.model
    table = inner.get_input_embeddings()
    if model.llm.position_axes != 1:
        raise ConfigError(
            f"{type(inner).__name__} has positions of {model.llm.position_axes} axes, and vLLM counts those of rows "
            "one after the other",
            fix="serve it without --engine vllm",
        )
    if list(table.buffers()):
        log.info("the token embeddings of %s are scaled: its weights are loaded here too", type(inner).__name__)
        return None
    with device:
        visual = build_visual(model_cfg, model.llm.hidden_size, covered)
    model.vision, model.bridge = visual.vision, visual.bridge
    stored = table.weight.dtype if device.type != "cpu" or table.weight.dtype != torch.float16 else torch.float32
    table.weight = nn.Parameter(torch.empty(table.weight.shape, dtype=stored, device=device))
    inner.tie_weights()
    select_trainable(model, model_cfg.train)
    set_precision(model, model_cfg, dtype)
    return model
