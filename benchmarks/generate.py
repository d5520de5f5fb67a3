"""Generation: this library against ``generate`` of transformers' BLIP-2 with a LLaMA text model.

    python -m benchmarks.generate                    # CPU middle size, float32
    python -m benchmarks.generate --size cpu-1b --batch 1 8 --rounds 3      # an LLM of a billion parameters
    python -m benchmarks.generate --size 7b          # on a GPU, random weights, bfloat16

Same weights, images and prompts, greedy, a fixed number of new tokens (no end token), images encoded each time, at
several batch sizes. In float32 the two sides must write the same tokens; bfloat16 and int8 weights (of the LLM, by
``model.llm.quantize``) round. Each side is also timed with one new token: ``ratio_of_further_tokens`` compares what is
left without it: no images, no prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import (
    SEVEN_B,
    SMALL,
    Sizes,
    TextRow,
    alternate,
    baseline,
    baseline_inputs,
    make_rows,
    median,
    write,
)
from benchmarks.engine import engine_of, question
from benchmarks.ours import composition, copy_weights
from vlm.inference.generation import Generation
from vlm.models.quantized.llm import quantize_llm
from vlm.models.quantized.short import quantize_images

ONE_B = Sizes(llm_dim=2048, llm_layers=18, llm_heads=16, llm_hidden=5632)
SIZES = {"small": SMALL, "cpu": Sizes(), "cpu-1b": ONE_B, "7b": SEVEN_B}


def their_side(model: Any, rows: list[TextRow], pixels: torch.Tensor, s: Sizes, new: int) -> Callable[[], list]:
    """``generate`` of the baseline on left-padded prompts."""
    inputs = baseline_inputs(rows, s)
    width = inputs["attention_mask"].shape[1]
    order = torch.stack([torch.arange(width).roll(width - int(m.sum())) for m in inputs["attention_mask"]])
    ids = inputs["input_ids"].gather(1, order).to(pixels.device)
    mask = inputs["attention_mask"].gather(1, order).to(pixels.device)

    def run() -> list:
        with torch.inference_mode():
            out = model.generate(
                pixel_values=pixels, input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
                do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return out[:, -new:].tolist()

    return run


def our_side(model: Any, rows: list[TextRow], pixels: torch.Tensor, new: int) -> Callable[[], list]:
    """This library's engine on the same prompts; nothing is kept from one round to the next."""
    engine = engine_of(model, pixels.device, prefix_mib=0, feature_mib=0)
    generation = Generation(max_new_tokens=new, do_sample=False, repetition_penalty=1.0)
    asked = [question(row, medium[None].cpu()) for row, medium in zip(rows, pixels, strict=True)]
    return lambda: engine.generate_ids(asked, generation, stops=())


def models_of(s: Sizes, theirs: Any, device: str) -> dict[str, Any]:
    """The composition with the baseline's weights in each form that the device is good at."""

    def made(mode: str | None, images: bool = False) -> Any:
        model = composition(s)
        copy_weights(theirs, model, share=True)
        if mode is not None:
            quantize_llm(model.llm, mode, torch.device(device))
        if images:
            model.requires_grad_(False)
            quantize_images(model)
        return model.eval()

    if device != "cpu":
        return {"vlm": made(None).to(device, torch.bfloat16)}
    forms = {"vlm": made(None), "vlm bf16": made("bf16"), "vlm int8": made("int8")}
    return forms | {"vlm int8, images too": made("int8", images=True)}


def measured(theirs: Any, ours: dict[str, Any], s: Sizes, size: int, a: Any, device: str) -> dict[str, Any]:
    """Both sides at one batch size."""
    torch.manual_seed(0)
    pixels = torch.randn(size, 3, s.image_size, s.image_size, device=device)
    rows = make_rows(size, s.vocab, seed=0)
    given = pixels if device == "cpu" else pixels.to(torch.bfloat16)
    sides: dict[str, Callable[[], Any]] = {}
    firsts: dict[str, Callable[[], Any]] = {}
    for count, group in ((a.new, sides), (1, firsts)):
        group["transformers"] = their_side(theirs, rows, given, s, count)
        group |= {name: our_side(model, rows, pixels, count) for name, model in ours.items()}
    written = {name: side() for name, side in sides.items()}
    expected = written["transformers"]
    both = sides | {f"{name}, first token": side for name, side in firsts.items()}
    seconds = alternate(both, a.rounds, torch.cuda.synchronize if device != "cpu" else lambda: None)
    medians = {name: median(values) for name, values in seconds.items()}
    further = {name: medians[name] - medians[f"{name}, first token"] for name in sides}
    return {
        "rows_with_equal_tokens": {
            name: f"{sum(x == y for x, y in zip(rows, expected, strict=True))} of {size}"
            for name, rows in written.items()
        },
        "tokens_per_second": {name: round(size * a.new / medians[name], 2) for name in sides},
        "ratio": {name: round(medians["transformers"] / medians[name], 3) for name in sides},
        "ratio_of_first_token": {
            name: round(medians["transformers, first token"] / medians[f"{name}, first token"], 3) for name in sides
        },
        "ratio_of_further_tokens": {name: round(further["transformers"] / further[name], 3) for name in sides},
        "all_seconds": seconds,
    }


def main() -> None:
    """Parse, measure, write ``benchmarks/results/generate_<size>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: those of torch")
    parser.add_argument("--device", default=None)
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    device = a.device or ("cuda" if a.size == "7b" else "cpu")
    s = SIZES[a.size]
    theirs = baseline(s)
    ours = models_of(s, theirs, device)
    theirs = theirs.to(device) if device == "cpu" else theirs.to(device, torch.bfloat16)
    result = {
        "what": "greedy generation, images encoded each time", "size": a.size, "new_tokens": a.new, "rounds": a.rounds,
        "device": device, "batch": {str(size): measured(theirs, ours, s, size, a, device) for size in a.batch},
    }  # fmt: skip
    for size, found in result["batch"].items():
        print(size, {key: found[key] for key in found if key.startswith("ratio")})
    print("written:", write(f"generate_{a.size}", result))


if __name__ == "__main__":
    main()
