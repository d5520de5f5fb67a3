"""Predicted against measured: memory and time of training steps of five compositions on this CPU.

    python -m benchmarks.plan                 # all cases, about five minutes of an idle machine
    python -m benchmarks.plan --only lynx     # some of them
    python -m benchmarks.plan --size small    # seconds; the test runs this

Each case is a process of its own, which plans first (nothing is loaded), then builds the model with random weights and
takes two steps with the run's own stepper. Measured are the growth of the peak of resident memory over the process
with its libraries, and the bytes that torch's profiler counts at the allocator during a step.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from typing import Any

import torch

from benchmarks.common import forget_peak, peak_resident, resident, write
from vlm.config.api import load_config
from vlm.models.build import build_model
from vlm.runners.plan.batch import Lengths, batches_of
from vlm.runners.plan.devices import device_named
from vlm.runners.plan.plan import Planner, Request
from vlm.runners.train.optim import build_optimizer, build_scaler, pick_precision
from vlm.runners.train.parallel.recompute import checkpoint_activations
from vlm.runners.train.step import Stepper
from vlm.tasks.image_text_pretrain import ImageTextPretrain

MIB = 2**20
FORK = multiprocessing.get_context("fork")
LORA = {"r": 16, "alpha": 32, "dropout": 0.05}
SIZES = {
    "middle": {"width": 512, "hidden": 1376, "layers": 12, "vocab": 8000, "vision": 384, "image": 168, "tokens": 64},
    "small": {"width": 128, "hidden": 344, "layers": 8, "vocab": 1000, "vision": 64, "image": 56, "tokens": 24},
}
VARIANTS = {
    "as published": {},
    "without LoRA": {"lora": False},
    "LoRA": {"lora": True},
    "checkpointing": {"checkpointing": True},
    "packing": {"packing": True},
    "accumulation": {"accumulate": True},
    "bf16": {"amp": True},
}


def llm(s: dict[str, int], lora: bool, **more: Any) -> dict[str, Any]:
    """A LLaMA, with LoRA on all of its linear layers or without."""
    config = {
        "model_type": "llama", "vocab_size": s["vocab"], "hidden_size": s["width"], "intermediate_size": s["hidden"],
        "num_hidden_layers": s["layers"], "num_attention_heads": s["width"] // 64, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }  # fmt: skip
    own = {"lora": {**LORA, "targets": "all-linear"}} if lora else {}
    return {"name": "hf", "config": config, "dtype": "fp32", **own, **more}


def eva(s: dict[str, int]) -> dict[str, Any]:
    """An EVA encoder."""
    sizes = {"image_size": s["image"], "patch_size": 14, "embed_dim": s["vision"], "depth": s["layers"]}
    return {
        "name": "eva_vit",
        **sizes,
        "num_heads": max(1, s["vision"] // 64),
        "mlp_ratio": 4.3637,
        "precision": "fp32",
    }


def clip(s: dict[str, int], lora: bool, **more: Any) -> dict[str, Any]:
    """A CLIP encoder."""
    config = {
        "image_size": s["image"], "patch_size": 14, "hidden_size": s["vision"], "intermediate_size": 4 * s["vision"],
        "num_hidden_layers": s["layers"], "num_attention_heads": max(1, s["vision"] // 64),
    }  # fmt: skip
    own = {"lora": {**LORA, "targets": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}} if lora else {}
    return {"name": "clip", "config": config, "precision": "fp32", **own, **more}


def perceiver(**more: Any) -> dict[str, Any]:
    """A Perceiver resampler."""
    return {"name": "perceiver", "depth": 3, "dim_head": 64, "heads": 8, "num_latents": 32, "ff_mult": 4, **more}


def compositions(s: dict[str, int], lora: bool | None) -> dict[str, dict[str, Any]]:
    """The five compositions at a size; ``lora`` None: as published."""
    qformer = {
        "name": "qformer", "num_query_tokens": 32, "hidden_size": s["vision"], "num_hidden_layers": 6,
        "num_attention_heads": 4, "intermediate_size": 2 * s["vision"], "cross_attention_freq": 2,
    }  # fmt: skip
    resampler = {
        "name": "bert_resampler", "num_query_tokens": 32, "num_hidden_layers": 2,
        "num_attention_heads": max(1, s["vision"] // 64), "intermediate_size": 2 * s["vision"],
    }  # fmt: skip

    def on(published: bool) -> bool:
        return published if lora is None else lora

    def trained(published: bool, *names: str) -> list[str]:
        return [*names, *(["llm.lora"] if on(published) else [])]

    splice, base = {"name": "splice"}, {"template": {"name": "user_bot"}, "image": {"size": s["image"]}}
    return {
        "minigpt4": {
            **base, "vision": eva(s), "bridge": [qformer, {"name": "linear"}], "fusion": splice,
            "llm": llm(s, on(False)), "train": trained(False, "bridge.1.*"),
        },
        "lynx": {
            **base, "vision": eva(s),
            "bridge": [{"name": "frame_positions", "num_frames": 5}, perceiver(latents_in_keys=False, width="llm")],
            "fusion": splice, "inserts": [{"name": "adapter", "every": 2}],
            "llm": llm(s, on(False)), "train": trained(False, "bridge.*", "inserts.*"),
        },
        "open_flamingo": {
            **base, "vision": clip(s, False, post_layernorm=False, keep_cls=False), "bridge": [perceiver()],
            "fusion": {"name": "cross_attn", "image_token_id": 1, "attend_previous": True},
            "inserts": [{"name": "gated_xattn", "every": 4}],
            "llm": llm(s, on(False)), "train": trained(False, "bridge.*", "inserts.*"),
        },
        "visualcla": {
            **base, "vision": clip(s, on(True), post_layernorm=True, keep_cls=True),
            "bridge": [resampler, {"name": "linear"}], "fusion": splice, "llm": llm(s, on(True)),
            "train": ["bridge.*", "llm.model.model.embed_tokens", "llm.model.lm_head",
                      *(["vision.lora", "llm.lora"] if on(True) else [])],
        },
        "minigpt_v2": {
            **base, "vision": eva(s), "bridge": [{"name": "concat", "group": 4, "drop_cls": True}, {"name": "linear"}],
            "fusion": splice, "llm": llm(s, on(True)), "train": trained(True, "bridge.1.*"),
        },
    }  # fmt: skip


def configuration(size: str, name: str, variant: str) -> Any:
    """The checked configuration of a case."""
    s, options = SIZES[size], VARIANTS[variant]
    model = compositions(s, options.get("lora"))[name]
    run = {
        "task": "image_text_pretrain", "max_steps": 10, "device": "cpu", "batch_size_train": 2,
        "amp": bool(options.get("amp")), "amp_dtype": "bf16",
        "activation_checkpointing": "torch" if options.get("checkpointing") else "none",
        "accum_grad_iters": 2 if options.get("accumulate") else 1,
        "packing": {"max_tokens": 320} if options.get("packing") else None,
    }  # fmt: skip
    return load_config({"model": model, "run": run}, check="none")


def case(size: str, name: str, variant: str) -> dict[str, Any]:
    """Plan and measure one case in this process."""
    cfg, lengths = configuration(size, name, variant), Lengths(SIZES[size]["tokens"], 1)
    device = torch.device("cpu")
    started = time.perf_counter()
    planner = Planner(cfg, Request(device_named("cpu"), lengths=lengths))
    plan = planner.plan()
    planning = time.perf_counter() - started
    batches = batches_of(cfg, planner.faked.model, 1, lengths)
    del planner
    warm_up(name, variant)
    gc.collect()
    process = resident()
    stepper, trained = build(cfg, device)
    micro = [batches.largest] * batches.micro
    loaded = resident()
    forget_peak()
    seconds = []
    for number in range(2):
        started = time.perf_counter()
        stepper(micro, step=number + 1, lr=1e-4)
        seconds.append(time.perf_counter() - started)
    growth = peak_resident() - process
    own = {k: v for k, v in plan.memory.items() if k not in ("process", "allowance")}
    predicted = sum(own.values()) / MIB
    counted = allocator_peak(lambda: stepper(micro, step=3, lr=1e-4))
    still = sum(own.get(k, 0) for k in ("weights", "buffers", "optimiser")) / MIB
    return {
        "composition": name, "variant": variant, "parameters": sum(p.total for p in plan.parts), "trained": trained,
        "predicted_mib": round(predicted, 1), "measured_mib": round(growth, 1),
        "ratio": round(predicted / growth, 3),
        "predicted_step_mib": round(predicted - still, 1), "allocator_step_mib": round(counted, 1),
        "step_ratio": round((predicted - still) / counted, 3), "loaded_mib": round(loaded - process, 1),
        "seconds_at_the_limits": round(plan.seconds * plan.efficiency, 3),
        "measured_seconds": round(min(seconds[1:]), 3),
        "efficiency": round(plan.seconds * plan.efficiency / min(seconds[1:]), 3),
        "planning_seconds": round(planning, 1), "peak_at": plan.peak_at,
        "by_part_mib": {k: round(v / MIB, 1) for k, v in own.items()},
    }  # fmt: skip


def warm_up(name: str, variant: str) -> None:
    """A step at small size: what the libraries set up once belongs to the process, not to the model."""
    cfg = configuration("small", name, variant)
    shape = build_model(cfg.model, device="meta")
    batches = batches_of(cfg, shape, 1, Lengths(SIZES["small"]["tokens"], 1))
    build(cfg, torch.device("cpu"))[0]([batches.largest] * batches.micro, step=1, lr=1e-4)


def build(cfg: Any, device: torch.device) -> tuple[Stepper, int]:
    """The model with random weights, and the run's stepper."""
    torch.manual_seed(0)
    precision = pick_precision(cfg.run.amp, cfg.run.amp_dtype, device)
    model = build_model(cfg.model, dtype=precision.amp_dtype or torch.float32)
    checkpoint_activations(model, cfg.run.activation_checkpointing)
    model.train()
    optimizer = build_optimizer(model, lr=1e-4, weight_decay=0.05, beta2=0.999, device=device)
    options: dict[str, Any] = {"device": device, "precision": precision}
    stepper = Stepper(model, ImageTextPretrain(), optimizer, build_scaler(precision, device), **options)
    return stepper, sum(p.numel() for p in model.parameters() if p.requires_grad)


def allocator_peak(step: Any) -> float:
    """Largest growth of torch's CPU allocator within ``step``, in MiB, as its profiler saw it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / MIB


def run_case(size: str, name: str, variant: str) -> dict[str, Any]:
    """A case in a process of its own, a copy of this one, which has imported everything and computed nothing."""
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: writer.send(case(size, name, variant)))
    process.start()
    writer.close()
    try:
        result: dict[str, Any] = reader.recv()
    except EOFError:
        raise RuntimeError(f"{name}, {variant}: the process ended without a result") from None
    finally:
        process.join()
    return result


def with_plain_memory() -> None:
    """Start again with a malloc that gives back at once what is freed, so that resident memory is what is in use."""
    wanted = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_TRIM_THRESHOLD_": "0"}
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        command = [sys.executable, "-m", "benchmarks.plan", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def cases_of(size: str, only: str) -> list[tuple[str, str]]:
    """Composition and variant of every case; LoRA only where the published one is without, and the other way round."""
    names = [name for name in compositions(SIZES[size], None) if only in name]
    with_lora = ("visualcla", "minigpt_v2")
    left_out = {"LoRA": with_lora, "without LoRA": tuple(n for n in names if n not in with_lora)}
    left_out |= {one: tuple(n for n in names if n != "lynx") for one in ("accumulation", "bf16")}
    return [(name, variant) for variant in VARIANTS for name in names if name not in left_out.get(variant, ())]


def main() -> None:
    """Parse, measure, write ``benchmarks/results/plan.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="middle")
    parser.add_argument("--only", default="", help="part of a composition's name")
    parser.add_argument("--variant", choices=VARIANTS, help="this one only")
    arguments = parser.parse_args()
    with_plain_memory()
    results = []
    for name, variant in cases_of(arguments.size, arguments.only):
        if arguments.variant not in (None, variant):
            continue
        results.append(run_case(arguments.size, name, variant))
        row = results[-1]
        print(
            f"{name:14} {variant:14} predicted {row['predicted_mib']:8.1f} measured {row['measured_mib']:8.1f} MiB "
            f"{row['ratio']:.3f}; step alone {row['step_ratio']:.3f}; seconds {row['measured_seconds']:.2f} "
            f"({row['efficiency']:.2f} of the limits), planned in {row['planning_seconds']:.1f} s",
            flush=True,
        )
        if not (arguments.only or arguments.variant):
            file = write("plan" if arguments.size == "middle" else f"plan_{arguments.size}", summary_of(results))
    print("written:", "nothing, of some cases" if arguments.only or arguments.variant else file)


def summary_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The results so far, with the range of the ratios."""
    ratios = sorted(row["ratio"] for row in results)
    range_ = {"lowest": ratios[0], "median": ratios[len(ratios) // 2], "highest": ratios[-1]}
    return {"what": "peak memory: predicted / measured", **range_, "cases": results}


if __name__ == "__main__":
    main()
