"""Generation: this library against ``generate`` of transformers' BLIP-2 with a LLaMA text model.

    python -m benchmarks.generate                    # CPU middle size, float32
    python -m benchmarks.generate --size 7b          # on a GPU, random weights, bfloat16

Same weights, images and prompts, greedy, a fixed number of new tokens (no end token), images encoded each time.
The two sides must write the same tokens.
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
from benchmarks.ours import composition, copy_weights, make_batch
from vlm.inference.decoding import Prompt, StopCriteria, decode
from vlm.inference.generation import Generation

SIZES = {"small": SMALL, "cpu": Sizes(), "7b": SEVEN_B}


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
    """This library's decoding of the same prompts."""
    batch = make_batch(rows, pixels.cpu()).to(pixels.device)
    generation = Generation(max_new_tokens=new, do_sample=False, repetition_penalty=1.0)
    model.eval()

    def run() -> list:
        with torch.inference_mode():
            inputs = model.prepare(batch).left_padded()
            prompt = Prompt(inputs.inputs_embeds, (inputs.segments > 0).long())
        return decode(model.llm.model, prompt, generation, StopCriteria(eos=(), bos=1, pad=0))

    return run


def main() -> None:
    """Parse, measure, write ``benchmarks/results/generate_<size>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default=None)
    a = parser.parse_args()
    device = a.device or ("cuda" if a.size == "7b" else "cpu")
    s = SIZES[a.size]
    torch.manual_seed(0)
    pixels = torch.randn(a.batch, 3, s.image_size, s.image_size, device=device)
    rows = make_rows(a.batch, s.vocab, seed=0)
    theirs, ours = baseline(s), composition(s)
    copy_weights(theirs, ours)
    theirs, ours = theirs.to(device), ours.to(device)
    if device != "cpu":
        theirs, ours, pixels = theirs.to(torch.bfloat16), ours.to(torch.bfloat16), pixels.to(torch.bfloat16)
    sides = {"transformers": their_side(theirs, rows, pixels, s, a.new), "vlm": our_side(ours, rows, pixels, a.new)}
    written = {name: side() for name, side in sides.items()}
    same = sum(x == y for x, y in zip(*written.values(), strict=True))
    seconds = alternate(sides, a.rounds, torch.cuda.synchronize if device != "cpu" else lambda: None)
    medians = {name: median(values) for name, values in seconds.items()}
    result = {
        "what": "greedy generation, images encoded each time",
        "size": a.size, "batch": a.batch, "new_tokens": a.new, "rounds": a.rounds, "device": device,
        "rows_with_equal_tokens": f"{same} of {a.batch}",
        "tokens_per_second": {name: round(a.batch * a.new / value, 2) for name, value in medians.items()},
        "ratio": round(medians["transformers"] / medians["vlm"], 3), "all_seconds": seconds,
    }  # fmt: skip
    print({k: v for k, v in result.items() if k != "all_seconds"})
    print("written:", write(f"generate_{a.size}", result))


if __name__ == "__main__":
    main()
