"""Forms of a folder: classes of transformers that some compositions are, recognised by their parts.

Each is a class registered with ``@register_hf_form``, in the folder of the system that it belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from vlm.common.errors import WeightsError
from vlm.common.registry import names, resolve
from vlm.inference.hub.contents import Contents, Planned
from vlm.inference.hub.usage import usage
from vlm.models.bridges.linear import Linear
from vlm.models.bridges.mlp import MLP
from vlm.models.fusion.splice import Splice
from vlm.models.llm.packing import base_of
from vlm.processors.image.recipe import ImageRecipe

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""PIL's numbers of interpolations."""


class Form(ABC):
    """One class of transformers.

    Attributes:
        architecture: name of the class.
    """

    architecture: ClassVar[str]

    @abstractmethod
    def misfit(self, contents: Contents) -> str | None:
        """Why the composition is not of this form; None if it is."""

    def wrong_in(self, server: str, contents: Contents) -> str | None:
        """What a server (``vllm``) is known to compute otherwise with this class; None: nothing."""
        return None

    @abstractmethod
    def config(self, contents: Contents) -> Any:
        """The configuration of transformers, or a mapping, that becomes config.json."""

    @abstractmethod
    def tensors(self, contents: Contents) -> dict[str, Planned]:
        """The tensors of the folder by the names of the class."""

    def layers(self, contents: Contents) -> dict[str, str]:
        """Our name -> the class's name of every linear layer that LoRA can change."""
        mine = {plan.source: name for name, plan in self.tensors(contents).items() if plan.source.endswith(".weight")}
        return {ours.removesuffix(".weight"): name.removesuffix(".weight") for ours, name in mine.items()}

    def image_words(self, contents: Contents) -> str:
        """What the chat template writes for an image; the class's processor makes more of it, or leaves it."""
        return contents.tokenizer.image

    def usage(self, contents: Contents) -> str:
        """Python in the model card that answers a question."""
        return usage(self.architecture, trust=False)

    def files(self, contents: Contents) -> dict[str, dict[str, Any]]:
        """Further JSON files by name: of the processor and the image processor."""
        return {}

    def extra(self, contents: Contents, folder: Path) -> list[str]:
        """Write what else the folder needs; a summary. Raises UserError: it cannot be written."""
        return []


def find_form(contents: Contents, asked: str = "", server: str = "") -> Form:
    """The form that fits the composition and is right in ``server``; ``asked`` names one.

    Raises WeightsError: ``asked`` does not fit, or is wrong in ``server``.
    """
    if asked:
        form: Form = resolve("hf_form", asked)()
        reason = form.misfit(contents)
        if reason is not None:
            raise WeightsError(f"the composition is not {form.architecture}: {reason}", fix="leave --form out")
        if wrong := form.wrong_in(server, contents):
            fix = "leave --form out: the folder then holds a plug-in with a class of ours"
            raise WeightsError(f"{server} computes {form.architecture} otherwise: {wrong}", fix=fix)
        return form
    misfits = {}
    for name in names("hf_form"):
        form = resolve("hf_form", name)()
        if form.architecture == FALLBACK:
            continue
        reason = form.misfit(contents)
        wrong = None if reason else form.wrong_in(server, contents)
        if not (reason or wrong):
            return form
        misfits[form.architecture] = reason or f"{server} computes it otherwise: {wrong}"
    contents.notes += [f"not {name}: {reason}" for name, reason in misfits.items()]
    fallback: Form = resolve("hf_form", "composed")()
    return fallback


FALLBACK = "ComposedForConditionalGeneration"
"""Class of the form that takes every composition."""


def config_of(form: Form, model_type: str, **options: Any) -> Any:
    """The configuration of transformers that names the class of a form."""
    from transformers import AutoConfig

    config: Any = AutoConfig.for_model(model_type, **options)
    config.architectures = [form.architecture]
    return config


def base_class(config: Any) -> Any:
    """The class that transformers builds for an LLM without its head."""
    from transformers import AutoModel

    return AutoModel._model_mapping[type(config)]


def not_spliced(contents: Contents) -> str | None:
    """Why text and images are not one causal sequence whose images are rows of one width, if they are not."""
    model, cfg = contents.model, contents.model_cfg
    if model.vision is None:
        return "it has no vision encoder"
    if len(model.inserts):
        return f"inserts ({cfg.inserts[0].name}) work between the LLM's layers"
    if type(model.fusion) is not Splice or model.fusion.config != Splice.Config():
        return f"the fusion is {cfg.fusion.name} with options of its own, not a plain splice"
    return None


def not_plain_images(contents: Contents) -> str | None:
    """Why the image recipe has no image processor of transformers, if it has none."""
    recipe = contents.processor.image
    if not isinstance(recipe, ImageRecipe) or recipe.splits or not recipe.fixed_size:
        return f"the image recipe {contents.model_cfg.image.name} has no image processor in transformers"
    if recipe.config.resize == "pad" and recipe.config.pad_color is not None:
        return "the border of padded images has a colour of its own, not the mean"
    return None


def image_processor(contents: Contents) -> dict[str, Any]:
    """preprocessor_config.json for the image recipe: the class that resizes, crops and pads alike."""
    options = contents.processor.image.config
    size = options.size
    square = {"height": size, "width": size}
    shared = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(options.mean),
        "image_std": list(options.std),
        "do_resize": True,
        "resample": RESAMPLE[options.interpolation],
    }
    if options.resize == "stretch":
        return {"image_processor_type": "BlipImageProcessor", "size": square, **shared}
    crop = {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": size}}
    if options.resize == "shorter":
        return {"image_processor_type": "CLIPImageProcessor", **crop, **shared}
    return {"image_processor_type": "LlavaImageProcessor", "do_pad": True, **crop, **shared}


def two_layers(contents: Contents) -> tuple[list[str], str | None]:
    """Names of the linear layers of a single bridge that is a linear layer or an MLP, or why it is not."""
    bridges, width = contents.model.bridge, contents.model.llm.hidden_size
    if len(bridges) != 1:
        return [], f"it has {len(bridges)} bridges, not one"
    bridge = bridges[0]
    if isinstance(bridge, Linear):
        return ["bridge.0.proj"], None
    if not isinstance(bridge, MLP) or bridge.config.depth > 2:
        return [], f"the bridge is {contents.model_cfg.bridge[0].name}, not one or two linear layers"
    if bridge.config.norm is not None:
        return [], "the bridge norms the tokens first"
    layers = [f"bridge.0.layers.{2 * i}" for i in range(bridge.config.depth)]
    if len(layers) == 2 and len(contents.weights.facts[f"{layers[0]}.weight"]) != width:
        return [], "the width between the two layers of the bridge is not the LLM's"
    return layers, None


def ties_embeddings(contents: Contents) -> bool:
    """Whether the class finds the LLM's embeddings to tie its head to: it knows one name for them."""
    return "embed_tokens" in dict(base_of(contents.model.llm.model).named_children())


def other_head(contents: Contents) -> str | None:
    """Why the class would compute the LLM otherwise: it has a plain head of its own over the LLM's base model."""
    llm = contents.model.llm
    head, base = llm.model.get_output_embeddings(), base_of(llm.model)
    if not llm.plain_head or head.bias is not None:
        return "the LLM scales, caps or shifts its logits, which the class does not"
    if base_class(llm.model.config) is not type(base):
        return f"the class would build the LLM as another one than {type(base).__name__}"
    return None
