"""Stage ``tokenizer``: a small sentencepiece BPE model with byte fallback, set up like LLaMA's."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import sentencepiece

from foundations.common import SIZES, Plan
from vlm.datasets.synthetic.language import INSTRUCTIONS, caption, dialogue, note
from vlm.datasets.synthetic.scene import COLORS, COLUMNS, COUNTS, LETTERS, ROWS, SHAPES, scene_at
from vlm.datasets.synthetic.scene import SIZES as THING_SIZES

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
WORDS = (*COLORS, *SHAPES, *LETTERS, *ROWS, *COLUMNS, *THING_SIZES, *COUNTS, "nothing", "yes", "no")
"""Words that must be one token each."""


def corpus(seed: int, scenes: int) -> list[str]:
    """Lines in all the forms that the language model will read."""
    lines = [SYSTEM, *INSTRUCTIONS] * 20
    for index in range(scenes):
        scene = scene_at(seed, index, split="foundation", mix=(0.3, 0.4, 0.3))
        turns = dialogue(scene, np.random.default_rng((seed, index)), 3)
        # "###" never follows punctuation here, so that no piece joins the two.
        chat = [f"{t.answer}{mark}" for t in turns for mark in ("###Human: <Img>", "###Assistant: ", "</Img> ")]
        lines += [caption(scene), " ".join(note(scene)), " ".join(WORDS), *(t.text for t in turns), *chat]
    return lines


def train_tokenizer(plan: Plan) -> Path:
    """Train ``llm/tokenizer.model`` and write the two small files beside it.

    Raises:
        RuntimeError: a word of ``WORDS`` is more than one token.
    """
    folder = plan.out / "llm"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "corpus.txt"
        text.write_text("\n".join(corpus(plan.seed, 1500)))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / "tokenizer"), model_type="bpe",
            vocab_size=SIZES["llm"]["vocab_size"], byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
            split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=True, minloglevel=2,
        )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": "<s>", **token},
        "eos_token": {"content": "</s>", **token},
        "unk_token": {"content": "<unk>", **token},
    }
    config = {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": True,
        "model_max_length": 512, "pad_token": None, "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    typed = {name: {"__type": "AddedToken", **value} for name, value in special.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | typed, indent=2) + "\n")
    words = Words(folder / "tokenizer.model")
    broken = [word for word in WORDS if len(words.encode(word)) != 1]
    if broken:
        raise RuntimeError(f"more than one token: {broken}; raise vocab_size")
    return folder / "tokenizer.model"


class Words:
    """The tokenizer as LLaMA's slow one treats a plain segment: own dummy prefix, no special tokens."""

    def __init__(self, path: Path) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self.model.get_piece_size()
        self.encode = lru_cache(maxsize=400_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.model.encode(text))

    def id(self, word: str) -> int:
        """The one token of a word."""
        (token,) = self.encode(word)
        return token

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return self.model.decode([int(i) for i in ids])
