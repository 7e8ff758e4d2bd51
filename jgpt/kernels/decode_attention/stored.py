"""Keys and values of past tokens as decoding stores and reads them.

Two forms, both with the tokens of one head side by side, since that is what a product over them and
a copy from HBM want to read:

- `Slots`, contiguous: each row has C slots of its own, and every slot says which position it holds;
- `Pages`: pages of P tokens in one pool, and a table that says which pages a row has, in order
  (Kwon et al. 2023, "PagedAttention", section 4). Rows grow page by page, and none needs its
  longest length reserved.

Either may hold int8 values: x is stored as round(x / s) with s = max |x| / 127 of one token and
head. A score is then s_k (q . k) and an output a sum of (p s_v) v, so the integers go straight into
the products and the scales are applied to scores and probabilities, which are d times fewer.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jgpt.typing import Array

INT8_MAX = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """A row's tokens in slots of its own; a token at position p lives in slot `p % C`."""

    k: Float[Array, "B K C d"]
    v: Float[Array, "B K C u"]
    positions: Int[Array, "B C"]
    """int32; -1 marks an empty slot."""
    k_scales: Float[Array, "B K C"] | None = None
    """float32, where k is int8."""
    v_scales: Float[Array, "B K C"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """Rows' tokens in pages of a common pool; position p is at `p % P` of the row's page `p // P`.

    Rows that share a beginning may share its whole pages: reading does not change them.
    """

    k: Float[Array, "N K P d"]
    v: Float[Array, "N K P u"]
    table: Int[Array, "B M"]
    """int32, pages of each row in order; -1 where none is allotted."""
    lengths: Int[Array, "B"]
    """int32, tokens of each row."""
    k_scales: Float[Array, "N K P"] | None = None
    """float32, where k is int8."""
    v_scales: Float[Array, "N K P"] | None = None

    @property
    def page_size(self) -> int:
        return self.k.shape[2]


Stored = Slots | Pages


class Contents(NamedTuple):
    """A piece of a cache, of T slots in each row."""

    k: Float[Array, "B K T d"]
    v: Float[Array, "B K T u"]
    k_scales: Float[Array, "B K T"] | None
    v_scales: Float[Array, "B K T"] | None
    positions: Int[Array, "B T"]
    """-1 where nothing is stored."""


def num_slots(stored: Stored) -> int:
    """T, the most tokens that a row can hold."""
    if isinstance(stored, Slots):
        return stored.positions.shape[1]
    return stored.table.shape[1] * stored.page_size


def contents(stored: Stored, start: int | Array = 0, size: int | None = None) -> Contents:
    """Slots `start` to `start + size` of every row, all of them by default.

    Args:
        stored: the cache.
        start: first slot; of pages, a multiple of the page size.
        size: slots; of pages, a multiple of the page size.
    """
    size = num_slots(stored) if size is None else size
    if isinstance(stored, Slots):
        return Contents(
            *(
                None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)
                for x in (stored.k, stored.v, stored.k_scales, stored.v_scales)
            ),
            positions=jax.lax.dynamic_slice_in_dim(stored.positions, start, size, axis=1),
        )
    first, count = start // stored.page_size, size // stored.page_size
    pages = jax.lax.dynamic_slice_in_dim(stored.table, first, count, axis=1)
    positions = start + jnp.arange(size, dtype=jnp.int32)
    there = (positions < stored.lengths[:, None]) & jnp.repeat(pages >= 0, stored.page_size, axis=1)

    def gathered(pool: Array | None) -> Array | None:
        if pool is None:
            return None
        rows = jnp.moveaxis(jnp.take(pool, pages, axis=0, mode="clip"), 2, 1)  # [B,K,M,P,...]
        return rows.reshape(*rows.shape[:2], size, *rows.shape[4:])

    return Contents(
        *map(gathered, (stored.k, stored.v, stored.k_scales, stored.v_scales)),
        positions=jnp.where(there, positions, -1),
    )


def quantise(x: Float[Array, "... d"]) -> tuple[Int[Array, "... d"], Float[Array, "..."]]:
    """int8 values and their float32 scales, one per last axis; `values * scales` is about x."""
    x = x.astype(jnp.float32)
    scales = jnp.max(abs(x), axis=-1) / INT8_MAX
    values = jnp.round(x / jnp.where(scales == 0, 1, scales)[..., None])
    return values.astype(jnp.int8), scales


def write(
    stored: Stored,
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K u"],
    positions: Int[Array, "B S"],
) -> Stored:
    """The cache with new tokens in it; of more than C new ones in a row of slots, the last C.

    A token for which no page is allotted is lost: allot pages first.

    Args:
        stored: the cache.
        k: keys of the new tokens.
        v: their values.
        positions: of the tokens; -1 for padding, which is not stored.
    """
    scales = {}
    if stored.k_scales is not None:
        k, scales["k_scales"] = quantise(k)
        v, scales["v_scales"] = quantise(v)
    new = {"k": k, "v": v, **scales}
    if isinstance(stored, Slots):
        slots = stored.positions.shape[1]
        newest = jnp.max(positions, axis=1, keepdims=True)
        keep = (positions >= 0) & (positions > newest - slots)
        rows = jnp.arange(positions.shape[0])[:, None]
        index = jnp.where(keep, positions % slots, slots)
        after = {"positions": _put(stored.positions, rows, index, positions)}
    else:
        number, size = stored.k.shape[0], stored.page_size
        rows = jnp.take_along_axis(
            stored.table, positions // size, axis=1, mode="fill", fill_value=-1
        )
        rows = jnp.where((positions >= 0) & (rows >= 0), rows, number)
        index = positions % size
        after = {"lengths": jnp.maximum(stored.lengths, jnp.max(positions, axis=1) + 1)}
    for name, x in new.items():
        after[name] = _put(getattr(stored, name), rows, index, x)
    return dataclasses.replace(stored, **after)


def _put(old: Array, rows: Array, index: Array, new: Array) -> Array:
    """`old` [N, C] or [N, K, C, ...] with new [B, S] or [B, S, K, ...] at slots (rows, index).

    What lies outside is left out. A single token is given a second one that is left out: XLA's
    CPU backend would not scatter it alone but make the new cache twice, to read and to keep, and
    copy all of it at every step.

    Args:
        old: what is written to.
        rows: [B, 1 or S] along N.
        index: [B, S] along C.
        new: cast to old's dtype.
    """
    heads = (slice(None),) * (old.ndim > 2)
    if index.size == 1:
        outside = jnp.full_like(index, old.shape[len(heads) + 1])
        index = jnp.concatenate([index, outside], axis=1)
        new = jnp.concatenate([new, new], axis=1)
    return old.at[(rows, *heads, index)].set(new.astype(old.dtype), mode="drop")
