"""Which rows of which tile belong to which group: the tables that the TPU kernels walk.

Rows are cut into tiles of a fixed size, groups begin and end anywhere. A *visit* is a tile and one
group that has rows in it, so a tile in which one group ends and another begins is visited twice in
a row and its rows stay on the chip. Sizes are data, so the tables are computed at run time and
reach the kernel in scalar memory.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jgpt.typing import Array

FIRST_OF_GROUP, LAST_OF_GROUP, FIRST_OF_TILE, LAST_OF_TILE, ODD = 1, 2, 4, 8, 16
"""Bits of a visit's kind; ODD: of the groups visited so far, this has an odd number."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visits:
    """Tables over at most T + E visits of T tiles and E groups; entries from `counts[0]` on are
    not used."""

    counts: Array
    """[2] int32: visits; tiles with rows that some group owns."""
    groups: Array
    """[T + E] int32: the group, or E where a tile has no owned row."""
    tiles: Array
    """[T + E] int32, ascending."""
    lows: Array
    """[T + E] int32: the group's first row in the tile."""
    highs: Array
    """[T + E] int32: behind its last one; equal to the first where nothing is to compute."""
    kinds: Array
    """[T + E] int32: the bits above."""
    following: Array
    """[T + E] int32: the next group that is visited; E after the last."""

    def tables(self) -> tuple[Array, ...]:
        """In the order in which kernels take them."""
        return (
            self.counts,
            self.groups,
            self.tiles,
            self.lows,
            self.highs,
            self.kinds,
            self.following,
        )


def make_visits(
    group_sizes: Array, num_tiles: int, tile: int, *, every_group: bool = False
) -> Visits:
    """The walk over tiles in order, and in each over its groups in order.

    Args:
        group_sizes: [E] int32, summing to at most `num_tiles * tile`.
        num_tiles: T.
        tile: rows of a tile.
        every_group: empty groups have a visit too, and tiles without an owned row have none;
            else it is the other way around.
    """
    sizes = group_sizes.astype(jnp.int32)
    num_groups = sizes.shape[0]
    ends = jnp.cumsum(sizes)
    starts = ends - sizes
    owned_tiles = -(-ends[-1] // tile)
    first = jnp.minimum(starts // tile, num_tiles - 1)
    count = jnp.where(sizes > 0, -(-ends // tile) - first, int(every_group))
    # behind the groups comes what no group owns, from the next tile's first row on
    rest = jnp.where(every_group, 0, num_tiles - owned_tiles)
    first, count = jnp.append(first, owned_tiles), jnp.append(count, rest)
    starts, ends = jnp.append(starts, 0), jnp.append(ends, 0)

    behind = jnp.cumsum(count)
    visit = jnp.arange(num_tiles + num_groups, dtype=jnp.int32)
    group = jnp.sum(behind[:, None] <= visit, axis=0, dtype=jnp.int32)
    group = jnp.minimum(group, num_groups)
    within = visit - (behind - count)[group]
    tiles = first[group] + within
    lows, highs = (jnp.clip(x[group] - tiles * tile, 0, tile) for x in (starts, ends))
    highs = jnp.maximum(lows, highs)

    changes = jnp.append(True, tiles[1:] != tiles[:-1])
    ends_tile = jnp.append(changes[1:], True) | (visit == behind[-1] - 1)
    odd = (jnp.cumsum(count > 0) % 2 == 0)[group]
    kinds = (
        FIRST_OF_GROUP * (within == 0)
        + LAST_OF_GROUP * (within == count[group] - 1)
        + FIRST_OF_TILE * changes
        + LAST_OF_TILE * ends_tile
        + ODD * odd
    )
    following = jnp.sum(behind[:, None] <= behind[group], axis=0, dtype=jnp.int32)
    arrays = (
        jnp.stack([behind[-1], owned_tiles]),
        group,
        tiles,
        lows,
        highs,
        kinds,
        jnp.minimum(following, num_groups),
    )
    return Visits(*(x.astype(jnp.int32) for x in arrays))
