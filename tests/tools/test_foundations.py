"""The makers of the tiny foundations: every stage runs, and their nets are the library's nets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[2] / "tools"
ASSETS = Path(__file__).parents[2] / "vlm" / "assets" / "tiny"


@pytest.fixture(autouse=True)
def _tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    sys.path.insert(0, str(TOOLS))
    import make_foundations

    out = tmp_path_factory.mktemp("tiny")
    make_foundations.main(["--out", str(out), "--miniature"])
    return out


def test_miniature_writes_all_files(miniature):
    names = {path.relative_to(miniature).as_posix() for path in miniature.rglob("*") if "work" not in path.parts}
    assert {
        "sizes.json", "eva_vit.safetensors", "qformer.safetensors", "llm/config.json", "llm/model.safetensors",
        "llm/tokenizer.model", "llm/tokenizer_config.json", "llm/special_tokens_map.json", "llm/generation_config.json",
    } <= names  # fmt: skip
    assert json.loads((miniature / "sizes.json").read_text()) == json.loads((ASSETS / "sizes.json").read_text())


def test_a_finished_stage_is_not_trained_again(miniature):
    import make_foundations

    before = (miniature / "llm" / "model.safetensors").read_bytes()
    make_foundations.main(["--out", str(miniature), "--miniature", "--stages", "llm"])
    assert (miniature / "llm" / "model.safetensors").read_bytes() == before


def test_vit_is_the_librarys(miniature):
    from foundations.common import SIZES, Plan
    from foundations.qformer import load_vit

    from vlm.models.vision.eva import EvaViT

    size = SIZES["vision"]
    peer = EvaViT(EvaViT.Config(**size, ln_vision=False)).eval()
    vit = load_vit(Plan(miniature, miniature))
    missing, unexpected = peer.vit.load_state_dict(vit.state_dict(), strict=False)
    assert not [name for name in unexpected if not name.endswith("k_bias")]
    assert not [name for name in missing if not name.endswith("k_bias")]
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = peer(pixels[:, None]).tokens[:, 0]
        torch.testing.assert_close(vit(pixels), theirs, atol=2e-5, rtol=1e-4)


def test_qformer_is_the_librarys(miniature):
    from foundations.common import SIZES
    from foundations.nets import QFormer

    from vlm.common.types import Features
    from vlm.models.bridges.qformer import QFormer as Peer

    ours = QFormer().eval()
    peer = Peer(Peer.Config(**SIZES["qformer"]), in_dim=SIZES["vision"]["embed_dim"], llm_dim=8).eval()
    table = {"query_tokens": ours.query_tokens}
    for key, value in ours.Qformer.bert.state_dict().items():
        key = key.replace("attention.self.", "attention.attention.").replace("embeddings.LayerNorm", "layernorm")
        table[key if key == "query_tokens" else f"qformer.{key}"] = value
    missing, unexpected = peer.load_state_dict(table, strict=False)
    assert not unexpected and not missing
    tokens = torch.randn(2, 65, SIZES["vision"]["embed_dim"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = peer(Features(ours.ln_vision(tokens)[:, None])).tokens[:, 0]
        torch.testing.assert_close(ours(tokens), theirs, atol=2e-5, rtol=1e-4)


def test_rows_have_the_training_layout(miniature):
    from foundations.text import BOS, chat_row, open_row, stage1_row, training_row
    from foundations.tokenizer import Words

    from vlm.datasets.synthetic.language import Question

    words = Words(miniature / "llm" / "tokenizer.model")
    block = (7,) * 16
    turns = [Question("color", "What color is the star?", "red"), Question("bind", "Is there a red star?", "yes")]
    first = stage1_row(words, block, "a red star")
    assert first.ids == [BOS, *block, *words.encode("a red star\n")]
    assert first.ids[-1] == 13 and sum(first.trained) == 4
    opened = open_row(words, block, turns[0].text)
    question = words.encode("</Img> What color is the star?###Assistant: ")
    assert opened.ids == [BOS, *words.encode("###Human: <Img>"), *block, *question]
    row = training_row(words, block, turns)
    second = words.encode("Human: Is there a red star?###Assistant: ")
    assert row.ids == [*opened.ids, *words.encode("red###"), *second, *words.encode("yes###")]
    chat = chat_row(words, block, turns)
    assert chat.ids == [
        BOS, *words.encode("###Human: <Img>"), *block,
        *words.encode("</Img> What color is the star?###Assistant: red###Human: Is there a red star?###Assistant: "),
        *words.encode("yes###"),
    ]  # fmt: skip


def test_every_word_of_a_note_is_one_token():
    from foundations.text import TextWorld
    from foundations.tokenizer import WORDS, Words

    from vlm.datasets.synthetic.scene import scene_at

    words = Words(ASSETS / "llm" / "tokenizer.model")
    assert all(len(words.encode(word)) == 1 for word in WORDS)
    world = TextWorld(words, 0)
    assert all(len(world.block(scene_at(0, index))) == 16 for index in range(50))


def test_labelled_images_never_show_a_held_out_pair():
    from foundations.images import draw_figures

    from vlm.datasets.synthetic.scene import COLORS, HELD_OUT, KINDS

    rng = np.random.default_rng(0)
    figures = [drawn for dense in (False, True) for _ in range(300) for drawn in draw_figures(rng, dense)]
    named = {(list(COLORS)[drawn.color], KINDS[drawn.kind]) for drawn in figures if drawn.color >= 0}
    assert len(named) > 80
    assert not named & HELD_OUT


def test_shipped_assets_are_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 12_000_000


def test_shipped_language_model_reads_notes():
    from foundations.llm import build_llm, reading
    from foundations.tokenizer import Words
    from safetensors.torch import load_file

    weights = load_file(ASSETS / "llm" / "model.safetensors")
    model = build_llm()
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    words = Words(ASSETS / "llm" / "tokenizer.model")
    assert reading(model, words, 120, 5)["all"] > 0.93
    assert reading(model, words, 120, 5, split="unseen")["all"] > 0.9


def test_shipped_vision_holds_the_scene():
    """Features of the queries name the note's words by their nearest class mean, without any training."""
    from foundations.common import Plan
    from foundations.nets import QFormer, to_pixels
    from foundations.qformer import load_vit
    from safetensors.torch import load_file

    from vlm.datasets.synthetic.language import note
    from vlm.datasets.synthetic.render import render
    from vlm.datasets.synthetic.scene import scene_at

    qformer = QFormer()
    qformer.load_state_dict({k: v.float() for k, v in load_file(ASSETS / "qformer.safetensors").items()})
    scenes = [scene_at(7, index, split="seen") for index in range(400)]
    images = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))
    with torch.no_grad():
        features = qformer(load_vit(Plan(ASSETS, ASSETS))(to_pixels(images)))
    notes = [note(scene) for scene in scenes]
    right = []
    for slot in (4, 5):  # colour and kind of the first thing
        said = np.array([words[slot] for words in notes])
        names = sorted(set(said[:300]))
        means = torch.stack([features[:300, slot][torch.from_numpy(said[:300] == name)].mean(0) for name in names])
        nearest = torch.cdist(features[300:, slot], means).argmin(1).tolist()
        right += [names[i] == word for i, word in zip(nearest, said[300:], strict=True)]
    assert np.mean(right) > 0.97
