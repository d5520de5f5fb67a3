"""The Q-Former that reads the question: padding changes nothing, every frame is asked, other queries are unchanged."""

from __future__ import annotations

import pytest
import torch

from vlm.common.errors import ConfigError
from vlm.common.types import Features, MediaFacts
from vlm.models.bridges.qformer import QFormer
from vlm.models.bridges.question import QuestionOptions

TEXTS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, -1, -1]])


@pytest.fixture
def bridge() -> QFormer:
    torch.manual_seed(0)
    return QFormer(
        QFormer.Config(3, 16, 2, 2, 24, reads_text=QuestionOptions(vocab_size=12, max_positions=8)), 8, 8
    ).eval()


def asked(texts: torch.Tensor | None, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
    return Features(tokens, mask, about=MediaFacts(texts=texts))


def test_a_question_is_read_and_its_padding_is_not(bridge: QFormer) -> None:
    tokens = torch.randn(2, 1, 6, 8)
    both = bridge(asked(TEXTS, tokens)).tokens
    assert both.shape == (2, 1, 3, 16)
    alone = bridge(asked(TEXTS[1:, :3], tokens[1:])).tokens
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-6)
    other = bridge(asked(TEXTS[:1].flip(1), tokens[:1])).tokens
    assert (both[:1] - other).abs().max() > 1e-4


def test_every_frame_is_asked_the_same_question(bridge: QFormer) -> None:
    tokens = torch.randn(2, 3, 6, 8)
    whole = bridge(asked(TEXTS, tokens)).tokens
    frame = bridge(asked(TEXTS[1:], tokens[1:, 2:])).tokens
    torch.testing.assert_close(whole[1, 2], frame[0, 0], rtol=1e-5, atol=1e-6)


def test_tokens_of_the_image_that_are_padding_are_not_seen(bridge: QFormer) -> None:
    tokens = torch.randn(2, 1, 6, 8)
    mask = torch.tensor([True] * 4 + [False] * 2).expand(2, 1, 6)
    wanted = bridge(asked(TEXTS, tokens[:, :, :4])).tokens
    torch.testing.assert_close(bridge(asked(TEXTS, tokens, mask)).tokens, wanted, rtol=1e-5, atol=1e-6)


def test_the_text_branch_gets_gradients(bridge: QFormer) -> None:
    bridge(asked(TEXTS, torch.randn(2, 1, 6, 8))).tokens.square().sum().backward()
    for name in ("text.word_embeddings.weight", "qformer.encoder.layer.0.intermediate.dense.weight"):
        assert bridge.get_parameter(name).grad.abs().sum() > 0


def test_a_batch_without_questions_and_a_limit_beyond_the_table(bridge: QFormer) -> None:
    with pytest.raises(ConfigError, match="reads the question about an image, but the batch holds none"):
        bridge(Features(torch.randn(1, 1, 6, 8)))
    with pytest.raises(ConfigError, match="max_length is 9, at most max_positions, 8"):
        QuestionOptions(max_positions=8, max_length=9)
