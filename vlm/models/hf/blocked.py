"""Imports of large packages without others that they would load on the way and that are not needed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

QUANTISERS = ("bitsandbytes", "torchao")
"""What peft and transformers load if it is installed: seconds for every process, and lines about missing kernels."""

ASKED = {
    "transformers.utils.import_utils": ("is_bitsandbytes_available", "is_torchao_available"),
    "peft.import_utils": ("is_bnb_available", "is_bnb_4bit_available", "is_torchao_available"),
}
"""Functions that remember whether such a package can be imported."""

_LOCK = threading.RLock()


@contextlib.contextmanager
def without_quantisers() -> Iterator[None]:
    """As if neither bitsandbytes nor torchao were installed, unless they are imported already.

    What peft and transformers remember of it is forgotten at the end, so that either can be imported later.
    """
    with _LOCK:
        blocked = [name for name in QUANTISERS if name not in sys.modules]
        sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None: cannot be imported
        try:
            yield
        finally:
            for name in blocked:
                sys.modules.pop(name, None)
            for module, functions in ASKED.items():
                for name in functions if module in sys.modules else ():
                    known = vars(sys.modules[module]).get(name)
                    if known is not None and hasattr(known, "cache_clear"):
                        known.cache_clear()
