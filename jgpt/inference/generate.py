"""Cached decoding: one prefill of the prompts, then chunks of tokens, each one jitted loop.

Prompts may differ in length. They are padded on the right; padding is masked out of the prefill and
never enters the cache, and every row has random keys of its own, so that a row of a batch is what
it would be alone. The prefill takes all but the last token of a prompt and asks for no logits; the
decode loop feeds a row's last token and draws the next one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Int

from jgpt.config import SampleConfig
from jgpt.inference.sampling import sample
from jgpt.typing import Array, PyTree

CACHE_MULTIPLE = 128
PROMPT_MULTIPLE = 16
"""Lengths are rounded up to these, so that few different shapes are compiled; the TPU kernel of
decode attention wants the first."""


class CachedApply(Protocol):
    """`models.apply` with its config bound, as decoding calls it.

    With adapters that put something before every document it has attributes that say how much:
    `virtual_tokens`, which are token ids -P, ..., -1, and `past_tokens`, which take positions only.
    """

    def __call__(
        self, variables: PyTree, batch: dict[str, Array], *, output: str, cache: Any
    ) -> tuple[Array, Any]: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """What one chunk hands to the next."""

    cache: PyTree
    token: Int[Array, "B"]
    """the row's last token, not yet in the cache"""
    keys: Array
    """[B] random keys"""
    drawn: Int[Array, ""]
    """tokens drawn so far, per row"""
    done: Bool[Array, "B"]
    seen: Bool[Array, "B V"] | None
    """tokens of the text so far; None where nothing asks"""


class Generator:
    """Continues prompts. Compiles once per (rows, prompt length, cache length), each rounded up."""

    def __init__(
        self,
        apply: CachedApply,
        init_cache: Callable[[int, int], PyTree],
        config: SampleConfig,
        *,
        vocab_size: int,
        max_length: int,
        eos_id: int,
        forbidden: tuple[int, ...] = (),
        chunk: int = 32,
    ):
        """
        Args:
            apply: the model.
            init_cache: (rows, tokens) -> an empty cache (`models.init_cache`, config bound).
            config: how tokens are drawn, and how many at most.
            vocab_size: V.
            max_length: of prompt and new tokens together, with what adapters put before them; a row
                that reaches it ends there.
            eos_id: ends a row.
            forbidden: ids that are never drawn.
            chunk: tokens drawn per call to the device; a stream moves in steps of this.
        """
        self.config = config
        self.eos_id = eos_id
        self._apply = apply
        self._virtual_tokens = getattr(apply, "virtual_tokens", 0)
        self._past_tokens = getattr(apply, "past_tokens", 0)
        self._init_cache = init_cache
        self._vocab_size = vocab_size
        self._max_length = max_length - self._past_tokens
        self._forbidden = np.asarray(forbidden, np.int32)
        self._chunk = min(chunk, config.max_new_tokens)
        self._prefill = jax.jit(self._prefill_cache, static_argnames="slots")
        self._decode = jax.jit(self._decode_chunk, donate_argnames="state")

    def stream(
        self, variables: PyTree, prompts: np.ndarray, lengths: np.ndarray, key: Array
    ) -> Iterator[np.ndarray]:
        """Chunks [B, at most `chunk`] int32 of new tokens; a row that has ended repeats `eos_id`.

        Args:
            variables: of the model.
            prompts: [B, S] int32, padded on the right with anything.
            lengths: [B], from 1 to S.
            key: row i draws its t-th token with fold_in(fold_in(key, i), t).

        Raises:
            ValueError: an empty prompt, or one that leaves no room for a token.
        """
        prompts, lengths = np.asarray(prompts, np.int32), np.asarray(lengths, np.int32)
        if lengths.min() < 1 or lengths.max() > prompts.shape[1]:
            raise ValueError("every prompt needs at least one token; start documents with bos")
        prompts, lengths = with_virtual_tokens(prompts, lengths, self._virtual_tokens)
        left = min(self.config.max_new_tokens, self._max_length - int(lengths.max()))
        if left < 1:
            raise ValueError(
                f"a prompt of {lengths.max()} tokens, virtual ones included, leaves no room in "
                f"model.max_length ({self._max_length} without a learned prefix); shorten it"
            )
        slots = min(_round_up(int(lengths.max()) + left, CACHE_MULTIPLE), self._max_length)
        state = self._start(variables, prompts, lengths, key, slots)
        while left > 0:
            state, tokens = self._decode(variables, state)
            tokens = _on_host(tokens)[:, :left]
            left -= tokens.shape[1]
            yield tokens
            if (tokens[:, -1] == self.eos_id).all():
                return

    def __call__(
        self, variables: PyTree, prompts: np.ndarray, lengths: np.ndarray, key: Array
    ) -> list[list[int]]:
        """New tokens of every row, without the `eos_id` that ended it. Else as `stream`."""
        rows = np.concatenate(list(self.stream(variables, prompts, lengths, key)), axis=1)
        return [until(row.tolist(), self.eos_id) for row in rows]

    def _start(
        self, variables: PyTree, prompts: np.ndarray, lengths: np.ndarray, key: Array, slots: int
    ) -> DecodeState:
        rows = np.arange(len(lengths))
        seen = None
        if self.config.repetition_penalty != 1:
            seen = np.zeros((len(lengths), self._vocab_size), bool)
            for row in rows:
                seen[row, prompts[row, self._virtual_tokens : lengths[row]]] = True
        return DecodeState(
            cache=self._prefill(
                variables,
                _padded(prompts[:, : lengths.max() - 1], PROMPT_MULTIPLE),
                lengths - 1,
                slots=slots,
            ),
            token=jnp.asarray(prompts[rows, lengths - 1]),
            keys=jax.vmap(partial(jax.random.fold_in, key))(rows),
            drawn=jnp.zeros((), jnp.int32),
            done=jnp.zeros(len(lengths), bool),
            seen=None if seen is None else jnp.asarray(seen),
        )

    def _prefill_cache(
        self,
        variables: PyTree,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, "B"],
        slots: int,
    ) -> PyTree:
        cache = self._init_cache(tokens.shape[0], slots)
        if tokens.shape[1] == 0:
            return dataclasses.replace(cache, fresh=False)
        real = jnp.arange(tokens.shape[1]) < lengths[:, None]
        batch = {"inputs": tokens, "segment_ids": real.astype(jnp.int32)}
        _, aux = self._apply(variables, batch, output="hidden", cache=cache)
        return aux.cache

    def _decode_chunk(
        self, variables: PyTree, state: DecodeState
    ) -> tuple[DecodeState, Int[Array, "B N"]]:
        """Draws `chunk` tokens per row, fewer steps if all rows end sooner."""

        def unfinished(carry: tuple) -> Array:
            i, state, _ = carry
            return (i < self._chunk) & ~state.done.all()

        def draw(carry: tuple) -> tuple:
            i, state, tokens = carry
            state = self._draw_one(variables, state)
            return i + 1, state, tokens.at[:, i].set(state.token)

        tokens = jnp.full((state.token.shape[0], self._chunk), self.eos_id, jnp.int32)
        _, state, tokens = jax.lax.while_loop(unfinished, draw, (0, state, tokens))
        return state, tokens

    def _draw_one(self, variables: PyTree, state: DecodeState) -> DecodeState:
        logits, aux = self._apply(
            variables, {"inputs": state.token[:, None]}, output="logits", cache=state.cache
        )
        logits = logits[:, 0].at[:, self._forbidden].set(-jnp.inf)
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.drawn)
        token = sample(keys, logits, self.config, state.seen)
        token = jnp.where(state.done, self.eos_id, token)
        seen = state.seen
        if seen is not None:
            seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
        return DecodeState(
            cache=aux.cache,
            token=token,
            keys=state.keys,
            drawn=state.drawn + 1,
            done=state.done | (token == self.eos_id),
            seen=seen,
        )


def until(tokens: list[int], end: int) -> list[int]:
    """`tokens` before the first `end`."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def pad_prompts(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """([B, S] int32 padded on the right with 0, lengths [B])."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(padded, prompts):
        row[: len(prompt)] = prompt
    return padded, lengths


def with_virtual_tokens(
    prompts: np.ndarray, lengths: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [B, count + S] that begin with the ids -count, ..., -1, and their lengths."""
    before = np.broadcast_to(np.arange(-count, 0, dtype=np.int32), (len(prompts), count))
    return np.concatenate([before, prompts], axis=1), lengths + count


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _padded(tokens: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % multiple)))


def _on_host(tokens: Array) -> np.ndarray:
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tokens, tiled=True)
    return np.asarray(tokens)
