"""``tokenizer.model`` of the original LLaMA releases as the files of a Hugging Face tokenizer.

Up to Llama 2 it is a sentencepiece model, which is copied; since Llama 3 it is token ranks, the text form of tiktoken.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
from pathlib import Path
from typing import Any

from vlm.common.errors import WeightsError
from vlm.processors.tokenizer.tokenizer import Tokenizer

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts a text into words."""
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TURNS = ("<|start_header_id|>", "<|end_header_id|>")
SPECIAL = 256
"""Special tokens after the ranks; those without a use are reserved."""
ENDS = (EOS, "<|eom_id|>", "<|eot_id|>")
"""Tokens that end an answer."""


def is_ranks(file: Path) -> bool:
    """Whether a ``tokenizer.model`` is lines of base64 and rank, and not a sentencepiece model."""
    with file.open("rb") as content:
        head = content.read(64).split(b"\n")[0].split()
    return len(head) == 2 and head[1].isdigit()


def read_ranks(file: Path) -> dict[bytes, int]:
    """Token -> rank, which is its id. Raises WeightsError: a line is something else, or a rank is missing."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise WeightsError(f"{file}: line {number} is not a token and its rank", fix="fetch it again") from error
    single = [bytes([byte]) for byte in range(256)]
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(byte in ranks for byte in single):
        raise WeightsError(f"{file}: ranks are missing or there twice ({len(ranks)} read)", fix="fetch it again")
    return ranks


def special_tokens(newer: bool) -> list[str]:
    """The 256 special tokens in order; ``newer``: of Llama 3.1 and later."""
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(SPECIAL)]
    if newer:
        named = [BOS, EOS, *reserved[:2], "<|finetune_right_pad_id|>", reserved[2], *TURNS, "<|eom_id|>", "<|eot_id|>"]
        return [*named, "<|python_tag|>", *reserved[3 : SPECIAL - 8]]
    named = [BOS, EOS, *reserved[:4], *TURNS, reserved[4], "<|eot_id|>"]
    return [*named, *reserved[5 : SPECIAL - 5]]


def convert_tokenizer(file: Path, target: Path, *, newer: bool, positions: int) -> dict[str, Any]:
    """Write the files of a tokenizer into the folder ``target``; returns ``bos_token_id`` and ``eos_token_id``.

    Args:
        file: the original ``tokenizer.model``.
        target: folder to write into.
        newer: Llama 2, or of those with ranks Llama 3.1, and later.
        positions: longest input, which the configuration states.

    Raises:
        WeightsError: no such file, or something else in it.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file", fix="copy tokenizer.model there; --tokenizer names it elsewhere")
    common = {"clean_up_tokenization_spaces": False, "model_max_length": positions}
    if is_ranks(file):
        ids = write_ranks(file, target, newer)
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        write_config(target, names | common | inputs)
        return ids
    shutil.copyfile(file, target / "tokenizer.model")
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    adds = {"add_bos_token": True, "add_eos_token": False, **({"legacy": False} if newer else {})}
    write_config(target, names | adds | common)
    made = Tokenizer.from_folder(target)
    return {"bos_token_id": made.bos, "eos_token_id": made.eos}


def write_config(target: Path, content: dict[str, Any]) -> None:
    """Write ``tokenizer_config.json``."""
    (target / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_ranks(file: Path, target: Path, newer: bool) -> dict[str, Any]:
    """Write ``tokenizer.json`` from ranks; returns the ids of begin and end tokens. Raises as :func:`read_ranks`."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Rust

    ranks = read_ranks(file)
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(spelled[a], spelled[b]) for a, b in _merges(ranks)]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    made = Rust(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    made.decoder = decoders.ByteLevel()
    special = special_tokens(newer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    ids = {text: len(ranks) + number for number, text in enumerate(special)}
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, ids[BOS])]
    )
    made.save(str(target / "tokenizer.json"))
    return {"bos_token_id": ids[BOS], "eos_token_id": [ids[text] for text in ENDS if text in ids]}


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to put a token together from two others, by the rank of the token."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in ranks and second in ranks:
                found.append((rank, ranks[first], ranks[second], first, second))
    return [(first, second) for *_, first, second in sorted(found)]


def _letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
