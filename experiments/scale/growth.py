"""Weak scaling by the planner: the same work per chip on 8, 16, 64 and 256 chips of v5e.

    python experiments/scale/growth.py [--model dense] [--plot growth.png]

Compiled ahead of time, no TPU. Per chip and step: memory, bytes sent, and the planner's estimate of
time, of which `docs/plan.md` says what it takes for granted. Times are compared with those on the
fewest chips; 4 rows of 2,048 tokens a chip everywhere. Minutes per case, unless `jgpt.plan` has it
kept. Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.benchmarks import harness
from experiments.scale.compare import GIB, planned

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


def figures(plan):
    """What the table shows of a plan."""
    return {
        "memory, GiB": plan.memory["total"] / GIB,
        "wire, GB": sum(plan.wire_bytes.values()) / 1e9,
        "links, s": plan.estimate.wire,
        "at best, s": plan.estimate.at_best,
        "without overlap, s": plan.estimate.at_worst,
    }


def plot(found, path):
    """Estimated time over chips, all overlapped and none, relative to the fewest chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for model, by_chips in found.items():
        chips = list(by_chips)
        for name, line in (("at best, s", "-o"), ("without overlap, s", "--o")):
            times = [by_chips[n][name] for n in chips]
            label = f"{model}, {name.removesuffix(', s')}"
            axes[0].plot(chips, [t / times[0] for t in times], line, label=label)
        axes[1].plot(chips, [by_chips[n]["wire, GB"] for n in chips], "-o", label=model)
    axes[0].axhline(1.1, color="black", linestyle=":", label="10% more")
    axes[0].set(title="estimated step time over that on 8 chips", ylim=(0, None))
    axes[1].set(title="GB sent per chip and step", ylim=(0, None))
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks([8, 16, 64, 256], ["8", "16", "64", "256"])
        axis.set_xlabel("chips of v5e")
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="all by default")
    parser.add_argument("--chips", action="append", type=int, help="all by default")
    parser.add_argument("--plot", help="image to write")
    arguments = parser.parse_args()
    found, rows, lines = {}, [], []
    for model in arguments.model or MODELS:
        name, meshes = MODELS[model]
        found[model] = {}
        for chips in arguments.chips or meshes:
            plan = plan_on(name, chips, meshes[chips])
            now = found[model][chips] = figures(plan)
            first = next(iter(found[model].values()))
            mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
            growth = now["at best, s"] / first["at best, s"]
            lines.append([f"{model}, {chips} chips, {mesh}", *now.values(), growth])
            rows += [
                harness.row(f"{model}, {chips} chips", *figure.split(", "), value)
                for figure, value in now.items()
            ]
    columns = ["per chip and step", *figures(plan), "at best, over the fewest chips"]
    harness.show("the same work per chip on more of them", columns, lines)
    if arguments.plot:
        plot(found, arguments.plot)
    harness.emit("growth", rows, ("libtpu",))


if __name__ == "__main__":
    main()
