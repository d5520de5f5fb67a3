"""ViP-LLaVA (arXiv:2312.00784): five layers of a CLIP side by side, a norm, an MLP, any LLM."""

from typing import Any

from vlm import register_architecture, register_checkpoint_format
from vlm.checkpoint.formats.published import PublishedModel, llm_pairs
from vlm.checkpoint.keymap import KeyMap
from vlm.inference.architectures.base import Architecture
from vlm.inference.architectures.folder import ModelFolder
from vlm.models.published import sizes
from vlm.models.vlm import VLM


@register_checkpoint_format("vipllava")
class VipLlavaFolder(PublishedModel):
    """Vision encoder, MLP and LLM."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """Names of transformers' VipLlavaForConditionalGeneration and ours."""
        return KeyMap(
            (
                ("model.multi_modal_projector.projector_layernorm.{rest}", "bridge.0.norm.{rest}"),
                ("model.multi_modal_projector.linear_1.{rest}", "bridge.0.layers.0.{rest}"),
                ("model.multi_modal_projector.linear_2.{rest}", "bridge.0.layers.2.{rest}"),
                ("model.vision_tower.{rest}", "vision.model.{rest}"),
                *llm_pairs(model, "model.language_model", "lm_head"),
            )
        )


@register_architecture("vipllava")
class VipLlava(Architecture):
    """Registered under ``model_type`` of the folder's config.json."""

    format = "vipllava"

    def composition(self, folder: ModelFolder) -> dict[str, Any]:
        """See the base class."""
        config, tower = folder.config, folder.config.vision_config
        # transformers counts the embeddings as state 0; here layers count from the end, -1 is the last
        layers = [n if n < 0 else n - tower.num_hidden_layers - 1 for n in config.vision_feature_layer]
        return {
            "vision": {
                "name": "hf_vision",
                "config": sizes(tower),
                "layer": layers,
                "post_norm": False,
                "precision": folder.dtype,
            },
            "bridge": [{"name": "mlp", "norm": "layer", "norm_eps": config.projector_layernorm_eps}],
            "fusion": {"name": "splice"},
            "llm": folder.llm(),
            "template": folder.template(folder.image_token(config.image_token_id, "<image>")),
            "image": folder.image(),
            "text": folder.text(),
            "generation": folder.generation(),
        }
