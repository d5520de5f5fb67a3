"""One question, answered by the composition and by the folder that was exported from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.common.types import MEDIA_TOKEN, Example
from vlm.config.api import Config
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.inference.hub.export import HubExport
from vlm.inference.load import load_parts

GREEDY = Generation(do_sample=False, repetition_penalty=1.0, stop=(), max_new_tokens=20)

PLAIN = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
"""The same for transformers, whatever the folder says."""


def loaded(folder: Path, **options: Any) -> Any:
    """The folder's model by transformers alone, in evaluation mode, with nothing missing or left over."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def expanded(ids: Sequence[int], image_id: int, count: int) -> Tensor:
    """Our ids with the image token for each position of an image: ``[1, s]``."""
    return torch.tensor([[k for i in ids for k in ([image_id] * count if i == MEDIA_TOKEN else [i])]])


def compare(engine: Engine, model: Any, example: Example, image_id: int, count: int) -> None:
    """Logits within 1e-4 and 20 greedy ids."""
    ids = expanded(example.ids, image_id, count)
    pixels = torch.cat(example.media) if example.media else None
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {} if pixels is None else {"pixel_values": pixels}
    with torch.no_grad():
        theirs = model(**inputs).logits
        ours = engine.model(engine.batch([example]), return_logits=True).logits
    assert theirs.shape[1] == ours.shape[1] == ids.shape[1]
    torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, rtol=0, atol=1e-4)
    answer = engine.generate_ids([example], GREEDY)[0]
    made = model.generate(**inputs, max_new_tokens=20, **PLAIN)[0].tolist()
    made = made[-len(answer) :] if made[: ids.shape[1]] != ids[0].tolist() else made[ids.shape[1] :]
    assert made[: len(answer)] == answer, (made, answer)


def exported(cfg: Config, folder: Path, **options: Any) -> tuple[Engine, dict[str, Any], list[str]]:
    """An engine over ``cfg``, config.json of the folder that is written from it in float32, and the export's lines."""
    import json

    lines = HubExport(HubExport.Config(dtype="fp32", **options)).write(cfg, folder)
    model, processor, _, _ = load_parts(cfg, "cpu", torch.float32)
    engine = Engine(model, processor, config=cfg)
    return engine, json.loads((folder / "config.json").read_text()), lines
