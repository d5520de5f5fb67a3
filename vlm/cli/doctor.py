"""``vlm doctor``: what is installed, and where."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from vlm.cli.options import add_listed
from vlm.common import VERSION
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.paths import ASSETS, CACHE_VARIABLE, cache_root
from vlm.common.registry import register_command

REQUIRED = ("torch", "torchvision", "transformers", "timm", "peft", "safetensors", "sentencepiece", "omegaconf")
OPTIONAL = {
    "gradio": "vlm demo, vlm serve --page",
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus-client"), "vlm serve"),
    "llguidance": "answers in JSON",
    "ray": "vlm generate --ray",
    "wandb": "run.wandb_log",
    "bitsandbytes": "4-bit LLMs, and 8-bit ones on a GPU",
}
FOUNDATIONS = ("eva_vit.safetensors", "qformer.safetensors", "llm/model.safetensors")


@register_command("doctor")
class Doctor:
    """Show the versions, devices and folders of this installation.

    With --quant, the LLM of a run is loaded in full, in 4 bits (nf4) and in 8 bits (int8), and its answers are
    compared: KL divergence per token, share of equal most likely tokens, memory, and seconds to load.

    examples:
      vlm doctor
      vlm doctor --quant output/my_run --questions 16
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What is compared, if anything is."""
        add_listed(parser, "doctor", "options")

    def main(self, args: argparse.Namespace) -> int:
        """Print the table; 2 when something required is missing. Raises UserError: a model that cannot be loaded."""
        if args.quant:
            return compare_quantised(args)
        if given := [name for name in ("json", "device", "options") if vars(args)[name]]:
            raise UserError(f"--{given[0]} goes with --quant RUN", fix="vlm doctor --quant output/my_run")
        missing = 0
        say(f"vlm {VERSION}, Python {sys.version.split()[0]}, {platform.platform()}, {os.cpu_count()} CPU cores")
        for name in REQUIRED:
            result = installed(name)
            missing += result is None
            say(f"  {name:<18}{result or 'MISSING: pip install vlm-compose'}")
        for name, use in OPTIONAL.items():
            say(f"  {name:<18}{installed(name) or f'not installed (needed for {use})'}")
        if installed("torch"):
            from vlm.common.dist import accelerator_count, device_name, pick_device

            device = pick_device("auto")
            say(f"device: {device} ({device_name(device)}), accelerators: {accelerator_count()}")
            say(f"threads: {threads_here()}")
            say(f"int8 on the CPU: {int8_here()}")
        say(f"cache: {cache_root()} (environment variable {CACHE_VARIABLE})")
        absent = [f for f in FOUNDATIONS if not (ASSETS / "tiny" / f).is_file()]
        say(f"quickstart foundations: {'missing ' + ', '.join(absent) if absent else 'present'}")
        return 2 if missing else 0


def compare_quantised(args: argparse.Namespace) -> int:
    """``--quant``: the LLM of a run in full, in nf4 and in int8."""
    from vlm.common.trust import trusting
    from vlm.runners.verify.quantised import compare

    with busy(f"comparing {args.quant}"), quiet("vlm.checkpoint", "vlm.inference", "vlm.models"), trusting(args.trust):
        found = compare(args.quant, args.questions, args.device, args.options)
    for line in [json.dumps(found.plain(), indent=1)] if args.json else found.lines():
        say(line)
    return 0


def threads_here() -> str:
    """The threads of a process here, and whether there are cores for them at the moment."""
    import torch

    from vlm.common.processes.threads import WAIT, choose, load

    threads, busy = choose(torch.get_num_threads()), load()
    waiting = os.environ.get(WAIT, "default").lower()
    shown = "" if busy is None else f", load {busy:.1f}"
    problem = threads.problem(busy)
    return f"{threads.line()}{shown}, waiting threads: {waiting}" + (f"\n  warning: {problem}" if problem else "")


def int8_here() -> str:
    """Whether ``model.llm.quantize: int8`` computes in int8 on this machine's CPU."""
    from vlm.models.llm.linear.int8 import unsupported

    why = unsupported()
    return "yes" if why is None else f"no ({why}; bf16 is used instead)"


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
