"""A composition as ``Idefics3ForConditionalGeneration``: SigLIP over tiles, pixel shuffle, a projection, any LLM."""

from __future__ import annotations

from typing import Any

from vlm.common.registry import register_hf_form
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.forms import RESAMPLE, Form, config_of, not_spliced, other_head, ties_embeddings
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.pixel_shuffle import PixelShuffle
from vlm.models.vision.hf import HFVision
from vlm.processors.image.split import SplitRecipe
from vlm.systems.smolvlm.checkpoint import Idefics3Folder

TOWERS = ("idefics3_vision", "smolvlm_vision", "siglip_vision_model")
"""Towers that are one another's equals on a square image of their own size."""
TEXTS = ("tile_text", "row_end", "whole_after_tiles", "whole_text", "end")
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
MORE = ("hidden_act", "layer_norm_eps", "attention_dropout")


@register_hf_form("idefics3")
class Idefics3Form(Form):
    """Idefics3ForConditionalGeneration: a SigLIP tower over tiles, pixel shuffle, a linear layer, a causal LM."""

    architecture = "Idefics3ForConditionalGeneration"

    def misfit(self, contents: Contents) -> str | None:
        """See :class:`Form`."""
        if reason := not_spliced(contents) or other_recipe(contents) or other_head(contents):
            return reason
        model, cfg = contents.model, contents.model_cfg
        vision = model.vision
        if not isinstance(vision, HFVision) or vision.model.config.model_type not in TOWERS:
            return f"the vision encoder is {cfg.vision.name}, not the tower of a SigLIP"
        if vision.norm is None or len(vision.chosen) > 1 or vision.image_size != vision.tower.size:
            return "the encoder's tokens are not normed, of several layers, or of images of another size than its own"
        if [type(bridge) for bridge in model.bridge] != [PixelShuffle, Linear] or model.bridge[1].config.bias:
            return "the bridges are not pixel_shuffle and a linear layer without bias"
        return None

    def config(self, contents: Contents) -> Any:
        """See :class:`Form`."""
        tower = contents.model.vision.model.config.to_dict()
        text = contents.text_config(contents.rows)
        text.tie_word_embeddings = text.tie_word_embeddings and ties_embeddings(contents)
        return config_of(
            self,
            "idefics3",
            vision_config={name: tower[name] for name in (*SIZES, *MORE)},
            text_config=text.to_dict(),
            scale_factor=contents.model.bridge[0].config.factor,
            image_token_id=contents.tokenizer.image_id,
            pad_token_id=text.pad_token_id,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """See :class:`Form`."""
        names = Idefics3Folder().key_map(contents.model, self.architecture)
        facts = [name for name in contents.weights.facts if not name.startswith("llm.")]
        result = {str(names.theirs(name)): contents.direct(name) for name in facts}
        untied = not ties_embeddings(contents)
        return result | contents.llm_tensors(
            lambda name: str(names.theirs(f"llm.model.{name}")), contents.rows, untied=untied
        )

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """See :class:`Form`. The processor writes the texts around the tiles itself."""
        options: Any = contents.processor.image.config
        named = {"processor_class": "Idefics3Processor"}
        image = {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": options.divide,
            "size": {"longest_edge": options.longest},
            "max_image_size": {"longest_edge": options.size},
            "image_mean": list(options.mean),
            "image_std": list(options.std),
            "resample": RESAMPLE[options.interpolation],
        }
        processor = {**named, "image_seq_len": contents.image_tokens}
        return {"processor_config.json": processor, "preprocessor_config.json": {**named, **image}}


def other_recipe(contents: Contents) -> str | None:
    """Why the images are not the tiles of the class's processor, or have other texts between them."""
    recipe, tokenizer = contents.processor.image, contents.processor.tokenizer
    if not isinstance(recipe, SplitRecipe):
        return f"the image recipe is {contents.model_cfg.image.name}, not split"
    plain = SplitRecipe.Config()
    if any(getattr(recipe.config, name) != getattr(plain, name) for name in TEXTS):
        return "the texts around the tiles are not those of the class's processor"
    if contents.tokenizer.image != "<image>" or not tokenizer.is_special(plain.end):
        return f"the tokenizer has no special token {plain.end}, or an image is not <image>"
    return None
