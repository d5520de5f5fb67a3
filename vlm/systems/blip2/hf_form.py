"""A composition as ``Blip2ForConditionalGeneration``: EVA, a Q-Former, a linear layer, any causal LM, spliced."""

from __future__ import annotations

from typing import Any

import torch

from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import Form, config_of, image_processor, not_plain_images, not_spliced
from vlm.inference.hub.usage import usage
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.vision.eva import EvaViT
from vlm.systems.blip2.checkpoint import BLOCK, LLM, OUR_BLOCK, key_map


@register_hf_form("blip2")
class Blip2Form(Form):
    """Blip2ForConditionalGeneration: EVA-ViT, a Q-Former, a linear layer, a causal LM."""

    architecture = "Blip2ForConditionalGeneration"

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        if reason := not_spliced(contents) or not_plain_images(contents):
            return reason
        model, cfg = contents.model, contents.model_cfg
        if not isinstance(model.vision, EvaViT) or not model.vision.config.ln_vision:
            return f"the vision encoder is {cfg.vision.name} without a norm after it, or another one than eva_vit"
        kinds = [type(bridge) for bridge in model.bridge]
        if kinds != [QFormer, Linear]:
            return f"the bridges are {', '.join(part.name for part in cfg.bridge) or 'none'}, not qformer and linear"
        if model.bridge[0].config.reads_text is not None:
            return "the Q-Former reads the question"
        return None

    def wrong_in(self, server: str, contents: Contents) -> str | None:
        """See :class:`Form`. Seen in vLLM 0.33."""
        wrong = {"vllm": "it puts the rows of an image at the start of the prompt, and allows one image"}
        return wrong.get(server)

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        eva, qformer = contents.model.vision.config, contents.model.bridge[0]
        if eva.ln_vision_eps != eva.norm_eps:
            text = f"the norm after the encoder has eps {eva.ln_vision_eps:g} in the composition, {eva.norm_eps:g} here"
            contents.notes.append(text)
        inner = qformer.qformer.config.to_dict()
        text = contents.text_config(contents.rows)
        return config_of(
            self,
            "blip-2",
            vision_config={
                "hidden_size": eva.embed_dim,
                "intermediate_size": len(contents.weights.facts["vision.vit.blocks.0.mlp.fc1.weight"]),
                "num_hidden_layers": eva.depth,
                "num_attention_heads": eva.num_heads,
                "image_size": eva.image_size,
                "patch_size": eva.patch_size,
                "layer_norm_eps": eva.norm_eps,
                "qkv_bias": eva.qkv_bias,
            },
            qformer_config={k: v for k, v in inner.items() if not k.startswith("_")},
            text_config=text.to_dict(),
            num_query_tokens=qformer.config.num_query_tokens,
            image_token_index=contents.tokenizer.image_id,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`. Query and value bias are one vector with a zero key bias between them."""
        facts, names, result = contents.weights.facts, key_map(contents.model, self.architecture), {}
        for name in facts:
            if not name.startswith("llm.") and not name.endswith(("attn.q_bias", "attn.v_bias")):
                result[str(names.theirs(name))] = contents.direct(name)
        width = contents.model.vision.out_dim
        for i in range(contents.model.vision.config.depth if contents.model.vision.config.qkv_bias else 0):
            attention = f"{OUR_BLOCK.format(i=i)}.attn."
            parts = {f"{attention}q_bias": None, "": torch.zeros(width), f"{attention}v_bias": None}
            result[f"{BLOCK.format(i=i)}.self_attn.qkv.bias"] = contents.joined(parts, (3 * width,))
        if "bridge.1.proj.bias" not in facts:
            result["language_projection.bias"] = contents.constant(torch.zeros(contents.model.llm.hidden_size))
        return result | contents.llm_tensors(lambda name: f"{LLM}{name}", contents.rows)

    def image_words(self, contents: Contents) -> str:
        """See :class:`Form`: one token for each query."""
        return contents.tokenizer.image * contents.image_tokens

    def usage(self, contents: Contents) -> str:
        """See :class:`Form`."""
        return usage(self.architecture, trust=False, template="tokenizer.apply_chat_template")

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`. Without a number of queries the processor leaves the images where the prompt has them."""
        image = {"processor_class": "Blip2Processor", **image_processor(contents)}
        return {"processor_config.json": {"processor_class": "Blip2Processor"}, "preprocessor_config.json": image}
