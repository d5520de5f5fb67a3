"""A composition as ``PaliGemmaForConditionalGeneration``: SigLIP, a linear layer, an LLM that sees prompts whole."""

from __future__ import annotations

from typing import Any

from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import Form, config_of, image_processor, not_plain_images, other_head, ties_embeddings
from vlm.inference.hub.usage import QUESTION, usage
from vlm.models.bridges.linear import Linear
from vlm.models.fusion.splice import Splice
from vlm.models.vision.hf import HFVision
from vlm.systems.blip2.hf_form import asked, image_first
from vlm.systems.paligemma.checkpoint import PaliGemmaFolder


@register_hf_form("paligemma")
class PaliGemmaForm(Form):
    """PaliGemmaForConditionalGeneration: SigLIP, a linear layer, a causal LM whose prompt is a prefix."""

    architecture = "PaliGemmaForConditionalGeneration"
    frames_prompts = True

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        model, cfg = contents.model, contents.model_cfg
        vision = model.vision
        if type(model.fusion) is not Splice or model.fusion.config != Splice.Config(attention="prefix"):
            return "the fusion is not a splice with attention: prefix"
        if len(model.inserts) or not isinstance(vision, HFVision):
            return "it has inserts, or another vision encoder than hf_vision"
        if vision.model.config.model_type != "siglip_vision_model" or vision.norm is None or len(vision.chosen) > 1:
            return f"the vision encoder {cfg.vision.name} is not a SigLIP whose last tokens are normed"
        if vision.image_size != vision.tower.size or [type(bridge) for bridge in model.bridge] != [Linear]:
            return "images are of another size than the encoder's, or the bridge is not a linear layer"
        return not_plain_images(contents) or other_head(contents) or other_prompt(contents)

    def wrong_in(self, server: str, contents: Contents) -> str | None:
        """See :class:`Form`. Seen in vLLM 0.33."""
        wrong = "only the positions of an image see one another there, not those of the question"
        return wrong if server == "vllm" else None

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        tower = {k: v for k, v in contents.model.vision.model.config.to_dict().items() if not k.startswith("_")}
        text = contents.text_config(contents.rows)
        text.tie_word_embeddings = text.tie_word_embeddings and ties_embeddings(contents)
        return config_of(
            self,
            "paligemma",
            vision_config={**tower, "vision_use_head": False},
            text_config=text.to_dict(),
            image_token_index=contents.tokenizer.image_id,
            projection_dim=contents.model.llm.hidden_size,
            hidden_size=contents.model.llm.hidden_size,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`."""
        names = PaliGemmaFolder().key_map(contents.model, self.architecture)
        own = [name for name in contents.weights.facts if not name.startswith("llm.")]
        result = {str(names.theirs(name)): contents.direct(name) for name in own}
        untied = not ties_embeddings(contents)
        return result | contents.llm_tensors(
            lambda name: str(names.theirs(f"llm.model.{name}")), contents.rows, untied=untied
        )

    def usage(self, contents: Contents) -> str:
        """See :class:`Form`."""
        return usage(self.architecture, trust=False, prompt=contents.tokenizer.image + QUESTION)

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`. The processor writes the image, the begin id, the text and a new line."""
        named = {"processor_class": "PaliGemmaProcessor"}
        image = {**named, **image_processor(contents), "image_seq_length": contents.image_tokens}
        return {"processor_config.json": named, "preprocessor_config.json": image}


def other_prompt(contents: Contents) -> str | None:
    """Why the class's processor writes another prompt."""
    segments = asked(contents, QUESTION)
    text = "".join(segment.text for segment in segments if segment.medium is None)
    own = contents.processor.tokenizer
    text = text.removeprefix("" if own.bos is None else own.piece(own.bos))
    if not image_first(contents) or text != f"{QUESTION}\n":
        return "its prompts are not an image, the begin id, a text and a new line"
    return None
