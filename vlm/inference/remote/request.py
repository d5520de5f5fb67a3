"""A question as vLLM's completions take it: ids or rows, and the options of the answer.

Rows ``[s, d]`` travel as ``torch.save`` of a 2-D tensor, base64 (``prompt_embeds``); the server casts them to its own
dtype, checks their width, and trusts the rest, so that everything is checked here first.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.common.errors import NotFiniteError, PromptError, UserError
from vlm.inference.batching.answer import Asking
from vlm.inference.generation import Generation
from vlm.inference.stopping import StopCriteria

HOTTEST = 2.0
"""The highest temperature that vLLM takes."""

FORBIDDEN = -100.0
"""The lowest ``logit_bias``."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lacking(generation: Generation) -> dict[str, str]:
    """Name -> why vLLM cannot do it, of the options that have no equal there."""
    result = {}
    if generation.num_beams > 1:
        result["num_beams"] = "vLLM's beam search counts the length of an answer in another way, and does not stream"
    if generation.repetition_penalty != 1:
        result["repetition_penalty"] = "vLLM's also counts the prompt, whose tokens it does not know where it has rows"
    if generation.no_repeat_ngram_size:
        result["no_repeat_ngram_size"] = "vLLM has no such rule"
    if generation.do_sample and generation.temperature > HOTTEST:
        result["temperature"] = f"vLLM takes at most {HOTTEST:g}"
    return result


def check_options(generation: Generation, asking: Asking) -> None:
    """Raises UserError: an option that has no equal in vLLM."""
    problems = [f"{name} is {vars(generation)[name]}, but {why}" for name, why in lacking(generation).items()]
    if asking.constraint is not None:
        problems.append("the tokens must follow a schema, which only a language model that runs here can be held to")
    if problems:
        raise UserError(
            "the vLLM server cannot answer as asked: " + "; ".join(problems),
            fix="leave these options out, or run the language model here (without --engine vllm)",
        )


def without_lacking(generation: Generation) -> Generation:
    """The options, those that vLLM cannot follow switched off."""
    off = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": HOTTEST}
    return generation.replace(**{name: off[name] for name in lacking(generation)})


def options_of(generation: Generation, ends: StopCriteria, asking: Asking) -> dict[str, Any]:
    """The fields of a completion besides its prompt; each is written out, since a server has defaults of its own.

    The server ends at our end tokens; texts and sequences of several tokens that end an answer are looked for here.
    """
    single = [stop[0] for stop in ends.stops if len(stop) == 1] if not generation.min_new_tokens else []
    sampled = generation.do_sample
    fields: dict[str, Any] = {
        "max_tokens": generation.max_new_tokens,
        "min_tokens": min(generation.min_new_tokens, generation.max_new_tokens),
        "temperature": generation.temperature if sampled else 0.0,
        "top_p": generation.top_p if sampled else 1.0,
        "top_k": generation.top_k if sampled else 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # ours are among the stop tokens
        "stop_token_ids": list(dict.fromkeys([*ends.eos, *single])),
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampled and generation.seed is not None:
        fields["seed"] = generation.seed & (2**63 - 1)  # -1 stands for no seed there
    if ends.banned:
        fields["logit_bias"] = {str(token): FORBIDDEN for token in ends.banned}
    if asking.logprobs is not None:
        fields |= {"logprobs": asking.logprobs, "return_tokens_as_token_ids": True}
    if asking.tenant:
        fields["cache_salt"] = hashlib.sha256(asking.tenant.encode()).hexdigest()  # not every text may be one
    if asking.priority:
        fields["priority"] = -asking.priority  # there the lower one is first
    return fields


def ids_field(ids: Sequence[int], vocab_size: int) -> dict[str, Any]:
    """A prompt of text alone. Raises PromptError: an id that the LLM does not have."""
    if not ids or min(ids) < 0 or max(ids) >= vocab_size:
        raise PromptError(f"the prompt has {len(ids)} ids from {min(ids, default=0)} to {max(ids, default=0)}")
    return {"prompt": list(ids)}


def rows_field(rows: Tensor, width: int) -> dict[str, Any]:
    """A prompt as rows ``[s, width]``.

    Raises:
        NotFiniteError: numbers that are not finite.
        PromptError: rows of another shape or type, which the server may not survive.
    """
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != width or rows.dtype not in DTYPES:
        raise PromptError(f"the prompt has rows {list(rows.shape)} of {rows.dtype}, expected [positions, {width}]")
    if not bool(rows.isfinite().all()):
        raise NotFiniteError("the rows of the prompt have values that are not numbers (NaN or infinity)")
    file = io.BytesIO()
    torch.save(rows.detach().cpu().contiguous().clone(), file)  # a view would drag its whole storage along
    return {"prompt_embeds": base64.b64encode(file.getvalue()).decode()}
