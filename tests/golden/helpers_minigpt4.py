"""A published MiniGPT-4 case folder as a composition, its weight files and its recorded tensors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vlm.checkpoint.load import load_model
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, Batch
from vlm.config.types import Config, ModelConfig
from vlm.models.bridges.concat import Concat
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.fusion.splice import Splice
from vlm.models.llm.hf import HFCausalLM
from vlm.models.lora import LoraOptions
from vlm.models.vision.eva import EvaViT
from vlm.models.vlm import VLM
from vlm.testing import RecordedCase, composition, part, weight

FORWARDS = ("stage1", "stage2", "instr", "conv", "textonly", "frames")


class ModelCase(RecordedCase):
    """One case folder; sizes come from its config.json only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records = self.case["records"]
        self.image_tokens = self.config["bridge"]["image_tokens"]

    @cached_property
    def forwards(self) -> list[str]:
        return [name for name in FORWARDS if self.has(f"{name}.inputs_embeds")]

    def file(self, name: str) -> str:
        """A weight file, of this folder or of the one above."""
        return str(next(p for p in (self.folder / name, self.folder.parent / name) if p.exists()))

    def parts(self) -> ModelConfig:
        """The composition that config.json describes."""
        vision, llm, qformer = self.config["vision"], self.config["llm"], self.config.get("qformer")
        lora = self.config.get("lora")
        eva = EvaViT.Config(
            image_size=vision["img_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["embed_dim"],
            depth=vision["depth"],
            num_heads=vision["num_heads"],
            mlp_ratio=vision["mlp_ratio"],
        )
        chain = [part("concat", Concat.Config())]
        if qformer:
            inner = QFormer.Config(
                num_query_tokens=qformer["num_query_token"],
                hidden_size=qformer["hidden_size"],
                num_hidden_layers=qformer["num_hidden_layers"],
                num_attention_heads=qformer["num_attention_heads"],
                intermediate_size=qformer["intermediate_size"],
                cross_attention_freq=qformer["cross_attention_freq"],
                layer_norm_eps=qformer["layer_norm_eps"],
            )
            chain = [part("qformer", inner)]
        options = LoraOptions(lora["r"], lora["alpha"], lora["dropout"], lora["targets"]) if lora else None
        weights = [
            weight("eva", self.file("eva_vit_g.pth")),
            weight("hf_llm", self.file("llm")),
            weight("trained", self.file("checkpoint.pth")),
        ]
        if qformer:
            weights.insert(1, weight("blip2_qformer", self.file("blip2_pretrained_flant5xxl.pth")))
        assert llm["hidden_size"] == self.config["bridge"]["llama_proj"][0]
        return composition(
            vision=part("eva_vit", eva),
            bridge=[*chain, part("linear", Linear.Config())],
            fusion=part("splice", Splice.Config()),
            llm=part("hf", HFCausalLM.Config(path=self.file("llm"), lora=options)),
            train={"bridge.1.*": True, **({"llm.lora": True} if lora else {})},
            weights=weights,
        )

    @cached_property
    def model(self) -> VLM:
        """The composition with all its files, in eval mode; tests must leave it as it is."""
        return load_model(Config(model=self.parts()), device="cpu")

    @cached_property
    def pictures(self) -> tuple[Tensor, Tensor]:
        """All recorded pictures ``[n, 3, h, w]`` and their encodings ``[n, q, d]``."""
        pixels = self.tensor("images")
        if self.has("prep.eval"):
            pixels = torch.cat([pixels, self.tensor("prep.eval")[None]])
        with torch.no_grad():
            return pixels, self.model.encode(pixels[:, None]).tokens[:, 0]

    def batch(self, embeds: Tensor, mask: Tensor, labels: Tensor | None = None) -> Batch:
        """The batch behind recorded embeddings: ids by looking rows up in the table, pictures by their encodings.

        Args:
            embeds: ``[b, L, d]`` recorded inputs of the LLM.
            mask: ``[b, L]`` 1 at real positions.
            labels: ``[b, L]`` recorded labels.
        """
        table = self.model.llm.embed(torch.arange(self.model.llm.vocab_size)).detach()
        rows: list[tuple[list[int], list[int]]] = []
        media: list[Tensor] = []
        for row in range(len(embeds)):
            real = mask[row].bool()
            ids, answers = self._row(
                embeds[row][real], table, media, None if labels is None else labels[row][real].tolist()
            )
            rows.append((ids, answers))
        size = max(len(ids) for ids, _ in rows)
        fill = lambda values, pad: torch.tensor([v + [pad] * (size - len(v)) for v in values])  # noqa: E731
        ids = fill([ids for ids, _ in rows], 0)
        where = (ids == MEDIA_TOKEN).nonzero()
        return Batch(
            ids=ids,
            labels=fill([answers for _, answers in rows], IGNORE_INDEX),
            segments=fill([[1] * len(ids) for ids, _ in rows], 0),
            pixels=torch.stack(media)[:, None] if media else None,
            media_row=where[:, 0],
            media_pos=where[:, 1],
        )

    def _row(
        self, embeds: Tensor, table: Tensor, media: list[Tensor], labels: list[int] | None
    ) -> tuple[list[int], list[int]]:
        distance, nearest = torch.cdist(embeds, table, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        labels = labels or [IGNORE_INDEX] * len(embeds)
        ids: list[int] = []
        kept: list[int] = []
        at = 0
        while at < len(embeds):
            if distance[at] < 1e-6:
                ids.append(int(nearest[at]))
                kept.append(labels[at])
                at += 1
                continue
            block = embeds[at : at + self.image_tokens]
            pixels, encoded = self.pictures
            media.append(pixels[(encoded - block).abs().amax((1, 2)).argmin()])
            ids.append(MEDIA_TOKEN)
            kept.append(IGNORE_INDEX)
            at += self.image_tokens
        return ids, kept

    def published(self, name: str) -> str:
        """Our parameter name of a published one."""
        from vlm.systems.minigpt4.checkpoint import key_map

        ours = key_map(self.model).ours(name)
        assert ours is not None, name
        return ours
