"""The question in the tokens of a bridge: ids of transformers' tokenizer, cut as it cuts."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from vlm.common.errors import WeightsError
from vlm.processors.tokenizer.question import QuestionTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *("what", "is", "in", "the", "image", "?", "a", "cat", "##s", "how", "many", "are", "there")]
WORDS += ["[", "]", "sep"]


def save_words(folder: Path, side: str = "left"):
    """A WordPiece tokenizer of a few words, saved by transformers."""
    from transformers import BertTokenizer

    made = BertTokenizer({word: i for i, word in enumerate(WORDS)}, truncation_side=side)
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_are_those_of_transformers(tmp_path: Path, side: str) -> None:
    theirs = save_words(tmp_path, side)
    ours = QuestionTokenizer(tmp_path, 8)
    assert ours.vocab_size == len(theirs)
    for text in ("What is in the image?", "How many cats are there? a a a a a", "", "a \ud83d"):
        wanted = theirs(text.encode("utf-8", "replace").decode(), truncation=True, max_length=8).input_ids
        assert ours(text) == wanted == pickle.loads(pickle.dumps(ours))(text)


def test_special_tokens_in_a_question_are_words(tmp_path: Path) -> None:
    save_words(tmp_path)
    tokenizer = QuestionTokenizer(tmp_path, 16)
    assert tokenizer("what [SEP] is").count(WORDS.index("[SEP]")) == 1


def test_a_folder_without_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no tokenizer.json in it"):
        QuestionTokenizer(tmp_path, 8)
    with pytest.raises(WeightsError, match="no such folder"):
        QuestionTokenizer(tmp_path / "none", 8)
