"""What lmms-eval finds under the entry point ``lmms_eval.models``: the name of our model and where its classes are."""

from __future__ import annotations

from typing import Any

PLUGIN = "vlm.tasks.benchmarks.lmms.plugin"


def manifest() -> Any:
    """The ``ModelManifest`` of ``--model vlm``; lmms-eval calls this, and imports the classes when they are named."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vlm", simple_class_path=f"{PLUGIN}.VlmSimple", chat_class_path=f"{PLUGIN}.Vlm")
