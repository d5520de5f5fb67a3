"""The perceiver against its formula, masks, frames, and frame positions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Features
from vlm.models.bridges.frame_positions import FramePositions
from vlm.models.bridges.perceiver import Perceiver

CLOSE = {"rtol": 0, "atol": 1e-5}
SMALL = {"depth": 2, "dim_head": 4, "heads": 2, "num_latents": 3, "ff_mult": 2}


def make(in_dim: int = 6, llm_dim: int = 10, **options) -> Perceiver:
    torch.manual_seed(0)
    return Perceiver(Perceiver.Config(**SMALL, **options), in_dim, llm_dim)


def plainly(bridge: Perceiver, media: torch.Tensor) -> torch.Tensor:
    """One medium ``[v, e]`` -> ``[q, d]``, head by head, with the row's maximum taken off before the softmax."""
    latents = bridge.latents
    for attention, forward in bridge.layers:
        own = attention.norm_latents(latents)
        keys = attention.norm_media(media)
        if attention.latents_in_keys:
            keys = torch.cat([keys, own])
        q, (k, v) = attention.to_q(own), attention.to_kv(keys).chunk(2, -1)
        heads = []
        for h in range(attention.heads):
            part = slice(h * 4, h * 4 + 4)
            scores = q[:, part] @ k[:, part].T / math.sqrt(4)
            chances = (scores - scores.amax(-1, keepdim=True).detach()).exp()
            heads.append(chances / chances.sum(-1, keepdim=True) @ v[:, part])
        latents = latents + attention.to_out(torch.cat(heads, -1))
        norm, up, _, down = forward
        latents = latents + down(F.gelu(up(norm(latents))))
    return bridge.norm(latents)


@pytest.mark.parametrize("options", [{}, {"latents_in_keys": False}, {"latents_in_keys": False, "width": "llm"}])
def test_formula_with_frames_read_together(options) -> None:
    bridge = make(**options)
    media = torch.randn(2, 3, 5, 6)
    out = bridge(Features(media)).tokens
    assert out.shape == (2, 1, 3, bridge.out_dim)
    assert bridge.out_dim == (10 if options.get("width") == "llm" else 6)
    wanted = torch.stack([plainly(bridge, medium.flatten(0, 1)) for medium in media])
    torch.testing.assert_close(out[:, 0], wanted, **CLOSE)


@pytest.mark.parametrize("latents_in_keys", [True, False])
def test_masked_tokens_do_not_exist(latents_in_keys: bool) -> None:
    bridge = make(latents_in_keys=latents_in_keys)
    media, real = torch.randn(1, 2, 4, 6), torch.tensor([[[1, 1, 0, 1], [1, 0, 0, 0]]]).bool()
    masked = bridge(Features(media, real)).tokens
    short = bridge(Features(media[real][None, None])).tokens
    torch.testing.assert_close(masked, short, **CLOSE)


def test_frames_apart() -> None:
    bridge = make(per_frame=True)
    assert not bridge.joins_frames
    assert make().joins_frames
    media = torch.randn(2, 3, 5, 6)
    out = bridge(Features(media)).tokens
    assert out.shape == (2, 3, 3, 6)
    single = make()(Features(media[1:, 2:])).tokens
    torch.testing.assert_close(out[1, 2], single[0, 0], **CLOSE)
    assert bridge.num_tokens(5) == 3


def test_latents_of_another_width_cannot_be_keys() -> None:
    with pytest.raises(ConfigError, match="latents of width 10 cannot be keys beside media of width 6"):
        make(width="llm")


def test_images_have_no_frame_position_unless_asked() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 1, 5, 6)
    plain = FramePositions(FramePositions.Config(num_frames=3), 6, 10)
    out = plain(Features(tokens)).tokens
    assert torch.equal(out, tokens)
    out.sum().backward()
    assert torch.equal(plain.positions.grad, torch.zeros(3, 6))  # every process has a gradient
    first = FramePositions(FramePositions.Config(num_frames=3, images=True, other_counts="first"), 6, 10)
    torch.testing.assert_close(first(Features(tokens)).tokens, tokens + first.positions[0])


def test_frame_embeddings() -> None:
    """As the published module: added to every frame's tokens before anything else, to an image's as well."""
    bridge = make(max_num_frames=3)
    assert dict(bridge.named_parameters())["frame_embs"].shape == (3, 6)
    for frames in (1, 2, 3):
        media = torch.randn(2, frames, 5, 6)
        wanted = [plainly(bridge, (m + bridge.frame_embs[:frames, None]).flatten(0, 1)) for m in media]
        torch.testing.assert_close(bridge(Features(media)).tokens[:, 0], torch.stack(wanted), **CLOSE)
    with pytest.raises(DataError, match="a video of 4 frames, but the perceiver has positions for 3"):
        bridge(Features(torch.randn(1, 4, 5, 6)))
    assert "frame_embs" not in make().state_dict()
