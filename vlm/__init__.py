"""Compose, train, chat with and serve vision-language models from YAML.

    import vlm

    model = vlm.load("output/mine")  # a run folder, a YAML file, or a system: "tiny/eval"
    print(model.chat("What is in the image?", image="cat.jpg"))
    for piece in model.stream("What is behind it?", image="cat.jpg"): print(piece, end="")
    talk = model.conversation()  # remembers its images, questions and answers
    print(talk.chat("What is this?", image="cat.jpg"), talk.chat("What color is it?"))
    result = vlm.train("mine.yaml", run={"init_lr": 1e-4})

Classes: Engine, ChatSession, Answer, Asking, Generation, Message, Text, Image, Video.
Parts of your own: register_bridge, ...
"""

from __future__ import annotations

from vlm.common import VERSION as __version__  # noqa: F401

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import torch

    # isort: off
    # fmt: off
    from vlm.common.registry import (
        register_architecture as register_architecture,
        register_benchmark as register_benchmark, register_bridge as register_bridge,
        register_checkpoint_format as register_checkpoint_format, register_command as register_command,
        register_dataset as register_dataset, register_export as register_export,
        register_fusion as register_fusion, register_generation as register_generation,
        register_hf_form as register_hf_form,
        register_image as register_image, register_insert as register_insert,
        register_judge as register_judge, register_llm as register_llm, register_model as register_model,
        register_processor as register_processor, register_runner as register_runner,
        register_optimizer as register_optimizer,
        register_scheduler as register_scheduler, register_source as register_source,
        register_task as register_task, register_template as register_template,
        register_text as register_text, register_tracker as register_tracker,
        register_video as register_video, register_vision as register_vision,
    )
    # fmt: on
    # isort: on
    from vlm.common.types import Image as Image
    from vlm.common.types import Message as Message
    from vlm.common.types import Text as Text
    from vlm.common.types import Video as Video
    from vlm.config.types import Config as Config
    from vlm.inference.batching.answer import Answer as Answer
    from vlm.inference.batching.answer import Asking as Asking
    from vlm.inference.engine import Engine as Engine
    from vlm.inference.generation import Generation as Generation
    from vlm.inference.session import ChatSession as ChatSession
    from vlm.runners.train.trainer import RunResult as RunResult

_NAMES = {
    "Answer": "vlm.inference.batching.answer",
    "Asking": "vlm.inference.batching.answer",
    "ChatSession": "vlm.inference.session",
    "Config": "vlm.config.types",
    "Engine": "vlm.inference.engine",
    "Generation": "vlm.inference.generation",
    "Image": "vlm.common.types",
    "Message": "vlm.common.types",
    "RunResult": "vlm.runners.train.trainer",
    "Text": "vlm.common.types",
    "Video": "vlm.common.types",
}
"""Public name -> module, imported on first use. There is no ``__all__``, or ``help(vlm)`` would print every class."""


def load(
    source: str | Path | Config,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    options: Sequence[str] = (),
    allow_urls: bool = False,
    trust: bool = False,
    allow_random: bool = False,
) -> Engine:
    """A model that is ready to answer; see Engine.load."""
    from vlm.inference.engine import Engine

    given = {"allow_urls": allow_urls, "trust": trust, "allow_random": allow_random}
    return Engine.load(source, device, dtype, options=options, **given)


def load_config(source: str | Path | Mapping[str, Any], options: Sequence[str] = (), *, trust: bool = False) -> Config:
    """The checked configuration of a YAML file, a run folder or a system's name; ``trust``: it may import modules."""
    from vlm.config.api import load_config

    return load_config(source, options, trust=trust)


def train(source: str | Path, *, options: Sequence[str] = (), **sections: Mapping[str, Any]) -> RunResult:
    """Train in this process; ``run={"init_lr": 1e-4}`` changes values. The run folder is ``.path`` of the result."""
    from vlm.common.logging import setup_logging
    from vlm.config.api import load_config
    from vlm.config.options import write_options
    from vlm.runners.train.run import run_training

    config = load_config(source, [*options, *write_options(sections)], check="all", train=True, trust=True)
    setup_logging()
    return run_training(config)


if not TYPE_CHECKING:  # type checkers see the imports above

    def __getattr__(name):
        import importlib

        if name in _NAMES:
            return getattr(importlib.import_module(_NAMES[name]), name)
        if name.startswith("register_"):
            registry = importlib.import_module("vlm.common.registry")
            if name.removeprefix("register_") in registry.FOLDERS:
                return getattr(registry, name)
        raise AttributeError(f"module 'vlm' has no attribute {name!r}")

    def __dir__():
        from vlm.common.registry import FOLDERS

        return [*_NAMES, *(f"register_{kind}" for kind in FOLDERS), "load", "load_config", "train", "__version__"]
