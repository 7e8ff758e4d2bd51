"""A plan for people (a table, a plot) and for programs (one JSON line)."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jgpt.planning.estimate import ASSUMPTIONS
from jgpt.planning.step import Plan

GIB = 2**30


def as_json(plan: Plan) -> str:
    """One line; what could not be found is null, with the reason under `reasons`."""
    wire = plan.wire_bytes
    record = {
        "config": plan.config.name,
        "topology": plan.topology.name,
        "mesh": plan.mesh,
        "fits": plan.fits,
        "memory_bytes_per_chip": plan.memory,
        "hbm_bytes_per_chip": plan.hbm_bytes,
        "model_flops_per_chip": plan.model_flops,
        "matmul_flops_per_chip": plan.matmul_flops,
        "pallas_calls": None if plan.pallas_calls is None else sum(plan.pallas_calls.values()),
        "wire_bytes_per_chip": None if wire is None else {"total": sum(wire.values()), **wire},
        "estimated_step_seconds": plan.estimate and plan.estimate.at_best,
        "bound_by": plan.estimate and plan.estimate.bound_by,
        "estimated_mfu": plan.mfu,
        "pallas_flops_per_chip": plan.pallas_flops,
        "spare_flops_per_chip": plan.spare_flops,
        "pallas_calls_by_kernel": plan.pallas_calls,
        "collectives": plan.collectives,
        "host_bytes_per_chip": plan.host_bytes,
        "hbm_bytes_moved_per_chip": plan.moved_bytes,
        "estimated_step_seconds_without_overlap": plan.estimate and plan.estimate.at_worst,
        "reasons": plan.reasons,
    }
    return json.dumps(record, ensure_ascii=False)


def show(plan: Plan, console: Console) -> None:
    """Tables of memory, work and time, then the assumptions."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "1"
    config = plan.config
    console.print(
        f"[bold]{config.name}[/bold] on {plan.topology}, mesh {mesh}: "
        f"{plan.model['parameters'] / 1e9:.3g}e9 parameters, batch {config.data.batch_size} x "
        f"{config.data.sequence_length}, remat {config.model.remat}, "
        f"{config.train.microbatches} microbatch(es)",
        highlight=False,
    )
    console.print(_memory_table(plan))
    if not plan.fits:
        console.print(verdict(plan), style="bold red", highlight=False)
        return
    console.print(_work_table(plan))
    console.print(verdict(plan), style="bold green", highlight=False)
    for name, reason in plan.reasons.items():
        console.print(f"{name}: {reason}", highlight=False)
    console.print("Estimated, not measured: " + "; ".join(ASSUMPTIONS) + ".", highlight=False)


def verdict(plan: Plan) -> str:
    """Whether it fits, and how fast it may be, in one line."""
    total, room = plan.memory["total"] / GIB, plan.hbm_bytes / GIB
    if not plan.fits:
        return (
            f"does not fit: needs {total:.2f} GiB of {room:.2f} GiB per chip; more chips along "
            "mesh.fsdp, model.remat='full', train.microbatches or a smaller data.batch_size help "
            "(--search tries them)"
        )
    estimate = plan.estimate
    return (
        f"fits: {total:.2f} of {room:.0f} GiB per chip; estimated step {seconds(estimate.at_best)} "
        f"at best (MFU {plan.mfu:.0%}), bound by {estimate.bound_by}; "
        f"{seconds(estimate.at_worst)} without any overlap"
    )


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _memory_table(plan: Plan) -> Table:
    table = Table("memory per chip", "GiB", "of HBM")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, size in plan.memory.items():
        if size is None or (size == 0 and name != "total"):
            continue
        share = f"{size / plan.hbm_bytes:.1%}"
        table.add_row(name.replace("_", " "), f"{size / GIB:.3f}", share)
    if plan.host_bytes:
        table.add_row("in the host's memory", f"{plan.host_bytes / GIB:.3f}", "")
    return table


def _work_table(plan: Plan) -> Table:
    table = Table("per step and chip", "figure", "times", "estimated at peak")
    for column in table.columns[1:]:
        column.justify = "right"
    estimate, needed = plan.estimate, plan.model_flops
    flops = plan.matmul_flops + plan.pallas_flops - plan.spare_flops
    table.add_row("model FLOPs", f"{needed:.4g}", "", "")
    table.add_row("executed in XLA's products", f"{plan.matmul_flops:.4g}", "", "")
    for name, calls in sorted(plan.pallas_calls.items()):
        table.add_row(f"  Pallas {name}", "", f"{calls:,}", "")
    table.add_row("declared by Pallas calls", f"{plan.pallas_flops:.4g}", "", "")
    if plan.spare_flops:
        table.add_row("  for rows without a token, skipped", f"-{plan.spare_flops:.4g}", "", "")
    table.add_row(
        "executed in all", f"{flops:.4g}", f"{flops / needed:.2f}x", seconds(estimate.compute)
    )
    table.add_row("HBM bytes", f"{plan.moved_bytes / 1e9:.1f} GB", "", seconds(estimate.hbm))
    for kind, sent in sorted(plan.wire_bytes.items(), key=lambda pair: -pair[1]):
        times = plan.collectives.get(kind)
        table.add_row(f"  {kind}", f"{sent / 1e9:.3f} GB", f"{times:,}" if times else "", "")
    total = sum(plan.wire_bytes.values())
    time = seconds(estimate.wire + estimate.between_slices)
    table.add_row("wire bytes", f"{total / 1e9:.2f} GB", "", time)
    return table


def plot(plan: Plan, path: str | Path) -> None:
    """Memory of one chip by part, against its HBM, as an image (its type by the file's ending)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = {
        name.replace("_", " "): size / GIB
        for name, size in plan.memory.items()
        if name != "total" and size
    } or {"needed": plan.memory["total"] / GIB}
    figure, axes = pyplot.subplots(figsize=(8, 1.8), layout="constrained")
    left = 0.0
    for name, size in parts.items():
        axes.barh(0, size, left=left, label=f"{name} {size:.2f}")
        left += size
    axes.axvline(plan.hbm_bytes / GIB, color="black", linestyle="--")
    axes.set(yticks=[], xlabel=f"GiB of one chip of {plan.topology}; dashed: its HBM")
    axes.set_title(plan.config.name, loc="left")
    axes.legend(ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.05), fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
