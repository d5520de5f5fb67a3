"""Bridges that know where tokens lie: against transformers' own modules and plain references."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.common.errors import ConfigError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example, Features, MediumShape
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.models.bridges.newline import Newline
from vlm.models.bridges.patch_merger import PatchMerger
from vlm.models.bridges.pixel_shuffle import PixelShuffle
from vlm.models.bridges.pools import AvgPool, ConvAbstractor, PyramidPool
from vlm.models.build import build_model
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.vision.hf import HFVision
from vlm.models.vision.timm_vit import TimmVision
from vlm.models.vlm import VLM
from vlm.processors.collate import VisualTokens, collate
from vlm.testing import LLAMA, part

D = 6


def features(rows: int = 4, columns: int = 4, mask: Tensor | None = None) -> Features:
    tokens = torch.randn(2, 3, rows * columns, D, generator=torch.Generator().manual_seed(0))
    return Features(tokens, mask, grid=torch.tensor([[rows, columns]] * 2))


def made(cls: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return cls(cls.Config(**options), D, 8).eval()


BRIDGES = {
    "shuffle": (PixelShuffle, {}),
    "merger": (PatchMerger, {}),
    "pool": (AvgPool, {}),
    "resize": (AvgPool, {"mode": "bilinear"}),
    "pyramid": (PyramidPool, {"levels": [1, 2, 3]}),
    "newline": (Newline, {}),
    "last": (Newline, {"after": "frame"}),
    "conv": (ConvAbstractor, {"side": 2, "width": 8, "depth": 1}),
    "mlp": (MLP, {"norm": "layer"}),
    "shortcut": (MLP, {"norm": "layer", "shortcut": True, "dropout": 0.5}),
}


@pytest.mark.parametrize("name", BRIDGES)
def test_number_grid_and_batches(name: str) -> None:
    """What leaves is what was counted; a square needs no grid; each frame is worked on alone."""
    cls, options = BRIDGES[name]
    bridge, value = made(cls, **options), features(4, 6)
    count = pickle.loads(pickle.dumps(bridge.counter()))
    left = bridge(value)
    shape = count(MediumShape(tokens=24, grid=(4, 6)))
    assert left.tokens.shape == (2, 3, shape.tokens, bridge.out_dim)
    assert (None if left.grid is None else tuple(left.grid[1].tolist())) == shape.grid
    single = bridge(Features(value.tokens[1:, 2:], grid=value.grid[1:]))
    torch.testing.assert_close(single.tokens[0, 0], left.tokens[1, 2])
    square = Features(features().tokens)
    assert bridge(square).tokens.shape[2] == bridge.num_tokens(16) == count(MediumShape(tokens=16)).tokens


def test_pixel_shuffle_is_that_of_published_models() -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel

    value = features()
    ours = made(PixelShuffle)(value).tokens.flatten(0, 1)
    flat = value.tokens.flatten(0, 1)
    theirs: Any = Idefics3Connector.pixel_shuffle
    torch.testing.assert_close(ours, theirs(None, flat, 2), rtol=0, atol=0)
    theirs = InternVLModel.pixel_shuffle
    torch.testing.assert_close(ours, theirs(None, flat.unflatten(1, (4, 4)), 0.5).flatten(1, 2), rtol=0, atol=0)


def test_shuffle_of_a_rectangle_and_its_mask() -> None:
    mask = torch.ones(2, 3, 24, dtype=torch.bool)
    mask[:, :, 7] = False  # row 1, column 1
    left = made(PixelShuffle)(features(4, 6, mask))
    tokens = features(4, 6).tokens.unflatten(2, (4, 6))
    torch.testing.assert_close(left.tokens[0, 0, 4], torch.cat([tokens[0, 0, r, c] for r in (2, 3) for c in (2, 3)]))
    assert left.mask[0, 0].tolist() == [False] + [True] * 5


def test_projector_of_internvl() -> None:
    from transformers import InternVLConfig
    from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

    vision = {"hidden_size": D, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = InternVLMultiModalProjector(InternVLConfig(vision_config=vision, text_config=text)).eval()
    shuffle, bridge = made(PixelShuffle), MLP(MLP.Config(norm="layer"), 4 * D, 8)
    for name, ours in (("layer_norm", "norm"), ("linear_1", "layers.0"), ("linear_2", "layers.2")):
        bridge.get_submodule(ours).load_state_dict(theirs.get_submodule(name).state_dict())
    joined = shuffle(features())
    torch.testing.assert_close(bridge(joined).tokens, theirs(joined.tokens))


def test_merger_of_qwen2_vl() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger as Theirs

    theirs, bridge = Theirs(8, D), made(PatchMerger)
    bridge.load_state_dict(theirs.state_dict())
    value = features()
    windows = value.tokens.unflatten(2, (2, 2, 2, 2)).transpose(3, 4).flatten(2, 5)  # as its processor orders patches
    torch.testing.assert_close(bridge(value).tokens.flatten(0, 2), theirs(windows.flatten(0, 2)))


def test_pools() -> None:
    value = features()
    maps = value.tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (4, 4))
    mean = torch.nn.AvgPool2d(2)(maps).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made(AvgPool)(value).tokens.flatten(0, 1), mean)
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    class Sizes:
        image_size, patch_size = 70, 14

    class Model:
        config = type("Config", (), {"vision_config": Sizes})

    odd = features(5, 5)
    theirs: Any = LlavaOnevisionModel.apply_pooling
    ours = made(AvgPool, mode="bilinear")(odd)
    torch.testing.assert_close(ours.tokens.flatten(0, 1), theirs(Model, odd.tokens.flatten(0, 1)))
    assert ours.grid[0].tolist() == [3, 3]


def test_newline_ends_every_row() -> None:
    bridge, value = made(Newline), features(2, 3)
    left = bridge(value)
    cut = left.tokens.unflatten(2, (2, 4))
    assert torch.equal(cut[:, :, :, :3].flatten(2, 3), value.tokens)
    assert torch.equal(cut[1, 2, 1, 3], bridge.newline)
    masked = bridge(features(2, 3, torch.zeros(2, 3, 6, dtype=torch.bool)))
    assert masked.mask[0, 0].tolist() == [False, False, False, True] * 2
    assert torch.equal(made(Newline, after="frame")(value).tokens[0, 1, -1], bridge.newline)


def test_conv_abstractor_against_a_plain_chain() -> None:
    bridge, value = made(ConvAbstractor, side=2, width=8, depth=2, mlp_depth=2), features()
    maps = bridge.net[0](value.tokens.flatten(0, 1).transpose(1, 2).unflatten(2, (4, 4)))
    maps = bridge.net[1](F.avg_pool2d(maps, 2))
    expected = maps.flatten(2).transpose(1, 2) @ bridge.readout[0].weight.T + bridge.readout[0].bias
    expected = F.silu(expected) @ bridge.readout[2].weight.T + bridge.readout[2].bias
    torch.testing.assert_close(bridge(value).tokens.flatten(0, 1), expected)
    assert len(list(bridge.net[0].children())) == 2 and bridge.readout[2].out_features == 8


@pytest.mark.parametrize(
    ("name", "tokens", "text"),
    [
        ("shuffle", 9, "pixel_shuffle: 3 x 3 tokens do not divide into squares of 2"),
        ("pool", 25, "avg_pool: 5 x 5 tokens do not divide"),
        ("merger", 17, "17 tokens of a frame do not lie in rows and columns"),
        ("newline", 17, "17 tokens of a frame do not lie in rows and columns"),
    ],
)
def test_tokens_that_do_not_fit(name: str, tokens: int, text: str) -> None:
    cls, options = BRIDGES[name]
    bridge = made(cls, **options)
    for call in (lambda: bridge.num_tokens(tokens), lambda: bridge(Features(torch.zeros(1, 1, tokens, D)))):
        with pytest.raises(ConfigError, match=text):
            call()


def test_padding_is_not_convolved() -> None:
    value = features(mask=torch.arange(16).expand(2, 3, 16) < 9)
    for name in ("pool", "conv"):
        with pytest.raises(ConfigError, match="some are padding"):
            made(BRIDGES[name][0], **BRIDGES[name][1])(value)


def test_in_a_composition(compose, example, batched) -> None:
    """Several chained, from a tower to the loss; everything that trains gets a gradient."""
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    vision = TimmVision.Config("vit_tiny_patch16_224", image_size=64, keep_prefix=False, options=options)
    chain = [
        part("pixel_shuffle", PixelShuffle.Config()),
        part("linear", Linear.Config()),
        part("newline", Newline.Config()),
    ]
    model = build_model(compose(vision=part("timm", vision), bridge=chain, train=["bridge.*"]))
    assert model.tokens_per_frame == 6
    model(batched([example(1, 1, 2, size=64), example(2, 0, 3, media=2, seed=1, size=64)])).loss_sum.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.bridge.parameters())


def test_images_of_their_own_sizes_in_one_batch() -> None:
    """Batched == single, and the positions counted beforehand are those of the sequence."""
    sizes = {"model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "patch_size": 7, "num_patches": 16}
    torch.manual_seed(0)
    llm = HFCausalLM(HFCausalLM.Config(config=dict(LLAMA)))
    vision = HFVision(HFVision.Config(config=sizes, native=True))
    chain = [
        PixelShuffle(PixelShuffle.Config(), 16, 32),
        MLP(MLP.Config(norm="rms"), 64, 32),
        Newline(Newline.Config(), 32, 32),
    ]
    model = VLM(vision, chain, llm).eval()
    model.fusion = Splice(Splice.Config(), llm)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for shapes in ([(28, 28)], [(14, 42), (42, 14)], [(28, 42)]):
        media = [torch.randn(1, 3, h, w, generator=draw) for h, w in shapes]
        ids = [1, *[MEDIA_TOKEN, 5] * len(media)]
        rows.append(Example([*ids, 7, 8, 9], [IGNORE_INDEX] * len(ids) + [7, 8, 9], media, sizes=list(shapes)))
    with torch.no_grad():
        alone = sum(model(collate([row], 0)).loss_sum for row in rows)
        torch.testing.assert_close(model(collate(rows, 0)).loss_sum, alone, rtol=1e-5, atol=1e-5)
        fused = model.prepare(collate(rows, 0))
    count = pickle.loads(pickle.dumps(VisualTokens.of(model.visual_tokens, model.counters())))
    assert [count.of_media(row) for row in rows] == [[6], [4, 6], [8]]
    assert [count.fused_length(row) for row in rows] == (fused.segments > 0).sum(1).tolist()


def test_the_windows_of_a_pyramid_are_those_of_its_levels() -> None:
    """Of five rows the quarters are three high and share the middle one; the first token is the mean."""
    value = features(5, 5)
    maps = value.tokens.unflatten(2, (5, 5))
    left = made(PyramidPool)(value).tokens
    torch.testing.assert_close(left[:, :, 0], value.tokens.mean(2))
    torch.testing.assert_close(left[:, :, 2], maps[:, :, :3, 2:].mean((2, 3)))
    torch.testing.assert_close(left[:, :, 4], maps[:, :, 2:, 2:].mean((2, 3)))
    with pytest.raises(ConfigError, match=r"levels is empty"):
        PyramidPool.Config(levels=[])


def test_an_mlp_with_a_shortcut_is_linear_at_first() -> None:
    bridge, value = made(MLP, shortcut=True, norm="layer"), features()
    entered = F.layer_norm(value.tokens, (D,))
    torch.testing.assert_close(bridge(value).tokens, bridge.shortcut(entered))
    assert bridge.first_layer() is bridge.shortcut
    torch.testing.assert_close(bridge.entered(value), entered)
    assert made(MLP).first_layer() is None and isinstance(made(MLP, depth=1).first_layer(), torch.nn.Linear)
    bridge(value).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bridge.layers[-1].parameters())
