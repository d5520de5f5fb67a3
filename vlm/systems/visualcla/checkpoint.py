"""Published files of VisualCLA, as in the repository airaria/Visual-Chinese-LLaMA-Alpaca.

``visualcla_delta``: the released folder, one peft adapter over vision encoder and LLM with the trained parts in full.
``visualcla_merged``: ``text_encoder/``, ``vision_encoder/``, and the bridge in ``pytorch_model*.bin``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below, bridge_index, parts_of
from vlm.checkpoint.keymap import KeyMap, lora_pairs
from vlm.checkpoint.peft_adapter import Adapter, read_adapter
from vlm.checkpoint.safe import read_folder, read_json, shards
from vlm.common.errors import WeightsError
from vlm.common.paths import inner_folder
from vlm.common.registry import register_checkpoint_format
from vlm.models.bridges.bert_resampler import PUBLISHED, BertResampler
from vlm.models.bridges.linear import Linear
from vlm.models.llm.hf import FOLDERS as TEXT_FOLDERS
from vlm.models.lora import is_lora
from vlm.models.vision.clip import FOLDERS as VISION_FOLDERS
from vlm.models.vlm import VLM

VISION, TEXT = "vision_model.vision_model.", "text_model."
RESAMPLER, PROJECTION = BRIDGE = "visual_resampler.", "image_projection_layer."
EMBEDDINGS, HEAD = "text_model.model.embed_tokens.weight", "text_model.lm_head.weight"
ADDED = "added_tokens.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", ADDED)
CLASS_DEFAULTS = PUBLISHED | {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_query_tokens": 32,
}
"""Values of keys that ``visual_resampler_config`` omits (defaults of the published configuration class)."""
RESAMPLER_LAYER = {
    "crossattention.self.query": "query",
    "crossattention.self.key": "key",
    "crossattention.self.value": "value",
    "crossattention.output.dense": "attention_out",
    "crossattention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}


def key_map(model: VLM) -> KeyMap:
    """Names of the whole published model <-> ours. Raises WeightsError if the composition has another bridge."""
    resampler, linear = bridge_index(model, BertResampler), bridge_index(model, Linear)
    if resampler is None or linear is None:
        raise WeightsError("files of VisualCLA fill a bridge of bert_resampler and linear; the composition has another")
    inner, ours = f"{RESAMPLER}encoder.layer.{{i}}", f"bridge.{resampler}"
    pairs = [
        *lora_pairs(f"{VISION}{{rest}}", "vision.model.{rest}"),
        *lora_pairs(f"{TEXT}{{rest}}", "llm.model.{rest}"),
        *((f"{inner}.{a}.{{end}}", f"{ours}.layers.{{i}}.{b}.{{end}}") for a, b in RESAMPLER_LAYER.items()),
        (f"{RESAMPLER}query_embeddding", f"{ours}.query_tokens"),  # spelled like this in the files
        (f"{RESAMPLER}pooler.dense.{{end}}", f"{ours}.pooler.{{end}}"),
        (f"{PROJECTION}{{end}}", f"bridge.{linear}.proj.{{end}}"),
        (f"{VISION}{{rest}}", "vision.model.{rest}"),
        (f"{TEXT}{{rest}}", "llm.model.{rest}"),
    ]
    return KeyMap(tuple(pairs), ("*.rotary_emb.inv_freq", "*.position_ids"))


def stated_sizes(file: Path) -> dict[str, Any]:
    """What a published config.json says about the resampler, with the class's defaults.

    Raises WeightsError: no usable config.json, no resampler, or one with another activation.
    """
    declared = read_json(file)
    if not declared.get("use_visual_resampler", True):
        raise WeightsError(f"{file}: use_visual_resampler is false; only models with the resampler can be read")
    sizes = {k: v for k, v in (declared.get("visual_resampler_config") or {}).items() if v is not None}
    if sizes.get("hidden_act", "gelu") != "gelu":
        kind = sizes["hidden_act"]
        raise WeightsError(f"{file}: visual_resampler_config.hidden_act is {kind!r}; only 'gelu' can be read")
    return CLASS_DEFAULTS | sizes


def bridge_names(file: Path) -> set[str]:
    """Published names of the resampler and the projection that a config.json states; raises as stated_sizes."""
    layers = range(stated_sizes(file)["num_hidden_layers"])
    linear = [f"{RESAMPLER}encoder.layer.{i}.{theirs}" for i in layers for theirs in RESAMPLER_LAYER]
    linear += [f"{RESAMPLER}pooler.dense", PROJECTION.removesuffix(".")]
    return {f"{RESAMPLER}query_embeddding", *(f"{name}.{end}" for name in linear for end in ("weight", "bias"))}


def fill(part: Any, values: Mapping[str, Any], where: str, file: Path) -> Any:
    """A copy of ``part`` with null options set to ``values``. Raises WeightsError if an option has another value."""
    for name, value in values.items():
        stated = getattr(part.config, name)
        if stated is not None and stated != value:
            raise WeightsError(
                f"{file}: {name} is {value!r}, the composition states {where}.{name} {stated!r}",
                fix=f"leave {where}.{name} out (null) to take it from the file",
            )
    done = copy.copy(part)
    done.config = dataclasses.replace(part.config, **values)
    return done


class PublishedFolder(CheckpointFormat):
    """Base of both layouts: names, and the sizes of the resampler where the composition leaves them open (null)."""

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model)

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`CheckpointFormat`."""
        file = path / "config.json"
        sizes = stated_sizes(file)
        done = copy.copy(model_cfg)
        done.bridge = [
            fill(part, {name: sizes[name] for name in CLASS_DEFAULTS}, f"model.bridge.{index}", file)
            if isinstance(part.config, BertResampler.Config)
            else part
            for index, part in enumerate(model_cfg.bridge)
        ]
        return done


@register_checkpoint_format("visualcla_delta")
class VisualCLADelta(PublishedFolder):
    """Fills LoRA, resampler, projection, token embeddings and head; comes after the files of its foundations.

    Where the composition leaves them open, the placement and rank of LoRA and the vocabulary are the folder's too.
    """

    shape_hint = "the delta is of a model with other sizes: use its own foundations"
    lora_hint = "the rank of LoRA or the foundations differ: leave lora out (null), and use the delta's own foundations"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """The bridge."""
        return parts_of(model_cfg, "bridge")

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`CheckpointFormat`."""
        adapter = read_adapter(path)
        done = super().infer_config(model_cfg, path)
        done.train = dict.fromkeys(done.train, True) if not isinstance(done.train, dict) else dict(done.train)
        for name, prefix in (("vision", VISION), ("llm", TEXT)):
            part, options = getattr(done, name), adapter.options(prefix)
            if options is None:
                done.train.pop(f"{name}.lora", None)
            elif part.config.lora is None:
                setattr(done, name, fill(part, {"lora": options}, f"model.{name}", path))
        if EMBEDDINGS in adapter.tensors:
            rows = len(adapter.tensors[EMBEDDINGS])
            done.llm = fill(done.llm, {"vocab_size": rows}, "model.llm", path)
            base = next((w.path for w in model_cfg.weights if w.format == "hf_llm" and w.path), None)
            if base is not None:
                check_base(Path(base), adapter, rows)
        return done

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors by published name, without peft's prefix."""
        return read_adapter(path).tensors

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """The bridge and LoRA."""
        return below(model, "bridge") + [key for key in model.state_dict() if is_lora(key)]


@register_checkpoint_format("visualcla_merged")
class VisualCLAMerged(PublishedFolder):
    """Fills the whole composition. The vocabulary is that of the tensors, as published configurations are outdated."""

    shape_hint = "the folder's configurations and weights are of different models"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """Everything."""
        return ["vision", "llm", *parts_of(model_cfg, "bridge")]

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`CheckpointFormat`."""
        done = super().infer_config(model_cfg, path)
        rows = embedding_rows(_part(path, TEXT_FOLDERS))
        if rows is not None:
            done.llm = fill(done.llm, {"vocab_size": rows}, "model.llm", path)
        return done

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of all three parts, by their names in the whole published model."""
        tensors = {f"vision_model.{k}": t for k, t in read_folder(_part(path, VISION_FOLDERS)).items()}
        tensors |= {f"{TEXT}{k}": t for k, t in read_folder(_part(path, TEXT_FOLDERS)).items()}
        index = path / "pytorch_model.bin.index.json"
        files = shards(path) if index.is_file() else sorted(path.glob("pytorch_model*.bin")) or shards(path)
        return tensors | {name: tensor for file in files for name, tensor in read_folder(file).items()}

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """Everything but LoRA."""
        return below(model, "vision.model", "llm.model", "bridge")


def _part(path: Path, names: tuple[str, ...]) -> Path:
    folder = inner_folder(path, names)
    if folder == path:
        raise WeightsError(
            f"{path}: no folder {' or '.join(names)}",
            fix="give a merged folder: text_encoder/, vision_encoder/, pytorch_model.bin, config.json",
        )
    return folder


def check_base(base: Path, adapter: Adapter, rows: int) -> None:
    """Check that the vocabulary of a base LLM is one that this delta's tokens were added to.

    Raises WeightsError: it is smaller than the delta's tokenizer without added tokens, or larger than the delta's.
    """
    folder = adapter.folder
    declared = read_json(folder / "config.json").get("text_config") or {}
    least = int(declared.get("vocab_size") or rows)
    if (folder / ADDED).is_file():
        least = min([least, *map(int, read_json(folder / ADDED).values())])
    have = embedding_rows(base)
    if have is not None and not least <= have <= rows:
        raise WeightsError(
            f"{base}: the base LLM has a vocabulary of {have}; {folder} was trained on one of {least} to {rows}",
            fix="use the base that the delta was made for (Chinese-Alpaca-Plus for VisualCLA)",
        )


def embedding_rows(base: Path) -> int | None:
    """Rows of the token embeddings in a Hugging Face folder, by the tensor and not by config.json."""
    table = read_folder(base, TEXT_FOLDERS).get(EMBEDDINGS.removeprefix(TEXT))
    return None if table is None else len(table)
