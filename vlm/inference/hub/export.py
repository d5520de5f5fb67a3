"""``vlm weights export RUN --to hf OUT``: a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.checkpoint.safe import write_json
from vlm.checkpoint.stream import SHARD_BYTES, write_shards
from vlm.common.errors import ConfigError
from vlm.common.registry import register_export
from vlm.config.api import Config as WholeConfig
from vlm.inference.export import new_folder, refuse_existing
from vlm.inference.generation import default_generation
from vlm.inference.hub.adapter import write_adapter
from vlm.inference.hub.card import write_model_card
from vlm.inference.hub.contents import Contents, Planned, dtype_of
from vlm.inference.hub.forms import Form, find_form
from vlm.inference.hub.weights import StoredWeights
from vlm.inference.load import read_source
from vlm.models.quantized.llm import gradients_pass, mode_of
from vlm.processors.processor import build_processor

SAMPLING = ("temperature", "top_p", "top_k")


@register_export("hf")
class HubExport:
    """A folder for transformers, as one of its own classes where one computes the same."""

    server = ""

    @dataclass
    class Config:
        """``dtype`` of the tensors (null: the LLM's), whether LoRA is merged or beside them, a form by name.

        ``base`` is what LoRA is added to: the full weights of the LLM, or those that it was trained around.
        """

        dtype: Literal["fp32", "fp16", "bf16"] | None = None
        lora: Literal["merge", "adapter"] = "merge"
        base: Literal["full", "quantised"] = "full"
        form: str = ""
        shard_bytes: int = SHARD_BYTES

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def write(self, source: Path | WholeConfig, target: Path) -> list[str]:
        """Write the folder ``target``; it appears by rename when all is written.

        Raises:
            UserError: ``target`` exists, a weight file is missing, or the form asked for does not fit.
        """
        refuse_existing(target)
        contents = self.contents(source)
        form = find_form(contents, self.config.form, self.server)
        with new_folder(target) as work:
            lines = self.fill(contents, form, work)
        return [f"{target}: {form.architecture}, {lines[0]}", *lines[1:]]

    def contents(self, source: Path | WholeConfig) -> Contents:
        """What there is to write. Raises UserError as ``load_parts``."""
        cfg = source if isinstance(source, WholeConfig) else read_source(source)
        source = Path(cfg.run.output_dir) if isinstance(source, WholeConfig) else source
        if self.config.lora == "adapter" and not uses_lora(cfg.model):
            raise ConfigError(f"{source}: --lora adapter, but the composition has no LoRA", fix="leave --lora out")
        weights = StoredWeights(cfg, merge=self.config.lora == "merge", quantised=self.config.base == "quantised")
        return Contents(source, cfg, weights, build_processor(cfg.model), dtype_of(cfg, self.config.dtype))

    def for_server(self, contents: Contents, form: Form, folder: Path) -> list[str]:
        """Write what the server needs besides; a summary. Raises UserError: it cannot run the composition."""
        return []

    def _about_base(self, contents: Contents) -> list[str]:
        """How far the LLM is from the one that was trained or from the full one, if it was quantised."""
        mode = mode_of(contents.config.model)
        if contents.weights.rounded is not None:
            return [contents.weights.rounded.line()]
        if self.config.lora == "merge" and uses_lora(contents.config.model) and gradients_pass(mode, training=True):
            return [
                f"LoRA was trained around {mode} and is merged into the full weights; --base quantised keeps {mode}'s"
            ]
        return []

    def fill(self, contents: Contents, form: Form, folder: Path) -> list[str]:
        """Write the files into ``folder``; a summary."""
        planned = form.tensors(contents)
        files = write_planned(folder, planned, self.config.shard_bytes)
        write_config(folder / "config.json", form.config(contents))
        write_json(folder / "generation_config.json", generation_config(contents))
        for name, content in form.files(contents).items():
            write_json(folder / name, content)
        contents.tokenizer.write(folder, None if form.frames_prompts else form.image_words(contents))
        more = form.extra(contents, folder) + self.for_server(contents, form, folder)
        size = sum(plan.fact.nbytes for plan in planned.values())
        lines = [f"{len(planned)} tensors, {size / 1e6:,.1f} MB in {len(files)} file{'s' * (len(files) > 1)}"]
        if self.config.lora == "adapter":
            count = write_adapter(contents, form, folder / "adapter")
            lines.append(f"adapter/: LoRA of {count} layers, for peft")
        words = form.image_words(contents)
        differences = [] if form.frames_prompts else contents.tokenizer.differences(folder, words)
        contents.weights.release()
        more += self._about_base(contents)
        write_model_card(contents, form, folder, differences)
        return lines + more + contents.notes + [f"reads otherwise than the composition: {text}" for text in differences]


def write_planned(folder: Path, planned: Mapping[str, Planned], shard_bytes: int) -> list[Path]:
    """The tensors as safetensors; see :func:`write_shards`."""
    facts = {name: plan.fact for name, plan in planned.items()}
    return write_shards(folder, facts, lambda name: planned[name].make(), shard_bytes, safetensors=True)


def write_config(file: Path, config: Any) -> None:
    """A configuration of transformers, or a mapping, as config.json."""
    if isinstance(config, Mapping):
        write_json(file, dict(config))
    else:
        file.write_text(config.to_json_string(use_diff=True), encoding="utf-8")


def generation_config(contents: Contents) -> dict[str, Any]:
    """generation_config.json: what the composition says of its answers, and ids that are never written."""
    given = default_generation(contents.config)
    written = contents.model_cfg.generation.given
    chosen = {name: vars(given)[name] for name in written if name in KNOWN}
    if not given.do_sample:
        chosen = {name: value for name, value in chosen.items() if name not in SAMPLING}
    tokenizer, known = contents.processor.tokenizer, contents.llm_config.get_text_config().eos_token_id
    ends = [i for i in [tokenizer.eos, *(known if isinstance(known, list) else [])] if i is not None]
    ids = {"bos_token_id": tokenizer.bos, "pad_token_id": tokenizer.pad, "eos_token_id": list(dict.fromkeys(ends))}
    banned = [*contents.model.llm.banned_ids, *([contents.tokenizer.image_id] if contents.tokenizer.is_new else [])]
    return (
        chosen | {k: v for k, v in ids.items() if v not in (None, [])} | ({"suppress_tokens": banned} if banned else {})
    )


KNOWN = (
    "do_sample",
    "max_new_tokens",
    "num_beams",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    *SAMPLING,
)
"""Options of an answer that transformers calls alike."""


def uses_lora(model_cfg: Any) -> bool:
    """Whether the vision encoder or the LLM of a composition has LoRA."""
    return any(part is not None and part.get("lora") is not None for part in (model_cfg.vision, model_cfg.llm))
