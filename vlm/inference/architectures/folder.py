"""What the files of a published folder say, each as part of a composition."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vlm.checkpoint.formats.published import OLD_BUFFERS
from vlm.checkpoint.header import header
from vlm.checkpoint.safe import read_json, shards
from vlm.common.errors import ConfigError, WeightsError
from vlm.models.published import DTYPES, read_model_config, sizes
from vlm.processors.tokenizer.chat_template import read_chat_template
from vlm.processors.tokenizer.tokenizer import Tokenizer

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers of PIL's filters, as an image processor stores them."""
GENERATION = ("max_new_tokens", "num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty")
SAMPLING = ("temperature", "top_p", "top_k")
ANSWER_TOKENS = 512
"""Longest answer where the folder states none; transformers' own limit, 20 tokens, cuts most answers."""


class ModelFolder:
    """A published folder: its configuration files, read once.

    Attributes:
        path: absolute.
        config: transformers' configuration.
    """

    def __init__(self, path: Path) -> None:
        """Raises WeightsError: no usable config.json, or a model that only code in the folder describes."""
        self.path = path.expanduser().resolve()
        self.stated = read_json(self.path / "config.json")
        for section in (self.stated, *(value for value in self.stated.values() if isinstance(value, dict))):
            if not isinstance(kind := section.get("model_type", ""), str):
                text = f"{self.path / 'config.json'}: model_type is {kind!r:.80}, expected a name"
                raise WeightsError(text, fix="download it again")
        self.config = read_model_config(self.path)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        return read_json(file) if file.is_file() else {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer. Raises WeightsError: it has none."""
        return Tokenizer.from_folder(self.path, fast=True)

    @cached_property
    def preprocessor(self) -> dict[str, Any]:
        """The image processor's options, with the defaults of its class.

        Raises WeightsError: no file states any, or transformers cannot make it.
        """
        stated = self._json("processor_config.json").get("image_processor") or self._json("preprocessor_config.json")
        if not stated:
            text = (
                f"{self.path}: neither preprocessor_config.json nor processor_config.json says how images are prepared"
            )
            raise WeightsError(text, fix="download it too")
        from transformers import AutoImageProcessor

        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            return AutoImageProcessor.from_pretrained(self.path, backend="pil", **options).to_dict()
        except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
            text = f"{self.path}: transformers cannot make its image processor ({error})"
            raise WeightsError(text, fix="download preprocessor_config.json again") from error

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``; empty if there is none."""
        return self._json("generation_config.json")

    @cached_property
    def dtype(self) -> str:
        """The type of the weights: ``fp16``, ``bf16`` or ``fp32``.

        Raises WeightsError: matrices of several types, or of quantised numbers.
        """
        return self.dtype_below("")

    def dtype_below(self, prefix: str) -> str:
        """As :attr:`dtype`, of the tensors whose names begin with ``prefix``."""
        found: dict[torch.dtype, str] = {}
        for file in shards(self.path):
            for name, fact in header(file).items():
                if fact.dim() > 1 and name.startswith(prefix) and not OLD_BUFFERS.is_ignored(name):
                    found.setdefault(fact.dtype, name)
        listed = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in found.items())
        if len(found) > 1 and set(found) <= set(DTYPES):
            fix = "save the model again in one type: AutoModelForImageTextToText.from_pretrained(DIR, dtype=...)"
            raise WeightsError(f"{self.path}: weights of several types ({listed})", fix=f"{fix}.save_pretrained(NEW)")
        if not found:
            text = f"{self.path}: its weight files hold no matrices{f' named {prefix}...' if prefix else ''}"
            raise WeightsError(text, fix="download them again")
        if len(found) != 1 or not set(found) <= set(DTYPES):
            fix = "use the folder of the model from before quantisation"
            raise WeightsError(f"{self.path}: weights that are not float16, bfloat16 or float32 ({listed})", fix=fix)
        return DTYPES[next(iter(found))]

    @property
    def positions(self) -> int | None:
        """Positions that the LLM was made for."""
        stated: int | None = self.config.get_text_config().to_dict().get("max_position_embeddings")
        return stated

    def llm(self, section: Any | None = None, dtype: str | None = None) -> dict[str, Any]:
        """``llm:``; ``section`` is that of the language model, if it is not the text configuration, ``dtype`` its type.

        The head is tied as in the whole model, and the end ids are those of the generation configuration.
        """
        section = section or self.config.get_text_config()
        config = sizes(section)
        stated = [vars(c)["tie_word_embeddings"] for c in (self.config, section) if "tie_word_embeddings" in vars(c)]
        config["tie_word_embeddings"] = bool(stated and stated[0])
        ends = self.ends
        if len(ends) > 1:
            config["eos_token_id"] = ends
        return {"name": "hf", "config": config, "dtype": dtype or self.dtype}

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer."""
        stated = self.generation_config.get("eos_token_id", self.stated.get("eos_token_id"))
        stated = self.config.get_text_config().eos_token_id if stated is None else stated
        return [stated] if isinstance(stated, int) else list(stated or ())

    def text(self) -> dict[str, Any]:
        """``text:``, with the folder's tokenizer."""
        result: dict[str, Any] = {"tokenizer": str(self.path)}
        if all((self.path / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
            result["fast"] = True
        if self.ends and self.tokenizer.eos not in self.ends:
            result["eos_id"] = self.ends[0]
        return result

    def image_token(self, index: int, name: str) -> str:
        """The special token that stands for an image, by its id in config.json; ``name`` where no file names it.

        Raises WeightsError: the tokenizer lacks it, has another id for it, or reads it as ordinary text.
        """
        stated = (self._json(file).get("image_token") for file in ("processor_config.json", "tokenizer_config.json"))
        token = next((text for text in stated if isinstance(text, str)), name)
        if not self.tokenizer.is_special(token) or self.tokenizer.id_of(token) != index:
            raise WeightsError(
                f"{self.path}: the tokenizer has no special token {token!r} with the id {index}, the place of an image",
                fix="download the tokenizer of this model again (tokenizer.json, tokenizer_config.json)",
            )
        return token

    def template(self, media_token: str, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
        """``template:`` by the folder's chat template; ``otherwise`` where it has none.

        Raises WeightsError: it has none, and there is no ``otherwise``.
        """
        begins = {"begin": True} if self.adds_begin else {}
        if read_chat_template(self.path) is not None:
            return {"name": "hf_chat", "media_token": media_token, **begins}
        if otherwise is None:
            text = f"{self.path}: no chat template (chat_template.jinja, or in tokenizer_config.json)"
            raise WeightsError(text, fix="download it too")
        return otherwise

    @property
    def adds_begin(self) -> bool:
        """Whether transformers' tokenizer of the folder writes the begin id by itself."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        begin = tokenizer.bos_token_id
        return begin is not None and tokenizer("a").input_ids[:1] == [begin]

    def image(self) -> dict[str, Any]:
        """``image:`` by an image processor that gives one square per image.

        Raises ConfigError: it does something that the recipe cannot do.
        """
        stated = self.preprocessor
        size, crop = _sides(stated.get("size")), _sides(stated.get("crop_size"))
        result: dict[str, Any] = {"name": "recipe"}
        if stated.get("do_center_crop") and crop and len(size) == 1 and set(crop) == set(size):
            result |= {"size": crop[0], "resize": "shorter", "crop_rounding": "floor"}
        elif not stated.get("do_center_crop") and len(set(size)) == 1 and len(size) == 2:
            result |= {"size": size[0], "resize": "pad" if stated.get("do_pad") else "stretch"}
        else:
            found = {key: stated.get(key) for key in ("size", "crop_size", "do_center_crop")}
            raise ConfigError(f"{self.path}: an image processor with {found} is not one that the recipe can follow")
        return result | self.levels()

    def levels(self) -> dict[str, Any]:
        """Mean, deviation and filter, as a recipe has them. Raises ConfigError: another scale."""
        stated = self.preprocessor
        scale = stated.get("rescale_factor", 1 / 255)
        if not stated.get("do_rescale", True) or abs(scale * 255 - 1) > 1e-6 or not stated.get("do_resize", True):
            raise ConfigError(f"{self.path}: an image processor that scales levels by {scale}, expected 1/255")
        normal = stated.get("do_normalize", True)
        mean, std = stated.get("image_mean"), stated.get("image_std")
        return {
            "mean": list(mean) if normal and mean else [0.0, 0.0, 0.0],
            "std": list(std) if normal and std else [1.0, 1.0, 1.0],
            "interpolation": RESAMPLE.get(stated.get("resample", 3), "bicubic"),
            "background": "keep",  # as PIL's convert("RGB"): the alpha channel is dropped
        }

    def generation(self) -> dict[str, Any]:
        """``generation:``, greedy unless the folder samples."""
        stated = {key: value for key, value in self.generation_config.items() if value is not None}
        result: dict[str, Any] = {"do_sample": bool(stated.get("do_sample")), "max_new_tokens": ANSWER_TOKENS}
        result |= {"repetition_penalty": 1.0} | {key: stated[key] for key in GENERATION if key in stated}
        if result["do_sample"]:
            result |= {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
            result |= {key: stated[key] for key in SAMPLING if key in stated}
        result |= {"length_penalty_form": "answer"} if result.get("num_beams", 1) > 1 else {}
        return result | ({"max_length": self.positions} if self.positions else {})


def _sides(size: Any) -> tuple[int, ...]:
    """``(shortest,)`` or ``(height, width)`` of a stored size; empty if there is none of these."""
    if isinstance(size, int):
        return (size,)
    size = size or {}
    if "height" in size:
        return (size["height"], size["width"])
    return (size["shortest_edge"],) if "shortest_edge" in size and "longest_edge" not in size else ()
