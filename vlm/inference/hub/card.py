"""README.md of an exported folder: what the model is, where it comes from, how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm.checkpoint.provenance import read_provenance
from vlm.checkpoint.run_folder import find_checkpoint
from vlm.common import VERSION
from vlm.common.errors import WeightsError
from vlm.inference.hub.contents import Contents, short
from vlm.inference.hub.forms import Form


def write_model_card(contents: Contents, form: Form, folder: Path, differences: Sequence[str]) -> None:
    """Write ``README.md``; names of this machine's folders are left out."""
    record = _provenance(contents)
    sections = [
        _front(contents, form),
        f"# {contents.source.resolve().name}\n\n{_about(contents, form)}",
        "## Use\n\n" + form.usage(contents),
        "## Composition\n\n" + _table(_composition(contents)),
        "## Training\n\n" + _table(_training(contents, record)),
        "## Prompts\n\n" + _prompts(contents, form, differences),
        "## Provenance\n\n" + _table(_hashes(contents, record)),
        "## Licence\n\nTo be filled in: the licences of the encoder, of the LLM and of the data bind these weights.\n",
    ]
    if contents.notes:
        sections.insert(3, "## Notes\n\n" + "\n".join(f"- {note}" for note in contents.notes) + "\n")
    (folder / "README.md").write_text("\n".join(sections), encoding="utf-8")


def _front(contents: Contents, form: Form) -> str:
    lines = ["library_name: transformers", "pipeline_tag: image-text-to-text", "license: other  # fill in"]
    return "\n".join(["---", *lines, "tags: [vlm]", "---", ""])


def _about(contents: Contents, form: Form) -> str:
    parts = contents.model_cfg
    chain = [p.name for p in (parts.vision, *parts.bridge) if p is not None]
    chain += [f"{contents.llm_config.model_type} ({parts.fusion.name})"]
    inserts = f", with inserts {', '.join(p.name for p in parts.inserts)}" if parts.inserts else ""
    return (
        f"A vision-language model composed with vlm {VERSION}: {' -> '.join(chain)}{inserts}, written as "
        f"`{form.architecture}` in {short(contents.dtype)}.\n"
    )


def _composition(contents: Contents) -> dict[str, Any]:
    model, cfg = contents.model, contents.model_cfg
    vision = (
        "" if model.vision is None else f"{cfg.vision.name}, {model.vision.image_size} px, width {model.vision.out_dim}"
    )
    llm = f"{contents.llm_config.model_type}, {len(model.llm.layers())} layers, width {model.llm.hidden_size}"
    lora = {name: part.get("lora") for name, part in (("vision", cfg.vision), ("llm", cfg.llm)) if part is not None}
    facts = {
        "vision encoder": vision,
        "bridges": ", ".join(part.name for part in cfg.bridge),
        "fusion": cfg.fusion.name,
        "language model": f"{llm}, {model.llm.vocab_size:,} tokens",
        "positions of an image": contents.image_tokens,
        "LoRA": ", ".join(f"{name}: r {o.r}, alpha {o.alpha:g}" for name, o in lora.items() if o is not None),
        "prompt template": cfg.template.name,
        "parameters": f"{sum(t.numel() for t in contents.weights.facts.values()):,}",
    }
    return {name: value for name, value in facts.items() if value not in ("", None)}


def _training(contents: Contents, record: dict[str, Any]) -> dict[str, Any]:
    cfg = contents.config
    facts: dict[str, Any] = {"steps": record.get("step")}
    facts |= {name: f"{value:.4g}" for name, value in (record.get("metrics") or {}).items()}
    facts |= {"data": ", ".join(cfg.datasets), "trained": _trained(record.get("trained") or [])}
    facts |= {"learning rate": cfg.run.init_lr, "seed": cfg.run.seed} if record else {}
    facts |= {f"run with {name}": value for name, value in (record.get("hardware") or {}).items()}
    return {name: value for name, value in facts.items() if value not in ("", None)} or {"run": "not a run folder"}


def _trained(names: Sequence[str]) -> str:
    """``bridge.1, llm (LoRA)`` of the names of parameters."""
    parts = []
    for name in names:
        top = ".".join(name.split(".")[: 2 if name.startswith(("bridge", "inserts")) else 1])
        parts.append(f"{top} (LoRA)" if ".lora_" in name else top)
    return ", ".join(dict.fromkeys(parts))


def _prompts(contents: Contents, form: Form, differences: Sequence[str]) -> str:
    tokenizer, template = contents.tokenizer, contents.processor.template
    lines = [f"An image is `{tokenizer.image}` in a prompt."]
    if form.frames_prompts:
        lines.append("There is no chat template: the processor takes the question and writes the rest.")
    elif tokenizer.has_template and not differences:
        lines.append("The chat template gives the ids that the composition was trained with.")
    elif tokenizer.has_template:
        lines.append(f"The chat template gives other ids than the composition for: {'; '.join(differences)}.")
    else:
        lines.append("There is no chat template: the composition's prompts have no form in Jinja.")
    if template.stop:
        shown = ", ".join(f"`{text!r}`" for text in template.stop)
        lines.append(f"Answers end at {shown} besides the end token: `generate(stop_strings=[...], tokenizer=...)`.")
    return " ".join(lines) + "\n"


def _hashes(contents: Contents, record: dict[str, Any]) -> dict[str, Any]:
    prints = {
        f"sha256 of frozen {part}": facts.get("sha256") for part, facts in (record.get("fingerprints") or {}).items()
    }
    versions = {f"trained with {name}": value for name, value in (record.get("versions") or {}).items()}
    return (
        prints
        | versions
        | {"exported with vlm": VERSION, "exported with transformers": metadata.version("transformers")}
    )


def _provenance(contents: Contents) -> dict[str, Any]:
    try:
        return read_provenance(find_checkpoint(contents.source))
    except WeightsError:  # a YAML file of published weights
        return {}


def _table(facts: dict[str, Any]) -> str:
    rows = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"
