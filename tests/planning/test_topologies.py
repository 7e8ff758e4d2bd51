"""Names of topologies, and what a chip can send in them."""

import pytest

from jgpt.config import ConfigError
from jgpt.planning.chips import CHIPS
from jgpt.planning.topologies import CUBIC, FLAT, parse_topology
from jgpt.training.metrics import peak_flops


@pytest.mark.parametrize(
    ("name", "compiler_name", "chips"),
    [
        ("v5e-16", "v5e:4x4", 16),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v4-512", "v4:4x8x8", 256),
        ("V5E:2X4", "v5e:2x4", 8),
        ("2xv5e-256", "v5e:16x16", 512),
    ],
)
def test_both_spellings_name_a_shape(name, compiler_name, chips):
    topology = parse_topology(name)
    assert (topology.compiler_name, topology.chips) == (compiler_name, chips)
    assert compiler_name.split(":")[1] in str(topology), "the shape is printed"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v5e-17", "v5e-16"),
        ("v5p-127", "v5p-128"),
        ("v9-8", "v5e"),
        ("v5q-8", "did you mean v5"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5e:3x4", "even"),
        ("pod", "v5p:4x4x4"),
        ("0xv5e-16", "1x"),
    ],
)
def test_an_unknown_name_is_one_line_with_a_remedy(name, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_tables_hold_as_many_chips_as_they_say():
    for table in (FLAT, CUBIC):
        for chips, shape in table.items():
            product = 1
            for size in shape:
                product *= size
            assert (product == chips and list(shape) == sorted(shape)) or shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("v4", "TPU v4"), ("v5e", "TPU v5 lite"), ("v5p", "TPU v5"), ("v6e", "TPU v6 lite")],
)
def test_peaks_are_those_that_training_reports_mfu_with(name, kind):
    assert CHIPS[name].peak_flops == peak_flops(kind)


def test_links_of_a_ring():
    """A line of n < 16 chips of v5e is no ring: the chip at its end has one link along it."""
    link = CHIPS["v5e"].link_bandwidth
    assert parse_topology("v5e-16").ring_bandwidth(4) == link
    assert parse_topology("v5e-16").ring_bandwidth(16) == 2 * link
    assert parse_topology("v5e-256").ring_bandwidth(16) == 2 * link
    assert parse_topology("v5e-256").ring_bandwidth(256) == 4 * link
    assert parse_topology("v5p-128").ring_bandwidth(64) == 6 * CHIPS["v5p"].link_bandwidth
