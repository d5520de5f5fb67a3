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

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

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


def load_models(runs: Mapping[str, str], load: Callable[[str], Engine]) -> Models:
    """Load every model; what several have in common, such as the base of two LoRA runs, is held once.

    Args:
        runs: name -> what ``Engine.load`` takes, see :func:`named_runs`.
        load: makes the engine of one.

    Raises:
        UserError: see ``Engine.load``; the message names the model.
    """
    from vlm.serve.sharing import share_weights, weight_bytes

    models = Models()
    for name, run in runs.items():
        began = time.monotonic()
        try:
            with busy(f"loading {name} ({run})"), quiet("vlm.checkpoint"):
                engine = load(run)
        except UserError as error:
            raise UserError(f"{name}: {error}" if len(runs) > 1 else str(error)) from error
        saved = share_weights(engine.model, [e.model for e in models.engines.values()])
        size = weight_bytes([engine.model])
        shared = f", {saved / 2**20:,.0f} of them shared with a model before it" if saved else ""
        log.info("%s: %r, %.0f MiB%s, %.1f s", name, engine, size / 2**20, shared, time.monotonic() - began)
        models.engines[name] = engine
    return models


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
