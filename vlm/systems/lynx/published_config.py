"""The published ``configs/LYNX.yaml``: its keys, checked, as a composition and the questions put to it.

The file is that of the repository bytedance/lynx-llm; nothing else reads its keys.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import ConfigError
from vlm.common.registry import register_source
from vlm.config.api import Config, load_config
from vlm.config.schema import Report, read
from vlm.config.tree import parse_file
from vlm.inference.generation import CHAT
from vlm.inference.load import Questions, Source

log = logging.getLogger(__name__)

DATA = "data"
"""Folder of the vision file, and of the LLM unless it has a path of its own, in the working folder."""
MARKERS = ("LLM", "vision_encoder|bridge|num_bridge_tokens|bridge_depth")
"""Top-level keys, as patterns, that no composition has."""

NO_EFFECT = {
    "image_rdir": "paths start from the working folder (--media-root changes that)",
    "output_prompt_dict": "the lines of the result have index and text_output",
    "use_flash_attn": "the published code only prints it",
    "use_left_pad": "padding is masked, so its side does not change answers",
}
"""Keys that do not change answers, and why."""


@dataclass
class VideoKeys:
    """The ``data`` section."""

    num_frames: int


@dataclass
class LynxYaml:
    """Every key of the published file, with the published defaults."""

    test_files: str | list[str]
    data: VideoKeys
    LLM: str
    bridge_depth: int
    num_bridge_tokens: int
    lower_text: bool
    freeze_vit: bool
    freeze_llm: bool
    image_res: int
    image_mean: list[float]
    image_std: list[float]
    max_input_tokens: int
    batch_size_test: int
    min_length: int
    num_beams: int
    vision_encoder: Literal["eva_vit_1b"] = "eva_vit_1b"
    bridge: Literal["resampler"] = "resampler"
    video_encoding: Literal["", "concate"] = ""
    add_frame_pos: bool = False
    apply_lemmatizer: bool = False
    image_rdir: str = ""
    use_left_pad: bool = True
    prompt: str = ""
    vision_prompt_dict: str = "image"
    output_prompt_dict: str = "answer"
    use_flash_attn: bool = False
    use_adapter: bool = False
    adapter_freq: int = -1
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.0
    checkpoint: str = ""
    use_nucleus_sampling: bool = False
    max_new_tokens: int = 64
    top_p: float = 0.9
    top_k: int = 3
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = -1

    def __post_init__(self) -> None:
        """Raises ConfigError for values that contradict each other."""
        if self.use_adapter and self.adapter_freq < 1:
            raise ConfigError(f"adapter_freq is {self.adapter_freq}, expected 1 or more with use_adapter")
        if not self.checkpoint:
            raise ConfigError("checkpoint is missing: bridge and adapters would have random weights")


@register_source("lynx_yaml")
class LynxFile(Source):
    """A published ``LYNX.yaml``: a composition, and questions put to it."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is a YAML file with the keys that tell such a file from a composition."""
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            return False
        text = path.read_text(encoding="utf-8", errors="replace")
        return all(re.search(rf"^(?:{key})\s*:", text, re.MULTILINE) for key in MARKERS)

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition alone; see :meth:`questions`."""
        return self.questions(path, options).config

    def questions(self, path: Path, options: Sequence[str] = ()) -> Questions:
        """The file translated, with ``model.KEY=VALUE`` changes; keys without effect are named once in the log.

        Raises ConfigError: unknown, missing or unusable keys, all in one message; or missing weight files.
        """
        tree = parse_file(path)
        report = Report(origins=tree.origins)
        keys = read(LynxYaml, tree.data, (), report)
        report.raise_if_any(str(path))
        assert keys is not None
        for name, reason in NO_EFFECT.items():
            if name in tree.data:
                log.info("%s: %s has no effect: %s", path, name, reason)
        return Questions(
            load_config({"model": composition(keys)}, options, check="weights"),
            CHAT.replace(**answering(keys)),
            [keys.test_files] if isinstance(keys.test_files, str) else keys.test_files,
            keys.prompt,
            raw=True,
            media_field=keys.vision_prompt_dict,
            batch_size=keys.batch_size_test,
            lemmatize=keys.apply_lemmatizer,
        )


def composition(keys: LynxYaml) -> dict[str, Any]:
    """The ``model:`` section that the keys mean."""
    same = ["image_res", "bridge_depth", "num_bridge_tokens", "lower_text", "freeze_vit", "freeze_llm", "checkpoint"]
    same += ["max_input_tokens", "drop_path_rate", "label_smoothing", "num_beams", "max_new_tokens", "length_penalty"]
    same += ["use_nucleus_sampling"]
    model: dict[str, Any] = {"arch": "lynx", "model_type": "finetune", **{k: getattr(keys, k) for k in same}}
    llm = keys.LLM if Path(keys.LLM).expanduser().is_dir() else f"{DATA}/{keys.LLM}"
    model |= {"num_frames": keys.data.num_frames, "LLM": llm, "vit_path": f"{DATA}/eva_vit_g.pth"}
    model["image"] = {"mean": keys.image_mean, "std": keys.image_std}
    if keys.use_adapter:
        model["adapter_freq"] = keys.adapter_freq
    else:
        model["inserts"] = []
    if not keys.add_frame_pos or not keys.video_encoding:
        perceiver = {"name": "perceiver", "depth": keys.bridge_depth, "num_latents": keys.num_bridge_tokens}
        model["bridge"] = [{**perceiver, "latents_in_keys": False, "width": "llm"}]
    if not keys.video_encoding:
        model["video"] = None
    return model


def answering(keys: LynxYaml) -> dict[str, Any]:
    """The options of an answer: only the end id ends one, and only the white space around it is removed."""
    same = ("num_beams", "max_new_tokens", "min_length", "top_p", "top_k", "length_penalty")
    result: dict[str, Any] = {name: getattr(keys, name) for name in same}
    result |= {"do_sample": keys.use_nucleus_sampling, "no_repeat_ngram_size": max(0, keys.no_repeat_ngram_size)}
    result |= {"repetition_penalty": 1.0, "temperature": 1.0, "length_penalty_form": "published"}
    return result | {"cleanup": "raw", "stop": ()}
