from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from vlm.common.types import MEDIA_TOKEN, Example, Image, Sample
from vlm.datasets.base import message
from vlm.datasets.inspect.render import Piece, Shown, pieces, readable, spoken, terminal_text
from vlm.pages.samples import page, thumbnail
from vlm.processors.collate import VisualTokens
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.tokenizer.tokenizer import Tokenizer

LLM = Path(__file__).parents[2] / "golden" / "minigpt4" / "open" / "llm"

RECIPE = ImageRecipe(ImageRecipe.Config(size=4))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(LLM)


def example(tokenizer: Tokenizer, question: str = "a boat", answer: str = "red", frames: int = 1) -> Example:
    asked, said = tokenizer.encode(question, bos=True), tokenizer.encode(answer)
    labels = [-100] * (1 + len(asked)) + said
    return Example([*asked, MEDIA_TOKEN, *said], labels, [torch.zeros(frames, 3, 4, 4)], "7", "mine")


def test_pieces_show_tokens_targets_and_media(tokenizer: Tokenizer) -> None:
    found = pieces(example(tokenizer), tokenizer, VisualTokens(2, 5))
    assert found[0] == Piece("<s>") and found[1] == Piece("▁a")
    assert [p.text for p in found if p.medium] == ["[image 1: 7 tokens]"]
    assert "".join(p.text for p in found if p.trained) == "▁red"
    clip = pieces(example(tokenizer, frames=3), tokenizer, VisualTokens(0, 5))
    assert [p.text for p in clip if p.medium] == ["[video of 3 frames 1: 15 tokens]"]


def test_terminal_text_with_and_without_colours() -> None:
    found = [Piece("<s>"), Piece("[image 1: 7 tokens]", medium=True), Piece("▁re", True), Piece("d", True)]
    assert terminal_text(found, colour=False) == "<s>|[image 1: 7 tokens]|«▁re|d»"
    coloured = terminal_text(found, colour=True)
    assert "\x1b[1;32m▁re|d\x1b[0m" in coloured and "\x1b[1;34m[image" in coloured and "«" not in coloured


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("▁boat", "▁boat"),
        ("<0x0A>", "⏎"),
        ("<0xE4>", "<0xE4>"),
        ("Ġboat", "▁boat"),
        ("Ċ", "⏎"),
        ("ä¸Ń", "中"),
        ("船", "船"),
    ],
)
def test_readable_pieces(piece: str, text: str) -> None:
    assert readable(piece) == text


def test_spoken_names_media() -> None:
    sample = Sample((message("user", Image("a.png"), Image(b"x" * 2048), "What?"), message("assistant", "Nothing")))
    assert spoken(sample) == ["user: <image a.png> <image, 2.0 KiB> 'What?'", "assistant: 'Nothing'"]


def test_the_page_holds_all_it_needs(tokenizer: Tokenizer) -> None:
    sample = Sample((message("user", "<b>?"), message("assistant", "red")), id="7", source="mine")
    good = Shown("7", sample, example(tokenizer, question="<b> 船 ?"))
    text = page(
        "T & U",
        [("mine <1>", [good, Shown("8", error="no file <x>")])],
        ImageRecipe(ImageRecipe.Config(size=4)),
        tokenizer,
    )
    assert "T &amp; U" in text and "mine &lt;1&gt;" in text and "no file &lt;x&gt;" in text
    assert 'src="data:image/jpeg;base64,' in text
    assert "http" not in text and "<script" not in text
    assert '<span class="t"> red</span>' in text
    assert "船" in text, "letters that the vocabulary spells byte by byte are put together"
    assert "1 trained" in text


def test_the_page_without_a_tokenizer() -> None:
    sample = Sample((message("user", "What?"), message("assistant", "Nothing")), id="7", source="mine")
    text = page("T", [("mine", [Shown("7", sample)])], RECIPE, None)
    assert "user: &#39;What?&#39;" in text and "Without a tokenizer" in text


def test_thumbnails_undo_the_normalisation() -> None:
    recipe = ImageRecipe(ImageRecipe.Config(size=32))
    image = PILImage.new("RGB", (50, 40), (200, 30, 90))
    address = thumbnail(recipe(image), recipe, side=64)
    shown = PILImage.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert shown.size == (64, 64)
    assert all(abs(a - b) <= 3 for a, b in zip(shown.getpixel((30, 30)), (200, 30, 90), strict=True))


def test_clips_show_a_strip_of_frames(tokenizer: Tokenizer) -> None:
    sample = Sample((message("user", "?"), message("assistant", "red")), id="7", source="mine")
    text = page("T", [("x", [Shown("7", sample, example(tokenizer, frames=12))])], RECIPE, tokenizer)
    assert text.count("data:image/jpeg") == 8 and '<div class="images frames">' in text
