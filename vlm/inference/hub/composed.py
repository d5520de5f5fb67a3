"""The form that takes every composition: a folder whose modelling code imports ``vlm``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.checkpoint.safe import copy_files
from vlm.common.errors import ConfigError
from vlm.common.registry import register_hf_form
from vlm.config.api import effective
from vlm.config.tree import plain, to_yaml
from vlm.config.types import COMPOSITION, Part
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import FALLBACK, Form
from vlm.inference.hub.source import COMPOSITION_FILE, QUESTIONS, TOKENIZER_FOLDER
from vlm.inference.hub.usage import usage
from vlm.models.protocols import ReadsText, WritesOut

MODULE = "modeling_vlm"
CODE = '''\
"""A composition of vlm for transformers: the classes are those of the installed package vlm-compose."""

from vlm.inference.hub.model import ComposedConfig, ComposedForConditionalGeneration
from vlm.inference.hub.processor import ComposedProcessor

__all__ = ["ComposedConfig", "ComposedForConditionalGeneration", "ComposedProcessor"]
'''
CLASSES = {
    "AutoConfig": f"{MODULE}.ComposedConfig",
    "AutoModelForCausalLM": f"{MODULE}.{FALLBACK}",
    "AutoModelForImageTextToText": f"{MODULE}.{FALLBACK}",
    "AutoProcessor": f"{MODULE}.ComposedProcessor",
}
TOKENIZER_FILES = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *(
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "processor_config.json",
        "generation_config.json",
    ),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?[\\/].*[\\/].*|~[\\/].*")


@register_hf_form("composed")
class ComposedForm(Form):
    """Any composition, with modelling code that imports vlm (trust_remote_code)."""

    architecture = FALLBACK

    def misfit(self, contents: Contents) -> str | None:
        """Nothing does not fit."""
        return None

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        from vlm.inference.hub.model import ComposedConfig

        config = ComposedConfig(
            text_config=contents.text_config().to_dict(),
            image_token_id=contents.tokenizer.image_id,
            image_token_count=contents.image_tokens,
        ).to_dict()
        return config | {"architectures": [FALLBACK], "auto_map": CLASSES, "dtype": str(contents.dtype)[6:]}

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`: our own names."""
        tied = {f"llm.model.{name}" for name in contents.model.llm.model.all_tied_weights_keys or ()}
        facts = {name: fact for name, fact in contents.weights.facts.items() if name not in tied}
        return {
            name: contents.direct(name) if f.is_floating_point() else whole(contents, name) for name, f in facts.items()
        }

    def layers(self, contents: Contents) -> dict[str, str]:
        """See :class:`Form`."""
        return {ours: f"vlm.{theirs}" for ours, theirs in super().layers(contents).items()}

    def usage(self, contents: Contents) -> str:
        """See :class:`Form`."""
        return usage("AutoModelForImageTextToText", trust=True)

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`."""
        kind = {"processor_class": "ComposedProcessor", "auto_map": {"AutoProcessor": CLASSES["AutoProcessor"]}}
        return {"processor_config.json": kind}

    def extra(self, contents: Contents, folder: Path) -> list[str]:
        """See :class:`Form`: the modelling code, the composition, and the tokenizer that it reads."""
        (folder / f"{MODULE}.py").write_text(CODE, encoding="utf-8")
        (folder / COMPOSITION_FILE).write_text(to_yaml({"model": composition(contents)}), encoding="utf-8")
        source = contents.tokenizer.folder
        for place, options in questions(contents).items():
            (folder / QUESTIONS.format(place)).mkdir()
            copy_files(TOKENIZER_FILES, Path(options.tokenizer).expanduser(), folder / QUESTIONS.format(place))
        (folder / TOKENIZER_FOLDER).mkdir()
        copy_files(TOKENIZER_FILES, source, folder / TOKENIZER_FOLDER)
        return []


def questions(contents: Contents) -> dict[int, Any]:
    """The bridges that read the question -> their options of it."""
    configs = {i: part.config for i, part in enumerate(contents.model_cfg.bridge)}
    return {i: c.reads_text for i, c in configs.items() if isinstance(c, ReadsText) and c.reads_text is not None}


def whole(contents: Contents, name: str) -> Planned:
    """A tensor of whole numbers, as it is."""
    return Planned(contents.weights.facts[name], lambda: contents.weights.read(name), name)


def composition(contents: Contents) -> dict[str, Any]:
    """The composition as plain data that needs no file of this machine.

    Raises ConfigError: an option names a file that the folder would not hold.
    """
    model, cfg = contents.model, contents.model_cfg
    built: dict[str, Any] = {"vision": model.vision, "llm": model.llm}
    built |= {f"bridge.{i}": part for i, part in enumerate(model.bridge)}
    built |= {f"inserts.{i}": part for i, part in enumerate(model.inserts)}

    def alone(place: str, part: Part) -> Part:
        module = built.get(place)
        options = module.written_out() if isinstance(module, WritesOut) else part.config
        if options is None or options is part.config and "lora" not in vars(options):
            return dataclasses.replace(part, config=options)
        return dataclasses.replace(
            part, config=dataclasses.replace(options, **{"lora": None} if "lora" in vars(options) else {})
        )

    changes: dict[str, Any] = {"weights": [], "train": {}, "arch": None, "model_type": None, "params": {}}
    changes |= {"vision": cfg.vision and alone("vision", cfg.vision), "llm": alone("llm", cfg.llm)}
    changes |= {
        kind: [alone(f"{kind}.{i}", p) for i, p in enumerate(getattr(cfg, kind))] for kind in ("bridge", "inserts")
    }
    for i, options in questions(contents).items():
        part = changes["bridge"][i]
        reads_text = dataclasses.replace(options, tokenizer=QUESTIONS.format(i))
        changes["bridge"][i] = dataclasses.replace(part, config=dataclasses.replace(part.config, reads_text=reads_text))
    text = dataclasses.replace(cfg.text.config, tokenizer="")
    changes["text"] = dataclasses.replace(cfg.text, config=text, raw={**cfg.text.raw, "tokenizer": ""})
    if cfg.template.get("prompt_path"):
        changes["template"] = dataclasses.replace(
            cfg.template, config=dataclasses.replace(cfg.template.config, prompt_path="")
        )
    stored = effective(dataclasses.replace(contents.config, model=dataclasses.replace(cfg, **changes)))["model"]
    result = {key: stored[key] for key in COMPOSITION if key in stored and key not in ("weights", "train")}
    if paths := sorted(set(_paths(result))):
        raise ConfigError(
            f"the composition names {paths[0]}, which the folder would not hold",
            fix="let the part implement written_out() (docs/extend/export.md), or give it what the file says",
        )
    plain(result)
    return result


def _paths(value: Any) -> Iterator[str]:
    """The texts in plain data that are paths of this machine."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)
    elif isinstance(value, str) and _PATH.fullmatch(value) and Path(value).expanduser().exists():
        yield value
