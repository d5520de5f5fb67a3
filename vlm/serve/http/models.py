"""The models of a server, by the names under which clients ask for them."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet
from vlm.common.trust import trusting

if TYPE_CHECKING:
    import torch

    from vlm.inference.engine import Engine

MIB = 2**20

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_INSIDE_RUN = re.compile(r"last|best|checkpoints|step_\d+|model\.safetensors")
"""Names in a run folder, which say nothing about the model."""


@dataclass
class Models:
    """Engines by name; the first is used where a request names none.

    Attributes:
        engines: name -> engine.
        is_draining: no further request is accepted; ``/ready`` says so.
    """

    engines: dict[str, Engine] = field(default_factory=dict)
    is_draining: bool = False

    @property
    def first(self) -> str:
        """Name of the first model."""
        return next(iter(self.engines))


def load_models(runs: Mapping[str, str], load: Callable[[str, list[Engine]], Engine]) -> Models:
    """Load every model; what several have in common, such as the base of two LoRA runs, is held once.

    Args:
        runs: name -> what ``Engine.load`` takes, see :func:`named_runs`.
        load: makes the engine of one, given those before it; see :func:`load_beside`.

    Raises:
        UserError: see ``Engine.load``; the message names the model.
    """
    from vlm.serve.sharing import share_weights, weight_bytes

    models = Models()
    for name, run in runs.items():
        began = time.monotonic()
        try:
            with busy(f"loading {name} ({run})"), quiet("vlm.checkpoint"):
                engine = load(run, list(models.engines.values()))
        except UserError as error:
            raise UserError(f"{name}: {error}" if len(runs) > 1 else str(error)) from error
        loaded = [e.model for e in models.engines.values()]
        before = weight_bytes(loaded)
        share_weights(engine.model, loaded)  # what is equal, although it was read from other files
        taken, size = weight_bytes([*loaded, engine.model]) - before, weight_bytes([engine.model])
        shared = "" if taken == size else f", {(size - taken) / MIB:,.0f} of them held by a model before it"
        log.info("%s: %r, %.0f MiB%s, %.1f s", name, engine, size / MIB, shared, time.monotonic() - began)
        models.engines[name] = engine
    return models


def load_beside(
    run: str,
    others: Sequence[Engine],
    device: str | torch.device | None = None,
    *,
    options: Sequence[str] = (),
    trust: bool = False,
    allow_random: bool = False,
) -> Engine:
    """``Engine.load``, with memory of its own only for what ``others`` have not read from the same files."""
    from vlm.inference.engine import Engine
    from vlm.inference.load import load_parts

    models = [engine.model for engine in others]
    with trusting(trust):
        model, processor, config, where = load_parts(
            run, device, options=options, allow_random=allow_random, beside=models
        )
    return Engine(model, processor, config=config, device=where)


def named_runs(given: Sequence[str]) -> dict[str, str]:
    """Name -> run of ``NAME=RUN`` or ``RUN``; a run without a name gets that of its folder or file.

    Where two would get the same one, the folders above are part of it: ``a-stage2`` and ``b-stage2``.

    Raises UserError: a name that cannot be used, or is given twice.
    """
    pairs = [_pair(text) for text in given]
    wrong = [name for name, _ in pairs if name is not None and not _NAME.fullmatch(name)]
    if wrong:
        raise UserError(
            f"{wrong[0]!r} is not a name for a model",
            fix="use letters, digits and . _ - : /, for instance cats=output/cats",
        )
    taken = Counter(name for name, _ in pairs if name is not None)
    runs = [run for name, run in pairs if name is None]
    depth = 1
    found = [_of_path(run, depth) for run in runs]
    while any(n > 1 for n in (Counter(found) + taken).values()) and depth < 6:
        depth += 1
        twice = Counter(found) + taken
        found = [_of_path(run, depth) if twice[name] > 1 else name for name, run in zip(found, runs)]
    names = iter(found)
    result: dict[str, str] = {}
    for name, run in pairs:
        name = next(names) if name is None else name
        if name in result:
            raise UserError(f"two models would be called {name}", fix="name them: vlm serve one=RUN other=RUN")
        result[name] = run
    return result


def _pair(text: str) -> tuple[str | None, str]:
    name, equals, run = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        return None, text
    if not run:
        raise UserError(f"{text!r} names no run", fix="NAME=RUN, for instance cats=output/cats")
    return name, str(Path(run).expanduser()) if run.startswith("~") else run


def _of_path(run: str, depth: int) -> str:
    """The last ``depth`` folders of a path that say something, joined by hyphens."""
    path = Path(run)
    path = path.resolve() if path.name in ("", ".", "..") else path
    parts = [p for p in path.with_suffix("" if path.is_file() else path.suffix).parts if p not in ("/", ".", "..")]
    while len(parts) > 1 and _INSIDE_RUN.fullmatch(parts[-1] + (path.suffix if path.is_file() else "")):
        parts.pop()
    name = re.sub(r"[^A-Za-z0-9._:-]+", "-", "-".join(parts[-depth:])).strip("-._:")
    return name or "model"
