"""What the process imports from which those that train are forked; nothing is computed here."""

import importlib
import importlib.util

import vlm.checkpoint.shards.parts
import vlm.datasets.loading.sources
import vlm.inference.engine
import vlm.models.llm.hf
import vlm.models.vlm
import vlm.runners.evaluate.run
import vlm.runners.study.running.asking
import vlm.runners.train.run  # noqa: F401

SLOW = ("timm", "webdataset", "sentencepiece", "torch.utils.tensorboard")
"""What parts import when they are built; a child finds it here already."""

for name in SLOW:
    if importlib.util.find_spec(name.split(".")[0]) is not None:
        try:
            importlib.import_module(name)
        except ImportError:  # the part that needs it says so
            continue
