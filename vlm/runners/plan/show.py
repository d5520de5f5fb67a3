"""Plans as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from vlm.runners.plan.devices import GIB
from vlm.runners.plan.knobs import Knob
from vlm.runners.plan.measured import Comparison
from vlm.runners.plan.plan import Plan, check_capacity

KEYS = {
    "weights": "weights",
    "buffers": "buffers",
    "gradients": "gradients",
    "optimiser": "optimiser states",
    "activations": "activations",
    "loss": "loss",
    "workspace": "temporary",
    "batch": "batch",
    "gathered": "gathered layers",
    "communication": "buckets of DDP",
    "process": "Python and libraries",
    "allowance": "allowance, not predicted",
}


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of equal length as text; the first ``left`` columns are words, the others numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def size(count: float) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    return f"{count / GIB:,.2f} GiB" if abs(count) >= GIB / 10 else f"{count / 2**20:,.1f} MiB"


def parts_table(plan: Plan) -> str:
    """Parameters of each part."""
    rows = [["part", "parameters", "trained", "bytes"]]
    rows += [[p.name, f"{p.total:,}", f"{p.trained:,}", size(p.bytes)] for p in plan.parts]
    whole = [sum(getter) for getter in zip(*((p.total, p.trained, p.bytes) for p in plan.parts))]
    return aligned([*rows, ["together", f"{whole[0]:,}", f"{whole[1]:,}", size(whole[2])]])


def memory_table(plans: Sequence[Plan]) -> str:
    """Peak memory of a device by what it is for, a column for each plan."""
    rows = [["peak memory of a device", *(plan.device for plan in plans)]]
    for key, name in KEYS.items():
        if any(plan.memory.get(key) for plan in plans):
            rows.append([name, *(size(plan.memory.get(key, 0)) for plan in plans)])
    rows.append(["together", *(size(plan.peak) for plan in plans)])
    rows.append(["of", *(size(plan.capacity) for plan in plans)])
    rows.append(["", *("fits" if plan.fits else f"{size(-plan.free)} too much" for plan in plans)])
    return aligned(rows)


def time_table(plans: Sequence[Plan]) -> str:
    """Work, time and cost, a column for each plan."""

    def row(name: str, *cells: str) -> list[str]:
        return [name, *cells]

    rows = [
        row("a step", *(plan.device for plan in plans)),
        row("TFLOP of a device", *(f"{plan.flops / 1e12:,.2f}" for plan in plans)),
        row("seconds", *(f"{plan.seconds:,.3g}" for plan in plans)),
        row("samples a second", *(f"{plan.samples / plan.seconds:,.3g}" for plan in plans)),
        row("share of the limits", *(f"{plan.efficiency:.0%}" for plan in plans)),
    ]
    if plans[0].steps:
        rows.append(row("steps of the run", *(f"{plan.steps:,}" for plan in plans)))
        rows.append(row("hours", *(f"{plan.hours:,.2f}" for plan in plans)))
    if plans[0].cost is not None:
        rows.append(row("cost", *(f"{plan.cost:,.2f}" for plan in plans)))
    return aligned(rows)


def text_of(plans: Sequence[Plan], title: str) -> str:
    """Everything that a plan says."""
    first = plans[0]
    lengths = first.positions
    where = f"{first.processes} devices" if first.processes > 1 else "1 device"
    settings = first.settings
    upto = "up to " if settings["global_batch"] else ""  # a step is cut into equal parts
    rows = " rows" if settings["packing"] else ""
    batch = f"{upto}{first.batch_size}{rows} x {first.micro_batches} x {first.processes}"
    lines = [
        f"{title}: {where}, {', '.join(sorted({p.precision for p in plans}))}, shard {first.settings['shard']}",
        "",
        parts_table(first),
        "",
        f"  samples: {lengths['shortest']:.0f} / {lengths['median']:.0f} / {lengths['longest']:.0f} positions "
        f"(shortest / median / longest); {first.data}",
        f"  a step: {first.samples} samples ({batch}: micro-batch x micro-batches x devices)",
        "",
        memory_table(plans),
        *(f"  at the peak: {plan.device}: {plan.peak_at}" for plan in plans),
        *(f"  {note}" for note in first.notes),
        "",
        time_table(plans),
        *(f"  {plan.device}: {plan.efficiency_from}" for plan in plans),
        "",
        f"  checkpoints: {first.checkpoints} x {size(first.checkpoint)} = {size(first.checkpoints * first.checkpoint)}",
    ]
    if first.processes > 1:
        lines.append("  the time of communication between devices is not in these numbers")
    return "\n".join(lines)


def knobs_table(plan: Plan, knobs: Sequence[Knob]) -> str:
    """What saves most."""
    if not knobs:
        return "  nothing that this command tries saves memory"
    rows = [["change", "saves", "peak", "step", ""]]
    for knob in knobs:
        verdict = "fits" if knob.fits else ""
        rows.append([knob.change, size(knob.saved), size(knob.peak), f"{knob.seconds / plan.seconds:.2f}x", verdict])
    return f"{plan.device} {check_capacity(plan)}. What saves most:\n" + aligned(rows)


def comparison_table(found: Comparison) -> str:
    """Predicted against measured."""
    rows = [["", "predicted", "measured", "", "predicted / measured"]]
    for line in found.lines:
        numbers = (f"{line.predicted:,.4g}", f"{line.measured:,.4g}")
        rows.append([line.name, *numbers, line.unit, f"{line.ratio:.2f}"])
    plan = found.plan
    return "\n".join(
        [
            aligned(rows),
            f"  {found.steps} steps on {plan.device}, {plan.precision}; the steps reached {found.reached:.0%} of the "
            f"device's limits ({plan.efficiency:.0%} were expected, {plan.efficiency_from})",
            "  that is more than is possible: the device's limits were measured while it was busy; nothing is kept"
            if found.kept is None
            else f"  later plans for {plan.device} expect {found.kept:.0%}",
        ]
    )
