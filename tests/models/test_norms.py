"""RMS norms in one call: the same bits, and only where nothing learns."""

from __future__ import annotations

import torch
from torch import nn

from vlm.models.llm.norms import OneCallNorm, shorten_norms
from vlm.testing import LLAMA


class Centred(nn.Module):
    """Looks like an RMS norm, and is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(hidden, (8,), self.weight, None, self.eps)


def test_the_same_bits_and_the_familys_own_way_with_gradients() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    norm = LlamaRMSNorm(8, eps=1e-5)
    norm.weight.data.normal_()
    own, tokens = norm.forward, torch.randn(3, 2, 8) * 5
    assert shorten_norms(nn.ModuleList([norm, Centred(), GemmaRMSNorm(8)])) == 1  # Gemma's adds 1 to its weight
    assert shorten_norms(norm) == 0
    with torch.no_grad():
        assert torch.equal(norm(tokens), own(tokens))
        assert norm(tokens.bfloat16()).dtype is own(tokens.bfloat16()).dtype
        norm.weight.data.add_(1)
        assert torch.equal(norm(tokens), own(tokens))
    assert torch.equal(norm(tokens), own(tokens)) and norm(tokens).requires_grad
    assert set(norm.state_dict()) == {"weight"}


def test_the_engine_uses_them(build) -> None:
    from vlm.models.llm.slots import SlotLayout, Slots

    llm = build().llm
    slots = Slots()
    slots.reserve(1, 4)
    with torch.inference_mode():
        llm.lengthen(
            torch.randn(2, llm.hidden_size),
            torch.arange(2),
            None,
            SlotLayout(slots, [0], [0], [2], torch.device("cpu")),
        )
    norms = [m for m in llm.modules() if isinstance(vars(m).get("forward"), OneCallNorm)]
    assert len(norms) == 2 * LLAMA["num_hidden_layers"] + 1
