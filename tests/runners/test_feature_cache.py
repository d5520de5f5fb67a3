"""``run.feature_cache``: which results can be kept, when a run is refused, and the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.equivalence.tiny import DATA, HERE
from vlm.cli.main import main
from vlm.common.errors import ConfigError, UserError
from vlm.common.types import Batch, Features, StoredGroup, StoredMedia, StoredMedium
from vlm.config.api import Config, load_config
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.bridges.question import QuestionOptions
from vlm.models.frozen.chain import describe_part, frozen_parts
from vlm.models.frozen.encode import FirstParts, encode_stored, keep_missing
from vlm.models.lora import LoraOptions, inject_lora
from vlm.models.vlm import VLM
from vlm.processors.features.entry import Entry, pack
from vlm.processors.features.folder import MARKER
from vlm.processors.features.index import Index
from vlm.processors.features.store import Reader, Writer
from vlm.processors.image.recipe import ImageRecipe
from vlm.runners.features.cache import check_cache, trains_vision
from vlm.runners.features.keep import Keeper, trimmed

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


class Encoder(nn.Module):
    """Two tokens of width 8 per frame, each the mean of half the pixels."""

    out_dim, image_size, num_tokens = 8, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(24, 8)
        self.calls: list[int] = []

    def forward(self, pixels: torch.Tensor) -> Features:
        self.calls.append(len(pixels))
        return Features(self.proj(pixels.reshape(*pixels.shape[:2], 2, 24)))


def model(*bridge: nn.Module, train: Sequence[str] = ()) -> VLM:
    torch.manual_seed(0)
    own = VLM(Encoder(), list(bridge), nn.Identity())
    own.requires_grad_(False)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(train) or "none"))
    return own


def qformer(**options: object) -> QFormer:
    return QFormer(QFormer.Config(num_query_tokens=2, **SMALL, **options), 8, 8)  # type: ignore[arg-type]


def linear() -> Linear:
    return Linear(Linear.Config(), 8, 8)


def test_the_chain_ends_before_the_first_part_that_may_differ() -> None:
    assert frozen_parts(model(qformer(), linear())) == (3, "")
    assert frozen_parts(model(qformer(), linear(), train=["bridge.1"])) == (2, "bridge.1 trains (bridge.1.proj.weight)")
    assert frozen_parts(model(qformer(), linear(), train=["bridge.0.query_tokens"]))[0] == 1
    asking = qformer(reads_text=QuestionOptions(vocab_size=10, max_positions=4))
    assert frozen_parts(model(asking, linear())) == (1, "bridge.0 reads the question about an image (reads_text)")
    assert frozen_parts(model(nn.Sequential(nn.Dropout(0.1)))) == (
        1,
        "bridge.0 drops values at random (bridge.0.0: 0.1)",
    )
    assert frozen_parts(model(nn.Sequential(nn.Dropout(0.0))))[0] == 2
    with pytest.raises(ConfigError, match="vision trains"):
        frozen_parts(model(linear(), train=["vision"]))
    adapted = model(linear())
    inject_lora(adapted.vision, LoraOptions(r=1, targets=["proj"]))
    with pytest.raises(ConfigError, match="vision has LoRA, which trains"):
        frozen_parts(adapted)
    with pytest.raises(ConfigError, match="no vision encoder"):
        frozen_parts(VLM(None, [], nn.Identity()))


def test_weights_options_and_dtypes_tell_parts_apart() -> None:
    found = [describe_part("bridge.0", part) for part in (qformer(), qformer(layer_norm_eps=1e-6))]
    part = linear()
    before = describe_part("x", part)
    assert before == describe_part("x", part)
    with torch.no_grad():
        part.proj.weight[-1, -1] += 1e-3
    changed = describe_part("x", part)
    half = describe_part("x", part.to(torch.bfloat16))
    assert found[0]["options"] != found[1]["options"]
    assert len({one["weights"] for one in (before, changed, half)}) == 3


def batch_of(pixels: torch.Tensor, stored: StoredMedia | None, frames: torch.Tensor | None = None) -> Batch:
    n = 0 if pixels is None else len(pixels)
    n = n if stored is None else len(stored.media)
    ids, places = torch.zeros(1, n, dtype=torch.long), torch.arange(n)
    return Batch(ids, ids, ids + 1, pixels, torch.zeros_like(places), places, frames, stored=stored)


def test_hits_and_misses_together_are_what_the_model_encodes(tmp_path: Path) -> None:
    own = model(qformer(), linear(), train=["bridge.1"]).eval()
    shapes = [(1, 4, 4), (2, 4, 4), (1, 4, 4), (1, 4, 4), (2, 4, 4)]
    frames = torch.tensor([shape[0] for shape in shapes])
    pixels = torch.randn(5, 2, 3, 4, 4) * (torch.arange(2)[None] < frames[:, None])[..., None, None, None]
    whole = own.encode(pixels, frames)
    index = Index(tmp_path)
    keeper = Keeper(Writer(tmp_path, 1e9), index, None)
    own.first = FirstParts(2, keeper)
    media: list[StoredMedium | None] = [StoredMedium(bytes([k]) * 24, bytes(8)) for k in range(5)]
    media[3] = None  # such as an array, which no cache keeps
    stored = StoredMedia(media, shapes, [])
    assert keep_missing(own, batch_of(pixels, stored, frames), stored) == 4
    keeper.close()
    index.refresh()
    entries = {k: Reader(index).features(bytes([k]) * 24)[0] for k in (0, 1, 2, 4)}
    assert len(index) == 4

    for hits in ([], [2], [1, 4], [0, 1, 2, 4], [4, 0]):
        own.vision.calls.clear()
        groups = [StoredGroup([k], entry.features, entry.dtype) for k in hits if (entry := entries[k]) is not None]
        missing = [k for k in range(5) if k not in hits]
        known = StoredMedia(media, shapes, groups)
        found = encode_stored(own, batch_of(pixels[missing], known, frames), known)
        assert torch.equal(found.tokens, whole.tokens) and torch.equal(found.mask, whole.mask)  # type: ignore[arg-type]
        assert sum(own.vision.calls) == len(missing)


def test_stored_in_half_what_is_computed_equals_what_is_read(tmp_path: Path) -> None:
    index = Index(tmp_path)
    keeper = Keeper(Writer(tmp_path, 1e9), index, torch.float16)
    value = Features(torch.randn(1, 1, 2, 8))
    seen = keeper([StoredMedium(bytes(24), bytes(8))], (1, 4, 4), value)
    keeper.close()
    index.refresh()
    entry, _ = Reader(index).features(bytes(24))
    assert entry is not None and entry.features.tokens.dtype == torch.float16 and entry.dtype == torch.float32
    assert torch.equal(entry.features.tokens.float(), seen.tokens) and not torch.equal(seen.tokens, value.tokens)


def test_padding_of_other_media_is_not_kept() -> None:
    mask = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
    cut = trimmed(Features(torch.randn(1, 2, 4, 8), mask))
    assert cut.tokens.shape == (1, 2, 2, 8) and cut.mask is not None
    assert trimmed(Features(torch.randn(1, 1, 4, 8), mask[:, :1])).mask is None


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    file = tmp_path / "tiny.yaml"
    file.write_text((HERE / "tiny.yaml").read_text().replace("DATA", str(DATA)))
    return load_config(file, [f"run.feature_cache.dir={tmp_path / 'cache'}"])


def test_a_run_is_refused_before_anything_is_loaded(cfg: Config, tmp_path: Path) -> None:
    check_cache(cfg)
    random = ImageRecipe.Config(train=ImageRecipe.Train())
    cases = {
        "changes each image at random": {"image": dataclasses.replace(cfg.model.image, config=random)},
        r"the vision encoder trains \(model.train: vision.lora\)": {"train": {"vision.lora": True}},
        "has no vision encoder": {"vision": None},
    }
    for text, changes in cases.items():
        with pytest.raises(ConfigError, match=text):
            check_cache(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **changes)))
    cfg.run.parallel.shard, cfg.run.parallel.frozen = "all", "shard"
    with pytest.raises(ConfigError, match="run.parallel.frozen=replicate"):
        check_cache(cfg)
    cfg.run.parallel.shard = "none"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_text("")
    with pytest.raises(UserError, match="holds other files and is not a feature cache"):
        check_cache(cfg)


def test_globs_of_the_vision_encoder() -> None:
    assert trains_vision({"vision.*": True}) == "vision.*"
    assert trains_vision({"*": True, "vision": False}) == ""
    assert trains_vision({"vision": True, "vision.vit.*": False}) == "vision"
    assert trains_vision({"bridge.*": True, "llm.lora": True}) == ""


def test_info_and_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", str(tmp_path)]) == 2
    (tmp_path / MARKER).write_text('{"format": "vlm feature cache", "version": 1}')
    parts = tmp_path / ("0" * 32)
    parts.mkdir()
    writer = Writer(parts, 1e9)
    for k in range(3):
        writer.write(
            bytes([k]) * 24,
            b"recipe_1",
            pack(Entry(Features(torch.ones(1, 1, 2, 4)), torch.float32, (1, 4, 4), None, 16)),
        )
    writer.close()
    assert main(["cache", "info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "3 media" in said and "parts of 1 model" in said
    assert main(["cache", "clear", str(tmp_path)]) == 0
    assert not tmp_path.exists()
