"""Prints the table of docs/memory.md: every composition is built without weights and its tensors are counted.

``python -m benchmarks.memory_table`` takes seconds and allocates nothing. Only what can be counted is printed: the
weights, and the gradients and AdamW states of what trains. Activations and the key-value cache come on top.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vlm.config.api import load_config
from vlm.models.build import build_model
from vlm.models.vlm import VLM

PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
MARKER = "memory-table"
GB = 1e9
STATES = 4 + 8
"""Bytes per trained parameter: a float32 gradient and the two float32 states of AdamW."""


def llama(width: int, layers: int, heads: int, inner: int, vocabulary: int = 32000) -> dict[str, Any]:
    """The ``config.json`` of a LLaMA."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
LLAMA_7B = llama(4096, 32, 32, 11008)
LLAMA_13B = llama(5120, 40, 40, 13824)
REDPAJAMA_3B = {
    "model_type": "gpt_neox",
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 10240,
    "vocab_size": 50432,
}


@dataclass(frozen=True)
class Row:
    """A composition: its title, ``arch/model_type``, and the sizes of the folders that its parameters name."""

    title: str
    name: str
    folders: dict[str, dict[str, Any]]
    values: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("MiniGPT-4, Vicuna-7B", "minigpt4/pretrain_vicuna0", {"llama_model": LLAMA_7B | {"vocab_size": 32001}}),
    Row("MiniGPT-4, Vicuna-13B", "minigpt4/pretrain_vicuna0", {"llama_model": LLAMA_13B | {"vocab_size": 32001}}),
    Row("MiniGPT-4, LLaMA-2-7B", "minigpt4/pretrain_llama2", {"llama_model": LLAMA_7B}),
    Row("MiniGPT-v2", "minigpt_v2/pretrain", {"llama_model": LLAMA_7B}),
    Row(
        "VisualCLA-7B",
        "visualcla/7b_v0_1",
        {"text_model": LLAMA_7B | {"vocab_size": 49954}, "vision_model": CLIP_L},
        {"lora_model": "", "llm": {"vocab_size": 49958}},
    ),
    Row("Lynx", "lynx/finetune", {"LLM": LLAMA_7B}, {"vit_path": "-", "checkpoint": ""}),
    Row(
        "Multimodal-GPT",
        "mmgpt/open_flamingo_9b_lora",
        {"lm_path": LLAMA_7B},
        {"pretrained_path": "-", "finetune_path": ""},
    ),
    Row("OpenFlamingo-9B", "open_flamingo/v1_9b", {"lm_path": LLAMA_7B}, {"pretrained_path": "-"}),
    Row("OpenFlamingo-4B", "open_flamingo/v2", {"lm_path": REDPAJAMA_3B}, {"pretrained_path": "-"}),
)


def build(row: Row) -> VLM:
    """The composition on the meta device."""
    arch, model_type = row.name.split("/")
    with tempfile.TemporaryDirectory() as folder:
        model = {"arch": arch, "model_type": model_type, **row.values}
        for name, sizes in row.folders.items():
            place = Path(folder, name)
            place.mkdir()
            (place / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
            model[name] = str(place)
        return build_model(load_config({"model": model}, check="none").model, device="meta")


def eight_bit(model: VLM) -> int:
    """Bytes saved by holding the LLM's linear layers, head excluded, in 8 bit."""
    linears = [m for name, m in model.llm.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]
    return sum(m.weight.numel() * (m.weight.element_size() - 1) for m in linears if not m.weight.requires_grad)


def row_text(row: Row) -> str:
    """A line of the table."""
    model = build(row)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    size = sum(p.numel() * p.element_size() for p in parameters)
    extra = f"{trained * STATES / GB:.1f} GB" if trained * STATES >= GB / 10 else "< 0.1 GB"
    return (
        f"| {row.title} | {sum(p.numel() for p in parameters) / GB:.2f} B | {size / GB:.1f} GB "
        f"| {(size - eight_bit(model)) / GB:.1f} GB | {trained / 1e6:.1f} M | {extra} |"
    )


def table() -> str:
    """The table as Markdown."""
    head = "| composition | parameters | weights | LLM in 8 bit | trained | gradients and AdamW states |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(row_text, ROWS)])


def main() -> None:
    """Put the table between its markers in docs/memory.md."""
    text, content = PAGE.read_text(encoding="utf-8"), table()
    start, end = f"<!-- {MARKER} -->", f"<!-- end {MARKER} -->"
    head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
    PAGE.write_text(f"{head}\n{content}\n{tail}", encoding="utf-8")
    print(content)


if __name__ == "__main__":
    main()
