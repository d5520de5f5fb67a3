"""The tokenizer in a GGUF file."""

from __future__ import annotations

from typing import Any

from vlm.common.errors import WeightsError
from vlm.inference.hub.contents import Contents

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (``llama_token_type``)."""
PRE = {"qwen2": "qwen2", "qwen3": "qwen2"}
"""Family -> llama.cpp's name of how a byte-level tokenizer cuts a text before it merges."""
LLAMA3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
"""How the rule of LLaMA 3 begins."""


def add_vocabulary(writer: Any, contents: Contents, family: str) -> None:
    """Write tokens, their kinds, scores or merges, and the special ids.

    Raises WeightsError: a tokenizer that llama.cpp cuts otherwise.
    """
    rows = contents.model.llm.vocab_size
    pieces = contents.processor.tokenizer.sentencepieces()
    if pieces:
        tokens = [(text.encode("utf-8"), score, kind) for text, score, kind in pieces]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(True)
    else:
        tokens = byte_level(writer, contents, family)
    tokens = tokens[:rows] + [(f"[PAD{i}]".encode(), -1000.0, UNUSED) for i in range(len(tokens), rows)]
    for text, special in contents.processor.tokenizer.special_tokens.items():
        if special.id < rows and tokens[special.id][2] != UNKNOWN:
            tokens[special.id] = (text.encode("utf-8"), 0.0, CONTROL)
    writer.add_token_list([text for text, _, _ in tokens])
    if pieces:
        writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    own = contents.processor.tokenizer
    for index, add in ((own.bos, writer.add_bos_token_id), (own.eos, writer.add_eos_token_id)):
        if index is not None:
            add(index)
    if own.unk is not None:
        writer.add_unk_token_id(own.unk)
    if own.pad is not None:
        writer.add_pad_token_id(own.pad)
    writer.add_add_bos_token(own.bos is not None)
    if (template := contents.tokenizer.template("<__media__>")) is not None:
        writer.add_chat_template(template)


def byte_level(writer: Any, contents: Contents, family: str) -> list[tuple[bytes, float, int]]:
    """Tokens of a byte-level tokenizer; its merges are written.

    Raises WeightsError: it cuts texts in a way of its own.
    """
    tree = contents.tokenizer.tree
    rule = str(tree.get("pre_tokenizer"))
    pre = "llama-bpe" if LLAMA3 in rule and family == "llama" else PRE.get(family)
    if tree["model"].get("type") != "BPE" or pre is None:
        raise WeightsError(
            f"the tokenizer ({tree['model'].get('type')} of a {family}) has no name in llama.cpp",
            fix="convert the exported folder with llama.cpp's convert_hf_to_gguf.py: --to hf",
        )
    added = {entry["id"]: entry for entry in tree.get("added_tokens") or []}
    named = {index: text for text, index in tree["model"]["vocab"].items()}
    named |= {index: entry["content"] for index, entry in added.items()}
    kinds = {i: CONTROL if entry.get("special") else USER_DEFINED for i, entry in added.items()}
    size = max(named) + 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    merges = tree["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    unused = contents.tokenizer.image_id if contents.tokenizer.is_new else -1
    return [
        (named.get(i, f"[PAD{i}]").encode("utf-8"), 0.0, kinds.get(i, NORMAL if i in named else UNUSED))
        for i in range(size)
        if i != unused
    ]
