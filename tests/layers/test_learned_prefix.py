"""Attention with a learned prefix against one softmax over the prefix's keys and the text's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt.kernels.attention.mask import bias_scores, row_indices, visible
from jgpt.layers.key_value import KeysAndValues, Prefix, attend
from jgpt.typing import AlibiBias, Mask

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH, VALUE_WIDTH, PREFIX = 2, 24, 4, 2, 8, 6, 3
SEGMENTS = np.stack([[1] * 9 + [2] * 15, [1] * 20 + [0] * 4]).astype(np.int32)
POSITIONS = np.stack([[*range(9), *range(15)], [*range(20), *range(4)]]).astype(np.int32)
PACKED = {"q_segment_ids": SEGMENTS, "kv_segment_ids": SEGMENTS}
CASES = {
    "packed, in a window": ({"window": 5, **PACKED}, {}),
    "packed, with sinks, softcap and bias": (
        PACKED,
        {"sinks": True, "softcap": 2.0, "bias": True},
    ),
}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [
        (ROWS, LENGTH, HEADS, WIDTH),
        (ROWS, LENGTH, KV_HEADS, WIDTH),
        (ROWS, LENGTH, KV_HEADS, VALUE_WIDTH),
        (ROWS, PREFIX, KV_HEADS, WIDTH),
        (ROWS, PREFIX, KV_HEADS, VALUE_WIDTH),
    ]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def options_of(case):
    mask, options = CASES[case]
    rng = np.random.default_rng(1)
    found = {"scale": 0.7, **options}
    if "sinks" in options:
        found["sinks"] = jnp.asarray(rng.standard_normal(HEADS), jnp.float32)
    if "bias" in options:
        found["bias"] = AlibiBias(jnp.asarray(rng.random(HEADS), jnp.float32))
    return Mask(**{name: jnp.asarray(x) if x is SEGMENTS else x for name, x in mask.items()}), found


def at_once(q, k, v, prefix_k, prefix_v, mask, *, scale, softcap=0.0, bias=None, sinks=None):
    """One softmax over [prefix; text], as it is written in the papers."""
    keys = jnp.repeat(jnp.concatenate([prefix_k, k], axis=1), HEADS // KV_HEADS, axis=2)
    values = jnp.repeat(jnp.concatenate([prefix_v, v], axis=1), HEADS // KV_HEADS, axis=2)
    scores = jnp.einsum("bshd,bthd->bhst", q, keys) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    at = row_indices(mask, LENGTH, LENGTH)
    if bias is not None:
        before = POSITIONS[:, None, :, None] + PREFIX - np.arange(PREFIX)
        slopes = bias.slopes[:, None, None]
        scores = scores.at[..., :PREFIX].add(-slopes * before)
        scores = scores.at[..., PREFIX:].add(bias_scores(bias, at))
    allowed = visible(mask, at, mask.q_segment_ids, mask.kv_segment_ids)
    allowed = jnp.broadcast_to(allowed, (ROWS, LENGTH, LENGTH))
    allowed = jnp.concatenate([jnp.ones((ROWS, LENGTH, PREFIX), bool), allowed], axis=2)[:, None]
    scores = jnp.where(allowed, scores, -jnp.inf)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks[:, None, None], (ROWS, HEADS, LENGTH, 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : PREFIX + LENGTH]
    return jnp.einsum("bhst,bthd->bshd", weights, values)


def in_parts(q, k, v, prefix_k, prefix_v, mask, **options):
    kv = KeysAndValues(k, v, Prefix(prefix_k, prefix_v))
    return attend(q, kv, mask, positions=jnp.asarray(POSITIONS), **options)


@pytest.mark.parametrize("case", CASES)
def test_prefix_and_text_are_one_softmax(case):
    """Values and gradients, also of queries that see nothing but the prefix (padding)."""
    mask, options = options_of(case)
    direction = np.random.default_rng(2).standard_normal((ROWS, LENGTH, HEADS, VALUE_WIDTH))

    def both(function):
        def total(inputs):
            out = function(*inputs, mask, **options)
            return (out * direction).sum(), out

        return jax.jit(jax.grad(total, has_aux=True))(arrays())

    (found, out), (expected, out_expected) = both(in_parts), both(at_once)
    np.testing.assert_allclose(out, out_expected, rtol=0, atol=2e-6)
    for gradient, right in zip(found, expected, strict=True):
        assert abs(right).max() > 0.1
        np.testing.assert_allclose(gradient, right, rtol=0, atol=1e-5 * abs(right).max())


def test_dropped_probabilities_keep_their_mean():
    mask, options = options_of("packed, in a window")
    q, k, v, prefix_k, prefix_v = arrays()
    kv = KeysAndValues(k, v, Prefix(prefix_k, prefix_v))

    @jax.jit
    @jax.vmap
    def dropped(key):
        drop = {"dropout": 0.3, "dropout_key": key}
        return attend(q, kv, mask, backend="reference", **drop, **options)

    samples = dropped(jax.random.split(jax.random.key(3), 400))
    spread = samples.std(0).max() / 400**0.5
    whole = attend(q, kv, mask, **options)
    assert abs(samples.mean(0) - whole).max() < 6 * spread
    assert samples.std(0).min() > 0.01
