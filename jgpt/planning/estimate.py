"""From what a step does to how long it takes at best: an estimate, never a measurement.

Each engine of a chip (matrix units, HBM, links) is taken to run at its published peak. With
everything overlapped a step lasts as long as the busiest engine: no run is faster. With nothing
overlapped it lasts the sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jgpt.planning.chips import DATA_CENTRE_BANDWIDTH
from jgpt.planning.topologies import Topology

ASSUMPTIONS = (
    "every engine at its published peak; at best all overlap, at worst none do",
    "collectives are ring algorithms along as few dimensions of the torus as hold their group",
    "Pallas kernels count by what they declare; element-wise work is free beside its HBM bytes",
)


@dataclass(frozen=True)
class Estimate:
    """Seconds per step on one chip."""

    compute: float
    hbm: float
    wire: float
    between_slices: float

    @property
    def parts(self) -> dict[str, float]:
        return {
            "matrix units": self.compute,
            "HBM": self.hbm,
            "links between chips": self.wire,
            "network between slices": self.between_slices,
        }

    @property
    def at_best(self) -> float:
        """All engines overlap."""
        return max(self.parts.values())

    @property
    def at_worst(self) -> float:
        """None do."""
        return sum(self.parts.values())

    @property
    def bound_by(self) -> str:
        """The busiest engine."""
        return max(self.parts, key=self.parts.__getitem__)


def estimate(
    topology: Topology,
    flops: float,
    hbm_bytes: float,
    wire_bytes_by_group: Mapping[int, float],
    gradient_bytes: float,
) -> Estimate:
    """How long a step takes.

    Args:
        topology: what it runs on.
        flops: of matrix products per chip, Pallas calls included.
        hbm_bytes: read and written per chip.
        wire_bytes_by_group: sent per chip within a slice, by the number of chips that exchange; 0
            for exchanges between neighbours.
        gradient_bytes: of the float32 gradients that one chip holds; several slices sum theirs.
    """
    chip, slices = topology.chip, topology.slices
    wire = sum(
        sent / topology.ring_bandwidth(group or 2) for group, sent in wire_bytes_by_group.items()
    )
    return Estimate(
        compute=flops / chip.peak_flops,
        hbm=hbm_bytes / chip.hbm_bandwidth,
        wire=wire,
        between_slices=between_slices_bytes(slices, gradient_bytes) / DATA_CENTRE_BANDWIDTH,
    )


def between_slices_bytes(slices: int, gradient_bytes: float) -> float:
    """Sent per chip to other slices: a ring all-reduce of its share of the gradients."""
    return 2 * gradient_bytes * (slices - 1) / slices
