"""A composition as ``Blip2ForConditionalGeneration``: EVA, a Q-Former, a linear layer, any causal LM, spliced."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from vlm.checkpoint.safe import read_json, write_json
from vlm.common.registry import register_hf_form
from vlm.common.types import Image, Message
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import Form, config_of, image_processor, not_plain_images, not_spliced
from vlm.inference.hub.usage import QUESTION, usage
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.qformer import QFormer
from vlm.models.vision.eva import EvaViT
from vlm.processors.templates.base import Segment
from vlm.systems.blip2.checkpoint import BLOCK, LLM, OUR_BLOCK, key_map


@register_hf_form("blip2")
class Blip2Form(Form):
    """Blip2ForConditionalGeneration: EVA-ViT, a Q-Former, a linear layer, a causal LM."""

    architecture = "Blip2ForConditionalGeneration"
    processor: ClassVar[str] = "Blip2Processor"
    reads_text: ClassVar[bool] = False
    """Whether the Q-Former of the class reads the question."""

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
        if (model.bridge[0].config.reads_text is not None) is not self.reads_text:
            return f"the Q-Former {'does not read' if self.reads_text else 'reads'} the question"
        return None

    def wrong_in(self, server: str, contents: Contents) -> str | None:
        """See :class:`Form`. Seen in vLLM 0.33."""
        wrong = {"vllm": "it puts the rows of an image at the start of the prompt, and allows one image"}
        return wrong.get(server)

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        return self.whole("blip-2", contents, {})

    def whole(self, model_type: str, contents: Contents, qformer: dict[str, Any]) -> Any:
        """The configuration of a ``model_type``; ``qformer`` are further options of that part."""
        eva, options = contents.model.vision.config, contents.model.bridge[0].config
        if eva.ln_vision_eps != eva.norm_eps:
            text = f"the norm after the encoder has eps {eva.ln_vision_eps:g} in the composition, {eva.norm_eps:g} here"
            contents.notes.append(text)
        text = contents.text_config(contents.rows)
        result = config_of(
            self,
            model_type,
            vision_config={
                "hidden_size": eva.embed_dim,
                "intermediate_size": len(contents.weights.facts["vision.vit.blocks.0.mlp.fc1.weight"]),
                "num_hidden_layers": eva.depth,
                "num_attention_heads": eva.num_heads,
                "image_size": eva.image_size,
                "patch_size": eva.patch_size,
                "layer_norm_eps": eva.norm_eps,
                "qkv_bias": eva.qkv_bias,
                "attention_dropout": eva.attention_dropout,
            },
            qformer_config={
                "hidden_size": options.hidden_size,
                "num_hidden_layers": options.num_hidden_layers,
                "num_attention_heads": options.num_attention_heads,
                "intermediate_size": options.intermediate_size,
                "cross_attention_frequency": options.cross_attention_freq,
                "layer_norm_eps": options.layer_norm_eps,
                "hidden_act": options.activation,
                "hidden_dropout_prob": options.dropout,
                "attention_probs_dropout_prob": options.dropout,
                **qformer,
            },
            text_config=text.to_dict(),
            num_query_tokens=options.num_query_tokens,
            image_token_index=contents.tokenizer.image_id,
        )
        result.tie_word_embeddings = text.tie_word_embeddings
        return result

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
        prompt = None
        if image_first(contents):
            segments = asked(contents, QUESTION)
            prompt = "".join(segment.text for segment in segments if segment.medium is None)
        return usage(self.architecture, trust=False, template="tokenizer.apply_chat_template", prompt=prompt)

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`.

        With a number of queries the processor puts the tokens of the image before the begin id and the text; without,
        it leaves the images where the prompt has them.
        """
        named = {"processor_class": self.processor}
        queries = {"num_query_tokens": contents.image_tokens} if image_first(contents) else {}
        image = {**named, **image_processor(contents)}
        return {"processor_config.json": {**named, **queries}, "preprocessor_config.json": image}

    def extra(self, contents: Contents, folder: Path) -> list[str]:
        """See :class:`Form`: the tokenizer of prompts that begin with the image."""
        if image_first(contents):
            prepare_tokenizer(contents, folder)
        return []


def image_first(contents: Contents) -> bool:
    """Whether a prompt is the image, the begin id and the text, in that order."""
    first = asked(contents, QUESTION)[0]
    return first.medium is not None and not first.bos


def asked(contents: Contents, question: str) -> list[Segment]:
    """The segments of a prompt with one image and a question."""
    return contents.processor.template.chat_segments([Message("user", [Image(""), question])])


def prepare_tokenizer(contents: Contents, folder: Path) -> None:
    """Make the written tokenizer one whose texts begin with the begin id; the processor adds the image token itself."""
    own, files = contents.processor.tokenizer, (folder / "tokenizer.json", folder / "tokenizer_config.json")
    tree, config = map(read_json, files)
    tree["post_processor"] = None if own.bos is None else begins_with(own.piece(own.bos), own.bos)
    for key in ("image_token", "extra_special_tokens"):
        config.pop(key, None)
    for file, content in zip(files, (tree, config), strict=True):
        write_json(file, content)


def begins_with(token: str, index: int) -> dict[str, Any]:
    """The post-processor of ``tokenizer.json`` that puts a token before every text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    special = {token: {"id": token, "ids": [index], "tokens": [token]}}
    single = [begin, texts[0]]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, texts[1]], "special_tokens": special}
