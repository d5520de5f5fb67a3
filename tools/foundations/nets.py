"""The vision encoder and the Q-Former with the key names of the published files, free of the library's classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from foundations.common import SIZES

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_pixels(images: Tensor) -> Tensor:
    """``[n, h, w, 3]`` uint8 -> ``[n, 3, h, w]`` normalised with CLIP's mean and deviation."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class _Attention(nn.Module):
    """Fused qkv; the key has no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, int(width * ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """EVA ViT: class token first, learned positions, pre-norm blocks, no final norm."""

    def __init__(self) -> None:
        super().__init__()
        size = SIZES["vision"]
        width, grid = size["embed_dim"], size["image_size"] // size["patch_size"]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, width) * 0.02)
        self.patch_embed = _Patches(width, size["patch_size"])
        blocks = [_Block(width, size["num_heads"], size["mlp_ratio"]) for _ in range(size["depth"])]
        self.blocks = nn.ModuleList(blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.05)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[n, 3, h, w]`` -> ``[n, 1 + patches, width]``."""
        x = self.patch_embed(pixels)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class _Dense(nn.Module):
    """A linear layer, and where ``norm`` is set the post-norm residual of BERT."""

    def __init__(self, width: int, out: int, norm: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out)
        if norm:
            self.LayerNorm = nn.LayerNorm(out, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.dense(x) if residual is None else self.LayerNorm(self.dense(x) + residual)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(source), self.value(source))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _BertAttention(nn.Module):
    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width, source, heads)
        self.output = _Dense(width, width, norm=True)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return self.output(self.self(x, source), x)


class _Layer(nn.Module):
    def __init__(self, size: dict[str, int], source: int, cross: bool) -> None:
        super().__init__()
        width, heads = size["hidden_size"], size["num_attention_heads"]
        self.attention = _BertAttention(width, width, heads)
        if cross:
            self.crossattention = _BertAttention(width, source, heads)
        self.intermediate_query = _Dense(width, size["intermediate_size"], norm=False)
        self.output_query = _Dense(size["intermediate_size"], width, norm=True)
        self.cross = cross

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.attention(x, x)
        if self.cross:
            x = self.crossattention(x, image)
        return self.output_query(F.gelu(self.intermediate_query(x)), x)


class _Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)


class _Bert(nn.Module):
    def __init__(self, size: dict[str, int], source: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(size["hidden_size"])
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            _Layer(size, source, i % size["cross_attention_freq"] == 0) for i in range(size["num_hidden_layers"])
        )


class QFormer(nn.Module):
    """``ln_vision``, queries and BERT layers, every second one looking at the image; keys as in BLIP-2's files."""

    def __init__(self) -> None:
        super().__init__()
        size, source = SIZES["qformer"], SIZES["vision"]["embed_dim"]
        self.query_tokens = nn.Parameter(torch.randn(1, size["num_query_tokens"], size["hidden_size"]) * 0.5)
        self.ln_vision = nn.LayerNorm(source)
        self.Qformer = nn.Module()
        self.Qformer.bert = _Bert(size, source)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.05)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of the ViT ``[n, v, d]`` -> ``[n, queries, hidden]``."""
        image, bert = self.ln_vision(tokens), self.Qformer.bert
        x = bert.embeddings.LayerNorm(self.query_tokens.expand(len(image), -1, -1))
        for layer in bert.encoder.layer:
            x = layer(x, image)
        return x
