"""Answers from a vLLM server that runs the language model, while images are encoded here.

Every field of vLLM's API that is used was read from the source of vLLM 0.33.0: ``entrypoints/openai/completion/
protocol.py`` and ``serving.py``, ``renderers/online_renderer.py`` and ``embed_utils.py``, ``sampling_params.py``,
``v1/engine/detokenizer.py``, ``entrypoints/serve/tokenize/protocol.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.trust import trusting

if TYPE_CHECKING:
    import torch

    from vlm.config.api import Config
    from vlm.inference.remote.engine import RemoteEngine


def connect(
    source: str | Path | Config,
    address: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    patience: float = 300.0,
    options: Sequence[str] = (),
    allow_urls: bool = False,
    trust: bool = False,
    allow_random: bool = False,
) -> RemoteEngine:
    """An engine whose language model runs in a vLLM server started with ``--enable-prompt-embeds``.

    Vision encoder, bridges and token embeddings are loaded here; of the server it is checked that it answers, splits
    text into the same tokens, and gives the same answer to ids as to the rows that this composition makes of them.

    Args:
        source: see ``Engine.load``, as ``device``, ``dtype``, ``options``, ``allow_urls``, ``trust`` and
            ``allow_random``; a composition that splices images into the text of a causal LLM.
        address: of the server, such as ``http://127.0.0.1:8000``.
        model: the name that it serves the LLM under; None: its only one.
        api_key: its key, if it was started with one.
        patience: seconds without a word from the server after which an answer fails.

    Raises:
        UserError: as ``Engine.load``; a composition that vLLM cannot run; no server, or one with another LLM.
    """
    from vlm.inference.remote.client import Server
    from vlm.inference.remote.engine import RemoteEngine
    from vlm.inference.remote.parts import load_without_llm

    server = Server(address, model, api_key, patience)
    server.find_model()  # before minutes are spent on loading
    with trusting(trust):
        parts = load_without_llm(source, device, dtype, options, allow_random=allow_random)
    engine = RemoteEngine(*parts[:2], server, config=parts[2], device=parts[3], allow_urls=allow_urls)
    engine.check_server()
    return engine
