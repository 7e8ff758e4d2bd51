"""Looks for the mesh, the remat policy and the number of microbatches that make a step fastest.

Every combination that divides is forecast (`guess`); the most promising are compiled, and only what
was compiled is shown.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from jgpt.config import Config, ConfigError
from jgpt.planning.guess import divides, guess
from jgpt.planning.report import GIB, seconds
from jgpt.planning.step import Plan, PlanError, decided, make_plan
from jgpt.planning.topologies import Topology

REMAT = ("none", "dots", "full")
MICROBATCHES = (1, 2, 4, 8)
SPARE = 0.9
"""Share of HBM that a forecast may fill to be compiled before the others."""


def run(config: Config, topology: Topology, tries: int, console: Console, **options) -> Plan:
    """Compiles the best forecasts, shows a table of the results, and returns the best plan.

    Args:
        config: what to plan; its mesh, remat and microbatches are replaced.
        topology: where it is to run.
        tries: programs to compile at most.
        console: what the table and the override lines are printed on.
        options: of `make_plan`.

    Raises:
        ConfigError: no mesh of these chips divides the model.
        PlanError: nothing compiled.
    """
    chosen = promising(decided(config), topology)[:tries]
    if not chosen:
        raise ConfigError(
            f"no mesh of {topology.chips} chips divides this model and data.batch_size "
            f"({config.data.batch_size}); choose a batch that is a multiple of the chips"
        )
    plans, refused = [], []
    for number, candidate in enumerate(chosen, 1):
        console.print(f"{number}/{len(chosen)} {overrides(candidate)}", highlight=False)
        try:
            plans.append(make_plan(candidate, topology, **options))
        except (ConfigError, PlanError) as error:
            refused.append(f"{overrides(candidate)}: {error}")
    if not plans:
        raise PlanError(f"none of {len(chosen)} programs compiled; the last: {refused[-1]}")
    plans.sort(key=rank)
    console.print(table(plans))
    for line in refused:
        console.print(f"refused: {line}", highlight=False)
    for plan in plans:
        if plan.fits:
            print(overrides(plan.config))
    return plans[0]


def rank(plan: Plan) -> tuple:
    """Plans that fit first, then by estimated time at best, at worst, then by memory."""
    if not plan.fits:
        return (True, 0.0, 0.0, plan.memory["total"])
    return (False, plan.estimate.at_best, plan.estimate.at_worst, plan.memory["total"])


def promising(config: Config, topology: Topology) -> list[Config]:
    """Candidates by forecast, those first that are expected to fit; the plainest of equals first.

    Args:
        config: with the vocabulary size decided.
        topology: where it is to run.
    """
    scored = []
    for order, candidate in enumerate(candidates(config, topology)):
        sizes = dataclasses.asdict(candidate.mesh)
        forecast = guess(candidate, topology, sizes)
        too_large = forecast.memory > SPARE * topology.chip.hbm_bytes
        size = forecast.memory if too_large else 0.0
        scored.append((too_large, size, forecast.seconds, order, candidate))
    return [candidate for *_, candidate in sorted(scored, key=lambda item: item[:4])]


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
    """Every combination that divides model and batch; the context axis stays as it is."""
    devices = topology.slices * topology.devices_per_slice
    experts = config.model.moe.num_experts if "moe" in config.model.ffn_pattern else 1
    context = max(config.mesh.context, 1)
    for tensor, expert in itertools.product(_divisors(8), _divisors(experts or 1)):
        rest, odd = divmod(devices, tensor * expert * context)
        if odd:
            continue
        for fsdp in _divisors(rest):
            sizes = {
                "data": rest // fsdp,
                "fsdp": fsdp,
                "expert": expert,
                "tensor": tensor,
                "context": context,
            }
            if sizes["data"] % topology.slices:
                continue
            for microbatches, remat in itertools.product(MICROBATCHES, REMAT):
                if config.data.batch_size % microbatches:
                    continue
                candidate = dataclasses.replace(
                    config,
                    mesh=dataclasses.replace(config.mesh, **sizes),
                    model=dataclasses.replace(config.model, remat=remat),
                    train=dataclasses.replace(config.train, microbatches=microbatches),
                )
                if divides(candidate, sizes):
                    yield candidate


def overrides(config: Config) -> str:
    """What to add to the command of a run."""
    mesh = " ".join(
        f"--config.mesh.{name}={size}" for name, size in dataclasses.asdict(config.mesh).items()
    )
    return (
        f"{mesh} --config.model.remat={config.model.remat} "
        f"--config.train.microbatches={config.train.microbatches}"
    )


def table(plans: list[Plan]) -> Table:
    """One row per plan, in the order given."""
    shown = Table("mesh", "remat", "parts", "GiB", "step at best", "no overlap", "MFU", "bound by")
    for plan in plans:
        mesh = " x ".join(f"{name} {n}" for name, n in plan.mesh.items() if n > 1) or "1"
        row = [mesh, plan.config.model.remat, str(plan.config.train.microbatches)]
        row.append(f"{plan.memory['total'] / GIB:.2f}")
        if plan.fits:
            estimate = plan.estimate
            row += [seconds(estimate.at_best), seconds(estimate.at_worst)]
            row += [f"{plan.mfu:.0%}", estimate.bound_by]
        else:
            row += ["does not fit", "", "", ""]
        shown.add_row(*row)
    return shown


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
