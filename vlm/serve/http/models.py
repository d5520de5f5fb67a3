"""The models of a server, by the names under which clients ask for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm.inference.engine import Engine


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
