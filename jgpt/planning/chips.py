"""The chips that a plan can be made for, from their maker's published figures."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One generation of TPU, per chip."""

    name: str
    peak_flops: float
    """bfloat16 FLOP/s"""
    hbm_bytes: int
    hbm_bandwidth: float
    """bytes/s"""
    link_bandwidth: float
    """bytes/s of one link between neighbours, in one direction"""
    dimensions: int
    """of the torus: two links per dimension"""
    wraps_from: int
    """chips along a dimension from which its ends are joined to a ring"""
    chips_per_host: int = 4
    devices_per_chip: int = 1
    """JAX devices that the compiler describes per chip; each has its share of everything here"""
    cores_named: int = 1
    """what Cloud's name of a size counts, per chip"""


CHIPS: dict[str, Chip] = {
    "v4": Chip("v4", 275e12, 32 * GIB, 1.228e12, 45e9, 3, 4, devices_per_chip=2, cores_named=2),
    "v5e": Chip("v5e", 197e12, 16 * GIB, 0.819e12, 45e9, 2, 16),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 2.765e12, 90e9, 3, 4, cores_named=2),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 1.64e12, 90e9, 2, 16),
}
"""Peaks, sizes and HBM bandwidth: Google Cloud's pages of each generation ("System architecture").
Link bandwidth, dimensions and wrap-around: Austin et al. 2025, "How to Scale Your Model", part 2.
The compiler leaves a program a little less than all HBM (15.75 GiB of v5e's 16)."""

DATA_CENTRE_BANDWIDTH = 6.25e9
"""bytes/s per chip between slices, one direction: 200 Gbit/s per host of four chips (same book)."""
