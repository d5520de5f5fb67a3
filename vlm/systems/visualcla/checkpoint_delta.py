"""The released folder of VisualCLA: one peft adapter over vision encoder and LLM, with the trained parts in full.

Layout of the repository airaria/Visual-Chinese-LLaMA-Alpaca.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.checkpoint.formats.base import CheckpointFormat, below, parts_of
from vlm.checkpoint.keymap import KeyMap
from vlm.checkpoint.peft_adapter import Adapter, read_adapter
from vlm.checkpoint.safe import read_json, read_tensors, shards
from vlm.common.errors import WeightsError
from vlm.common.paths import inner_folder
from vlm.common.registry import register_checkpoint_format
from vlm.models.llm.hf import FOLDERS
from vlm.models.lora import is_lora
from vlm.models.vlm import VLM
from vlm.systems.visualcla.checkpoint_keys import ADDED, EMBEDDINGS, TEXT, VISION, complete_bridge, fill, key_map


@register_checkpoint_format("visualcla_delta")
class VisualCLADelta(CheckpointFormat):
    """Fills LoRA, resampler, projection, token embeddings and head; comes after the files of its foundations.

    Where the composition leaves them open, the placement and rank of LoRA, the vocabulary and the sizes of the
    resampler are the folder's.
    """

    shape_hint = "the delta is of a model with other sizes: use its own foundations"

    def covered_parts(self, model_cfg: Any) -> list[str]:
        """The bridge."""
        return parts_of(model_cfg, "bridge")

    def infer_config(self, model_cfg: Any, path: Path) -> Any:
        """See :class:`InfersConfig`."""
        adapter = read_adapter(path)
        done = complete_bridge(model_cfg, path)
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

    def key_map(self, model: VLM, file: str) -> KeyMap:
        """See :class:`CheckpointFormat`."""
        return key_map(model)

    def required(self, model: VLM, placed: Collection[str], filled: Collection[str]) -> list[str]:
        """The bridge and LoRA."""
        return below(model, "bridge") + [key for key in model.state_dict() if is_lora(key)]

    def hint(self, shapes: Mapping[str, str]) -> str | None:
        """See :class:`CheckpointFormat`."""
        if any(is_lora(key) for key in shapes):
            return (
                "the rank of LoRA or the foundations differ: leave lora out (null), and use the delta's own foundations"
            )
        return super().hint(shapes)


def check_base(base: Path, adapter: Adapter, rows: int) -> None:
    """Check that the vocabulary of a base LLM is one that this delta's tokens were added to.

    Raises:
        WeightsError: it is smaller than the delta's tokenizer without added tokens, or larger than the delta's.
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
    for file in [base] if base.is_file() else shards(inner_folder(base, FOLDERS)):
        table = read_tensors(file).get(EMBEDDINGS.removeprefix(TEXT))
        if table is not None:
            return len(table)
    return None
