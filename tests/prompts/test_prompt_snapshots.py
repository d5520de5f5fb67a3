"""The exact prompts of every shipped composition and template, frozen.

A change of any prompt must be meant: run with ``VLM_UPDATE_PROMPTS=1`` to write the snapshots anew and
review the difference.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import yaml

from vlm.common.registry import names, resolve
from vlm.common.types import Image, Message, Sample, Text
from vlm.config.api import load_config
from vlm.processors.templates.roles import IMAGE_PLACEHOLDER, Segment, Template

HERE = Path(__file__).parent
MODELS = Path(load_config.__code__.co_filename).parents[1] / "systems"
COMPOSITIONS = sorted(f"{f.parent.name}/{f.stem}" for f in MODELS.glob("*/*.yaml"))
VISUALCLA = {
    "image_header": "",
    "image_prefix": "<img>",
    "image_suffix": "</img>",
    "image_gap": "\n",
    "media_token": "",
    "user": "### Instruction: \n",
    "assistant": "### Response:",
    "joint_answer": False,
    "turn_bos": False,
    "strip_before": [],
    "strip": False,
}
VARIANTS = {
    "vicuna0": [{"style": "2023-04"}, {"system": "", "chat_form": True}],
    "minigpt_v2": [{"chat_template": False}],
    "alpaca": [{"keep_turns": 0}, VISUALCLA, {**VISUALCLA, "image_at_head": True}],
}


def say(role: str, *parts: object) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


A, B = Image("a"), Image("b")
TRAINING = {
    "caption": (say("user", A), say("assistant", "A red boat.")),
    "question": (say("user", A, "What is it?"), say("assistant", "A boat.")),
    "text only": (say("user", "Two and two?"), say("assistant", "4")),
    "dialogue": (
        say("user", A, "What is it?"),
        say("assistant", "A boat."),
        say("user", "Which color?"),
        say("assistant", "Red."),
    ),
    "two pictures": (say("user", A, B, "Same?"), say("assistant", "No.")),
}
CHATS = {
    "first turn": (say("user", A, "What is it?"),),
    "second turn": (say("user", A, "What is it?"), say("assistant", "A boat."), say("user", "Which color?")),
    "picture in the middle": (say("user", "Is ", A, "like", B, "?"),),
    "own system text": (say("system", "Be brief."), say("user", A, "What is it?")),
    "text only": (say("user", "Two and two?"),),
}


def show(segments: list[Segment]) -> str:
    """One line per segment: ``+`` joined to the one before, ``^`` begin id in front, ``*`` supervised, ``$`` end id."""
    lines = []
    for s in segments:
        text = IMAGE_PLACEHOLDER if s.medium is not None else repr(s.text)
        flags = ((s.joined, "+"), (s.bos, "^"), (s.supervised, "*"), (s.eos, "$"))
        lines.append(" " + "".join(mark if on else " " for on, mark in flags) + text)
    return "\n".join(lines)


def render(template: Template) -> str:
    out = [f"stop {template.stop!r}"]
    for name, messages in TRAINING.items():
        out.append(f"train: {name}\n" + show(template.train_segments(Sample(messages), random.Random(0))))
    for name, messages in CHATS.items():
        out.append(f"chat: {name}\n" + show(template.chat_segments(messages)))
    return "\n".join(out) + "\n"


def compare(name: str, text: str) -> None:
    file = HERE / "snapshots" / f"{name}.txt"
    if os.environ.get("VLM_UPDATE_PROMPTS") == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.is_file(), f"no snapshot {file}; write it with VLM_UPDATE_PROMPTS=1"
    assert text == file.read_text(encoding="utf-8"), "prompts changed; if meant, write them with VLM_UPDATE_PROMPTS=1"


@pytest.mark.parametrize("name", names("template"))
def test_templates(name: str) -> None:
    kind = resolve("template", name)
    texts = [
        f"{name} {options or ''}".rstrip() + "\n" + render(kind(kind.Config(**options)))
        for options in [{}, *VARIANTS.get(name, [])]
    ]
    compare(name, "\n".join(texts))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_compositions(composition: str) -> None:
    arch, model_type = composition.split("/")
    params = yaml.safe_load((MODELS / f"{composition}.yaml").read_text())["params"]
    needed = [name for name, param in params.items() if param["default"] == "???"]
    model = {"arch": arch, "model_type": model_type, **dict.fromkeys(needed, "somewhere")}
    part = load_config({"model": model}, check="none").model.template
    compare(composition.replace("/", "-"), composition + "\n" + render(resolve("template", part.name)(part.config)))
