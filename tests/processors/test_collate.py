from __future__ import annotations

import pytest
import torch

from vlm.common.errors import DataError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Example
from vlm.processors.collate import VisualTokens, collate, collate_rows


def example(name: str, length: int, media: int = 0, frames: int = 1) -> Example:
    ids = [1] + [MEDIA_TOKEN] * media + list(range(10, 10 + length - 1 - media))
    labels = [IGNORE_INDEX] * (1 + media) + ids[1 + media :]
    return Example(ids, labels, [torch.full((frames, 3, 2, 2), float(i)) for i in range(media)], id=name)


def test_right_padding() -> None:
    batch = collate([example("a", 4, 1), example("b", 6), example("c", 5, 2)], pad_id=9)
    assert batch.ids[0].tolist() == [1, MEDIA_TOKEN, 10, 11, 9, 9]
    assert batch.labels[0].tolist() == [-100, -100, 10, 11, -100, -100]
    assert batch.segments.tolist()[0] == [1, 1, 1, 1, 0, 0]
    assert batch.media_row.tolist() == [0, 2, 2]
    assert batch.media_pos.tolist() == [1, 1, 2]
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 1, 3, 2, 2)
    assert batch.pixels[:, 0, 0, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert batch.sample_ids == ["a", "b", "c"]
    assert (batch.num_samples, batch.num_targets) == (3, 2 + 5 + 2)


def test_text_only_batches_have_no_pixels() -> None:
    batch = collate([example("a", 3)], pad_id=0)
    assert batch.pixels is None
    assert batch.media_row.shape == (0,)


def test_packed_rows_hold_the_same_tokens_as_unpacked() -> None:
    items = [example(str(k), 3 + k % 4, k % 3) for k in range(9)]
    packed = collate_rows([items[:4], items[4:5], items[5:]], pad_id=0)
    flat = {}
    names = iter(packed.sample_ids)
    for row in range(len(packed.ids)):
        for number in range(1, int(packed.segments[row].max()) + 1):
            here = packed.segments[row] == number
            flat[next(names)] = (packed.ids[row][here].tolist(), packed.labels[row][here].tolist())
    assert flat == {e.id: (e.ids, e.labels) for e in items}


def test_positions_in_the_llm() -> None:
    clip = example("a", 6, media=2, frames=4)
    assert VisualTokens().fused_length(clip) == 6 + 2 * 3
    assert VisualTokens.of(lambda frames: 10 * frames).fused_length(clip) == 4 + 2 * 40
    assert VisualTokens.of(lambda frames: 64).fused_length(clip) == 4 + 2 * 64
    assert VisualTokens.of(lambda frames: 1).fused_length(clip) == 6


def test_media_must_have_one_size() -> None:
    odd = example("b", 4, 1)
    odd.media = [torch.zeros(1, 3, 2, 5)]
    with pytest.raises(DataError, match=r"different sizes in one batch: \[\(3, 2, 2\), \(3, 2, 5\)\]"):
        collate([example("a", 4, 1), odd], pad_id=0)


def test_images_and_clips_in_one_batch() -> None:
    batch = collate([example("a", 5, 2), example("b", 4, 1, frames=3)], pad_id=0)
    assert batch.frames is not None
    assert batch.frames.tolist() == [1, 1, 3]
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 3, 3, 2, 2)
    assert batch.pixels[1].flatten(1).sum(1).tolist() == [12.0, 0.0, 0.0]
    assert batch.to("cpu").frames is not None
    assert collate([example("a", 4, 1, frames=3)], pad_id=0).frames is None


def test_marks_and_media_must_agree() -> None:
    broken = example("a", 4, 1)
    broken.media = []
    with pytest.raises(DataError, match="1 placeholders but 0 media"):
        collate([broken], pad_id=0)
