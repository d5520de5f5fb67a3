"""From hidden states to logits, as the class of transformers computes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlm.models.llm.fitness import refused
from vlm.models.llm.packing import base_of

_hidden: ContextVar[Tensor | None] = ContextVar("hidden", default=None)
"""Hidden states that the base model returns instead of computing any."""


class _Output(BaseModelOutputWithPast):
    """Hidden states and nothing else: whatever further field a family reads is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class GivenHidden:
    """Replaces the ``forward`` of a base model, so that only what follows it is computed."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.__signature__ = inspect.signature(forward)  # by which others see what the model takes, such as positions
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model, or the hidden states that :func:`logits_of` was given."""
        hidden = _hidden.get()
        if hidden is None:
            return self.forward(*args, **kwargs)
        self.calls += 1
        return _Output(last_hidden_state=hidden)


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Logits ``[b, L, vocab]`` of ``hidden [b, L, d]`` by the model's own ``forward``, which scales or caps them.

    :func:`prepare_head` must have replaced the ``forward`` of the base model, or of the decoder in it.
    """
    token = _hidden.set(hidden)
    try:
        return model(inputs_embeds=hidden, use_cache=False).logits
    finally:
        _hidden.reset(token)


def prepare_head(model: Any) -> bool:
    """Whether the logits are nothing but the head's product with the hidden states; else they go by :func:`logits_of`.

    The class is tried with a head and hidden states that are made up: no weight is read, on any device.

    Raises:
        ConfigError: the class has no head, or does not compute its logits from the hidden states of its base model.
    """
    base, head, name = base_of(model), model.get_output_embeddings(), type(model).__name__
    if head is None or base is None:
        raise refused(name, "it has no base model with a head on top")
    inner = [base] if model.get_decoder() in (None, base, model) else [base, model.get_decoder()]
    given = [GivenHidden(module.forward) for module in inner]
    tried = _TriedHead(model.config.get_text_config().vocab_size)
    head.__dict__["forward"] = tried
    for module, forward in zip(inner, given, strict=True):
        module.__dict__["forward"] = forward
    width = model.get_input_embeddings().embedding_dim
    hidden = (torch.arange(2 * width, device="cpu") % 7 - 3).view(1, 2, width).to(torch.get_default_dtype())
    try:
        with torch.no_grad():
            found = logits_of(model, hidden)
        plain = tried.seen is not None and _same(tried.seen, hidden) and _same(found, tried.logits)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):  # a layer between the two
        plain = False
    finally:
        del head.__dict__["forward"]
    if not any(forward.calls for forward in given):
        raise refused(name, "its logits are not computed from the hidden states of its base model")
    for module in inner if plain else ():
        del module.__dict__["forward"]
    return plain


class _TriedHead:
    """Replaces the ``forward`` of a head: records its input and returns made-up logits."""

    def __init__(self, vocab: int) -> None:
        # small integers are exact in every dtype, and a soft cap changes them
        self.logits = (torch.arange(2 * vocab, device="cpu") % 101 - 50).view(1, 2, vocab).float()
        self.seen: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return self.logits


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())
