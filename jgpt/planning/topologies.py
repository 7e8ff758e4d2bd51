"""Names of TPU slices: `v5e-16`, `v5p-128` (Cloud counts cores there), `v5p:4x4x4`, `2xv5e-256`."""

import difflib
import math
import re
from dataclasses import dataclass

from jgpt.config import ConfigError
from jgpt.planning.chips import CHIPS, Chip

FLAT = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
    256: (16, 16),
}  # fmt: skip
CUBIC = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
    256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip
"""Chips to the shape of the slice that Cloud gives for that many."""
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6lite": "v6e", "trillium": "v6e"}
NAME = re.compile(r"(?:(\d+)x)?([a-z]\w*?)(?:-(\d+)|:(\d+(?:x\d+)+))")


@dataclass(frozen=True)
class Topology:
    """Slices of one shape."""

    chip: Chip
    shape: tuple[int, ...]
    """chips of a slice along each dimension of its torus"""
    slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        return self.chips_per_slice * self.slices

    @property
    def devices_per_slice(self) -> int:
        return self.chips_per_slice * self.chip.devices_per_chip

    @property
    def compiler_name(self) -> str:
        """Of one slice, as the compiler takes it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def compiler_options(self) -> dict:
        """What else the compiler must be told: a single chip is less than a usual host."""
        if self.chips_per_slice == 1:
            return {"chips_per_host_bounds": (1, 1, 1)}
        return {}

    @property
    def name(self) -> str:
        """One that `parse_topology` takes."""
        return f"{self.slices}x{self.compiler_name}" if self.slices > 1 else self.compiler_name

    def __str__(self) -> str:
        slices = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{slices}{self.compiler_name} ({self.chips} chips)"

    def ring_bandwidth(self, group: int) -> float:
        """bytes/s that a chip can send, one direction each, in a collective over `group` chips.

        The group is taken to lie along as few dimensions of the torus as hold it, the longest
        first, and to use their links both ways; a dimension whose ends are not joined counts once,
        since the chip at its end has one link.
        """
        reached, bandwidth = 1, 0.0
        for size in sorted(self.shape, reverse=True):
            if size == 1:
                break
            bandwidth += self.chip.link_bandwidth * (2 if size >= self.chip.wraps_from else 1)
            reached *= size
            if reached >= group:
                break
        return bandwidth or self.chip.link_bandwidth


def parse_topology(name: str) -> Topology:
    """The topology of that name.

    `GENERATION-N` as Google Cloud writes it: N counts chips of v5e and v6e, cores (two per chip) of
    v4 and v5p. `GENERATION:AxB[xC]` counts chips. `KxNAME` are K slices.

    Raises:
        ConfigError: no such generation or size.
    """
    match = NAME.fullmatch(name.strip().lower())
    if not match:
        raise ConfigError(
            f"--topology={name!r} is no topology; write one such as v5e-16, v5p-128, v5p:4x4x4 or "
            "2xv5e-256"
        )
    slices, generation, count, shape = match.groups()
    generation = ALIASES.get(generation, generation)
    if generation not in CHIPS:
        close = difflib.get_close_matches(generation, CHIPS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"--topology={name!r}: generation {generation!r} is not known{hint} "
            f"(known: {', '.join(CHIPS)})"
        )
    chip = CHIPS[generation]
    if shape:
        found = _checked(tuple(int(n) for n in shape.split("x")), chip, name)
    else:
        found = _of_size(int(count), chip, name)
    if slices == "0":
        raise ConfigError(f"--topology={name!r} has no slices; write at least 1x")
    return Topology(chip, found, int(slices or 1))


def _of_size(count: int, chip: Chip, name: str) -> tuple[int, ...]:
    table = FLAT if chip.dimensions == 2 else CUBIC
    chips, rest = divmod(count, chip.cores_named)
    if rest or chips not in table:
        sizes = ", ".join(f"{chip.name}-{n * chip.cores_named}" for n in table)
        raise ConfigError(f"--topology={name!r} is no size of {chip.name}; choose one of {sizes}")
    return table[chips]


def _checked(shape: tuple[int, ...], chip: Chip, name: str) -> tuple[int, ...]:
    if len(shape) != chip.dimensions:
        example = "4x4" if chip.dimensions == 2 else "4x4x4"
        raise ConfigError(
            f"--topology={name!r}: a {chip.name} slice has {chip.dimensions} dimensions; write "
            f"{chip.name}:{example}"
        )
    whole_hosts = all(size % 2 == 0 for size in shape[:2]) and min(shape) > 0
    if not whole_hosts and math.prod(shape) != 1:
        raise ConfigError(
            f"--topology={name!r}: hosts have 2x2 chips, so the first two sizes must be even"
        )
    return shape
