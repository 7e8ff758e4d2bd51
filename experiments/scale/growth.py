"""Weak scaling by the planner: the same work per chip on 8, 16, 64 and 256 chips of v5e.

    python experiments/scale/growth.py [--model dense] [--plot growth.png]

Compiled ahead of time, no TPU. Per chip and step: memory, bytes sent, and the planner's estimate of
time, of which `docs/plan.md` says what it takes for granted. Times are compared with those on the
fewest chips; 4 rows of 2,048 tokens a chip everywhere. Minutes per case, unless `jgpt.plan` has it
kept. Prints each row as soon as it is there, a table, and one JSON line last. A case that cannot
be compiled is a line of its own, and the exit status 1.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.benchmarks import harness
from experiments.scale.compare import GIB, planned
from jgpt.config import ConfigError
from jgpt.planning.step import PlanError

ROWS_PER_CHIP = 4
GROUPED = {"mesh.fsdp": 16}
"""Weights are cut over 16 chips and kept once per 16: what they send then does not grow."""
MODELS = {
    "dense": ("llama_1b", {8: {}, 16: {}, 64: GROUPED, 256: GROUPED}),
    "moe": (
        "moe_8x",
        {
            8: {},
            16: {},
            64: {"mesh.expert": 8},
            256: {"mesh.expert": 8, "mesh.data": 4},
        },
    ),
}
"""Config, and by number of chips what differs from it."""


def plan_on(name, chips, overrides):
    """The plan of a config on that many chips of v5e."""
    rows = {"data.batch_size": ROWS_PER_CHIP * chips}
    if "mesh.fsdp" in overrides:
        rows["mesh.data"] = chips // overrides["mesh.fsdp"]
    return planned(name, {**rows, **overrides}, f"v5e-{chips}")


FIGURES = {
    "memory, GiB": lambda plan: plan.memory["total"] / GIB,
    "wire, GB": lambda plan: sum(plan.wire_bytes.values()) / 1e9,
    "HBM, GB": lambda plan: plan.moved_bytes / 1e9,
    "links, s": lambda plan: plan.estimate.wire,
    "at best, s": lambda plan: plan.estimate.at_best,
    "without overlap, s": lambda plan: plan.estimate.at_worst,
}


def figures(plan):
    """What the table shows of a plan."""
    return {name: of(plan) for name, of in FIGURES.items()}


def plot(found, path):
    """Estimated time at best, relative to the fewest chips, and bytes sent, over chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for model, by_chips in found.items():
        chips = list(by_chips)
        times = [by_chips[n]["at best, s"] for n in chips]
        axes[0].plot(chips, [t / times[0] for t in times], "-o", label=model)
        axes[1].plot(chips, [by_chips[n]["wire, GB"] for n in chips], "-o", label=model)
    axes[0].axhline(1.1, color="black", linestyle=":", label="10% more")
    axes[0].set(title="estimated step time, relative to the fewest chips", ylim=(0, None))
    axes[1].set(title="GB sent per chip and step", ylim=(0, None))
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks([8, 16, 64, 256], ["8", "16", "64", "256"])
        axis.set_xlabel("chips of v5e")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def grow(model, chips_wanted):
    """(found, lines, rows, failures) of a model: figures by chips, lines of the table, JSON's."""
    name, meshes = MODELS[model]
    found, lines, rows, failures = {}, [], [], []
    for chips in chips_wanted or meshes:
        case = f"{model}, {chips} chips"
        try:
            plan = plan_on(name, chips, meshes[chips])
        except (ConfigError, PlanError) as error:
            failures.append(f"{case}: {error}")
            print(failures[-1], flush=True)
            continue
        now = found[chips] = figures(plan)
        growth = now["at best, s"] / next(iter(found.values()))["at best, s"]
        mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
        lines.append([f"{case}, {mesh}", *now.values(), growth])
        shown = ", ".join(f"{figure} {value:.4g}" for figure, value in now.items())
        print(f"{lines[-1][0]}: {shown}; {growth:.3f}", flush=True)
        rows += [harness.row(case, *figure.split(", "), value) for figure, value in now.items()]
    return found, lines, rows, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="all by default")
    parser.add_argument("--chips", action="append", type=int, help="all by default")
    parser.add_argument("--plot", help="image to write")
    arguments = parser.parse_args()
    found, lines, rows, failures = {}, [], [], []
    for model in arguments.model or MODELS:
        found[model], more_lines, more_rows, more_failures = grow(model, arguments.chips)
        lines, rows, failures = lines + more_lines, rows + more_rows, failures + more_failures
    columns = ["per chip and step", *FIGURES, "at best, over the fewest chips"]
    harness.show("the same work per chip on more of them", columns, lines)
    if arguments.plot:
        plot(found, arguments.plot)
    harness.emit("growth", rows, ("libtpu",))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
