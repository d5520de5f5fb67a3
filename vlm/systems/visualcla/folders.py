"""Folders of VisualCLA -> its composition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError, WeightsError
from vlm.common.registry import register_source
from vlm.config.api import Config, load_config
from vlm.inference.load import Source


def composition(
    visualcla_model: str | Path | None = None,
    text_model: str | Path | None = None,
    vision_model: str | Path | None = None,
    lora_model: str | Path | None = None,
    *,
    load_in_8bit: bool = False,
    options: Sequence[str] = (),
) -> Config:
    """The shipped composition over these folders, with their sizes. Raises UserError if a folder is missing."""
    three = {"text_model": text_model, "vision_model": vision_model, "lora_model": lora_model}
    missing = [name for name, folder in three.items() if folder is None]
    if visualcla_model is None and missing:
        raise UserError(
            f"VisualCLA needs a merged folder (visualcla_model) or three folders; not given: {', '.join(missing)}",
            fix="name them, or merge them first: vlm weights merge",
        )
    value = {"visualcla_model": visualcla_model} if visualcla_model is not None else three
    folders = {name: Path(str(folder)).expanduser() for name, folder in value.items()}
    for name, folder in folders.items():
        if not folder.is_dir():
            raise WeightsError(f"{name}: no folder {folder}", fix="download it first, and give the folder's path")
    model: dict[str, Any] = {"arch": "visualcla", "model_type": "7b_v0_1", "low_resource": load_in_8bit}
    model |= {name: str(folder) for name, folder in folders.items()}
    stated = sizes(folders.get("visualcla_model") or folders["lora_model"], folders.get("vision_model"))
    return load_config({"model": model | stated}, options)


def sizes(folder: Path, vision: Path | None = None) -> dict[str, int]:
    """``image_size`` and ``num_query_token`` by the ``config.json`` of a delta or merged folder.

    The encoder's own folder ``vision``, if there is one, states the image size instead.
    """
    from vlm.checkpoint.safe import read_json

    declared = read_json(folder / "config.json")
    encoder = read_json(vision / "config.json") if vision is not None else declared
    size = (encoder.get("vision_config") or encoder).get("image_size")
    queries = (declared.get("visual_resampler_config") or {}).get("num_query_tokens")
    return {k: int(v) for k, v in (("image_size", size), ("num_query_token", queries)) if v is not None}


@register_source("visualcla")
class MergedFolder(Source):
    """A merged model, as ``vlm weights merge`` or the published script writes it."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is such a folder."""
        from vlm.checkpoint.peft_adapter import CONFIG
        from vlm.checkpoint.safe import read_json

        file = path / "config.json"
        return file.is_file() and not (path / CONFIG).is_file() and read_json(file).get("model_type") == "visualcla"

    def config(self, path: Path, options: Sequence[str] = ()) -> Config:
        """The composition over the folder."""
        return composition(path, options=options)
