"""Attention: the reference against a loop over pairs, every backend against the reference."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels import attention as attention_package
from jgpt.kernels.attention import (
    attention,
    attention_with_logsumexp,
    blockwise,
    reference,
    schedule,
)
from jgpt.kernels.attention.mask import Indices, relative_bucket, visible
from jgpt.typing import AlibiBias, Mask, RelativeBias

BATCH, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 8


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def inputs(queries, keys, heads=HEADS, kv_heads=KV_HEADS, width=WIDTH):
    return {
        "q": normal(0, BATCH, queries, heads, width),
        "k": normal(1, BATCH, keys, kv_heads, width),
        "v": normal(2, BATCH, keys, kv_heads, width),
        "scale": jnp.asarray(0.4),
    }


def segments(length, seed=3):
    """Documents in order, then padding (0)."""
    ids = np.sort(np.random.default_rng(seed).integers(1, 4, (BATCH, length)), axis=1)
    ids[:, -2:] = 0
    return jnp.asarray(ids, jnp.int32)


def cached_positions(queries, keys):
    """Queries that follow on a cache of which the rest is empty, and in no order."""
    filled = keys // 2
    order = np.random.default_rng(4).permutation(keys)
    slots = np.where(order < filled + queries, order, -1)
    return {
        "q_positions": jnp.asarray(np.arange(queries)[None] + [[filled], [2]], jnp.int32),
        "kv_positions": jnp.asarray(np.stack([slots, slots]), jnp.int32),
    }


def cases():
    """name -> (queries, keys, mask, options); built late, since arrays depend on x64."""
    s, t = 21, 29
    both = {"q_segment_ids": segments(s), "kv_segment_ids": segments(s)}
    sinks = {"sinks": normal(5, HEADS)}
    slopes = AlibiBias(jnp.asarray([0.5, 0.25, 0.125, 0.0625]))
    table = normal(6, 8, HEADS)
    sparse = {"block_size": 4, "num_local_blocks": 2, "num_global_blocks": 1}
    return {
        "causal": (s, s, Mask(), {}),
        "bidirectional": (s, s, Mask(causal=False), {}),
        "window": (s, s, Mask(window=5), {}),
        "window both ways": (s, s, Mask(causal=False, window=5), sinks),
        "prefix": (s, s, Mask(prefix_lengths=jnp.asarray([3, 12])), {}),
        "prefix and window": (s, s, Mask(window=6, prefix_lengths=jnp.asarray([3, 12])), {}),
        "segments": (s, s, Mask(**both), {}),
        "segments, window, sinks": (s, s, Mask(window=4, **both), sinks),
        "block-sparse": (s, s, Mask(**sparse), {}),
        "block-sparse with stride": (s, s, Mask(stride=3, **sparse), {}),
        "cross": (s, t, Mask(causal=False), {}),
        "cross, more queries": (t, s, Mask(causal=False), {"softcap": 1.5}),
        "cache": (s, t, Mask(**cached_positions(s, t)), {}),
        "cache, window": (s, t, Mask(window=7, **cached_positions(s, t)), sinks),
        "alibi": (s, s, Mask(), {"bias": slopes}),
        "alibi in a cache": (s, t, Mask(**cached_positions(s, t)), {"bias": slopes}),
        "relative": (s, s, Mask(), {"bias": RelativeBias(table, False, 16)}),
        "relative both ways": (
            s, t, Mask(causal=False), {"bias": RelativeBias(table, True, 16), "softcap": 2.0},
        ),
        "softcap and sinks": (s, s, Mask(), {"softcap": 1.0, **sinks}),
    }  # fmt: skip


NAMES = list(cases())


def loop_visible(mask, b, i, j):
    """`Mask`'s sentences, for one pair of one row."""
    query = i if mask.q_positions is None else int(mask.q_positions[b, i])
    key = j if mask.kv_positions is None else int(mask.kv_positions[b, j])
    if key < 0:
        return False
    prefix = 0 if mask.prefix_lengths is None else int(mask.prefix_lengths[b])
    if mask.causal and key > query and key >= prefix:
        return False
    if mask.window and abs(query - key) >= mask.window:
        return False
    if mask.q_segment_ids is not None:
        segment = int(mask.kv_segment_ids[b, j])
        if segment == 0 or segment != int(mask.q_segment_ids[b, i]):
            return False
    if mask.block_size:
        qb, kb = query // mask.block_size, key // mask.block_size
        local = kb in range(qb - mask.num_local_blocks + 1, qb + 1)
        strided = mask.stride > 0 and kb % mask.stride == mask.stride - 1
        return local or kb < mask.num_global_blocks or strided
    return True


def loop_bias(bias, mask, b, h, i, j):
    if bias is None:
        return 0.0
    query = i if mask.q_positions is None else int(mask.q_positions[b, i])
    key = j if mask.kv_positions is None else int(mask.kv_positions[b, j])
    if isinstance(bias, AlibiBias):
        return -float(bias.slopes[h]) * abs(query - key)
    bucket = buckets(key - query, bias.table.shape[0], bias.max_distance, bias.bidirectional)
    return float(bias.table[bucket, h])


@functools.cache
def buckets(distance, *rule):
    """Tested by itself below."""
    return int(relative_bucket(jnp.asarray(distance), *rule))


def loop_attention(q, k, v, mask, scale, softcap=0.0, bias=None, sinks=None):
    """float64, one (row, head, query) at a time."""
    q, k, v, mask, bias, sinks = jax.tree.map(np.asarray, (q, k, v, mask, bias, sinks))
    group = q.shape[2] // k.shape[2]
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [j for j in range(k.shape[1]) if loop_visible(mask, b, i, j)]
        if not seen:
            continue
        scores = float(scale) * k[b, seen, h // group] @ q[b, i, h]
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores + [loop_bias(bias, mask, b, h, i, j) for j in seen])
        total = weights.sum() + (0 if sinks is None else math.exp(float(sinks[h])))
        out[b, i, h] = weights / total @ v[b, seen, h // group]
    return out


def relative_error(got, want):
    want = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_what_the_definition_says(name, x64, quick_jit):
    queries, keys, mask, options = cases()[name]
    arrays = inputs(queries, keys)
    want = loop_attention(arrays["q"], arrays["k"], arrays["v"], mask, 0.4, **options)
    got = quick_jit(lambda arrays: reference.attention(mask=mask, **arrays, **options))(arrays)
    assert relative_error(got, want) < 1e-12


def value_and_gradients(function, arrays, mask, options, jit=jax.jit):
    """(out, gradients of sum(out * fixed noise) in every float array) with everything traced."""
    smooth = arrays | {n: options[n] for n in ("bias", "sinks") if n in options}
    static = {n: x for n, x in options.items() if n not in smooth}

    def run(smooth, mask):
        out, pull = jax.vjp(lambda x: function(mask=mask, **x, **static), smooth)
        return out, pull(normal(9, *out.shape).astype(out.dtype))[0]

    return jit(run)(smooth, mask)


@pytest.mark.parametrize("max_unrolled", [0, 100], ids=["looped", "unrolled"])
@pytest.mark.parametrize("name", NAMES)
def test_blockwise_equals_reference(name, max_unrolled, x64, quick_jit, monkeypatch):
    monkeypatch.setattr(blockwise, "MAX_UNROLLED", max_unrolled)
    queries, keys, mask, options = cases()[name]
    arrays = inputs(queries, keys)
    blocks = functools.partial(blockwise.attention, block=8)
    got = value_and_gradients(blocks, arrays, mask, options, quick_jit)
    want = value_and_gradients(reference.attention, arrays, mask, options, quick_jit)
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-12, errors


def with_logsumexp(function):
    """Both results as one array, so that each has a cotangent; -inf, which has none, as 0."""

    def run(**arguments):
        out, logsumexp = function(**arguments)
        logsumexp = jnp.where(jnp.isfinite(logsumexp), logsumexp, 0)
        return jnp.concatenate([out, logsumexp[..., None].astype(out.dtype)], axis=-1)

    return run


@pytest.mark.parametrize("name", ["segments, window, sinks", "cache", "relative both ways"])
def test_blockwise_logsumexp_and_its_gradients(name, x64, quick_jit):
    queries, keys, mask, options = cases()[name]
    arrays = inputs(queries, keys)
    blocks = functools.partial(blockwise.attention_with_logsumexp, block=8)
    got, want = (
        value_and_gradients(with_logsumexp(f), arrays, mask, options, quick_jit)
        for f in (blocks, reference.attention_with_logsumexp)
    )
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-12, errors


@pytest.mark.parametrize("backend", ["blockwise", "reference"])
def test_logsumexp_is_what_the_definition_says_and_parts_add_up(backend, x64, quick_jit):
    """Over two halves of the keys, by positions; the first queries see nothing of the second."""
    arrays, cut = inputs(20, 20), 12
    run = functools.partial(attention_with_logsumexp, scale=arrays["scale"], backend=backend)

    def part(keys):
        at = jnp.arange(20, dtype=jnp.int32)
        mask = Mask(q_positions=at[None], kv_positions=at[None, keys])
        return run(arrays["q"], arrays["k"][:, keys], arrays["v"][:, keys], mask)

    whole, logsumexp = quick_jit(lambda: run(arrays["q"], arrays["k"], arrays["v"], Mask()))()
    q = arrays["q"].reshape(BATCH, 20, KV_HEADS, -1, WIDTH)
    scores = np.einsum("bskgd,btkd->bskgt", q, arrays["k"]) * 0.4
    scores = np.where(np.tri(20, dtype=bool)[:, None, None], scores, -np.inf)
    want = np.log(np.exp(scores).sum(-1)).reshape(BATCH, 20, HEADS)
    assert relative_error(logsumexp, want) < 1e-12
    parts = [quick_jit(lambda keys=keys: part(keys))() for keys in (slice(cut), slice(cut, 20))]
    assert (np.asarray(parts[1][1])[:, :cut] == -np.inf).all()
    shares = [np.exp(x - np.logaddexp(parts[0][1], parts[1][1]))[..., None] for _, x in parts]
    assert relative_error(sum(w * o for w, (o, _) in zip(shares, parts)), whole) < 1e-12


def test_a_backend_without_logsumexp_says_so():
    arrays = inputs(20, 20)
    with pytest.raises(ValueError, match="'xla' cannot run: it does not give the log-sum-exp"):
        attention_with_logsumexp(mask=Mask(), backend="xla", **arrays)


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_every_grouping_of_heads(kv_heads, x64, quick_jit):
    arrays = inputs(17, 17, heads=6, kv_heads=kv_heads, width=5)
    blocks = functools.partial(blockwise.attention, block=8)
    got = value_and_gradients(blocks, arrays, Mask(), {}, quick_jit)
    want = value_and_gradients(reference.attention, arrays, Mask(), {}, quick_jit)
    assert max(jax.tree.leaves(jax.tree.map(relative_error, got, want))) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("backend", ["blockwise", "xla", "reference"])
def test_low_precision_stays_close_to_float64(backend, dtype, tolerance, quick_jit):
    """At a length of several default blocks and a padded end, as compiled by default."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(
            lambda x: x.astype(dtype).astype("float64"), inputs(300, 300, width=16)
        )
        want = value_and_gradients(reference.attention, arrays, Mask(), {}, quick_jit)
        want = jax.tree.map(np.asarray, want)
    arrays = {n: jnp.asarray(x, "float32" if n == "scale" else dtype) for n, x in arrays.items()}
    got = value_and_gradients(functools.partial(attention, backend=backend), arrays, Mask(), {})
    assert got[0].dtype == dtype
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


@pytest.mark.parametrize("length", [16, 64, 100])
def test_bfloat16_gradients_run_in_one_block_and_in_few(length):
    """Compiled in full: what the backend cannot run shows only there."""
    arrays = {name: x.astype(jnp.bfloat16) for name, x in inputs(length, length).items()}

    def total(arrays):
        out = blockwise.attention(mask=Mask(causal=True), **arrays)
        return (out.astype(jnp.float32) ** 2).sum()

    gradients = jax.jit(jax.grad(total))(arrays)
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("causal", [True, False])
def test_reference_equals_jax_nn(causal, x64, quick_jit):
    arrays = inputs(19, 19) | {"scale": 0.4}

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, scale=0.4, is_causal=causal)

    want = quick_jit(theirs)(*(arrays[n] for n in "qkv"))
    got = quick_jit(lambda x: reference.attention(mask=Mask(causal=causal), **x))(arrays)
    assert relative_error(got, want) < 1e-6  # its softmax is float32 whatever the inputs


@pytest.mark.parametrize("backend", ["blockwise", "xla", "reference"])
def test_no_gradient_flows_from_the_future(backend, quick_jit):
    arrays = {n: x.astype("float32") for n, x in inputs(20, 20).items()}

    def at_ten(k, v):
        q, scale = arrays["q"], arrays["scale"]
        return attention(q, k, v, Mask(), scale=scale, backend=backend)[:, 10].sum()

    for gradient in quick_jit(jax.grad(at_ten, (0, 1)))(arrays["k"], arrays["v"]):
        assert not np.asarray(gradient[:, 11:]).any()
        assert np.asarray(gradient[:, :11]).all(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("name", ["blockwise", "reference"])
def test_query_without_a_key_gives_zero_and_no_gradient(name, sinks, quick_jit):
    arrays = {n: x.astype("float32") for n, x in inputs(20, 20).items()}
    arrays |= {"sinks": normal(5, HEADS).astype("float32")} if sinks else {}
    ids = segments(20)
    empty = np.asarray(ids) == 0
    mask = Mask(q_segment_ids=ids, kv_segment_ids=ids)
    function = functools.partial(attention, backend=name)
    out, gradients = value_and_gradients(function, arrays, mask, {}, quick_jit)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, gradients)))
    assert not np.asarray(out)[empty].any()
    for n in ("q", "k", "v"):
        assert not np.asarray(gradients[n])[empty].any()
        assert np.asarray(gradients[n])[~empty].any()


def test_scores_too_large_for_exp_do_not_overflow(quick_jit):
    arrays = {n: x.astype("float32") for n, x in inputs(20, 20).items()} | {"scale": 1e4}
    want = quick_jit(lambda x: reference.attention(mask=Mask(), **x))(arrays)
    got = quick_jit(lambda x: blockwise.attention(mask=Mask(), block=8, **x))(arrays)
    assert np.isfinite(want).all()
    assert relative_error(got, want) < 1e-5


def dropped(name, rate, key, arrays):
    function = {"blockwise": functools.partial(blockwise.attention, block=8)}.get(
        name, functools.partial(attention, backend=name)
    )
    return function(mask=Mask(), dropout=rate, dropout_key=key, **arrays)


@pytest.mark.parametrize("name", ["blockwise", "reference"])
def test_dropout_keeps_the_mean_and_drops_its_share(name, x64, quick_jit):
    arrays = inputs(20, 20) | {"v": jnp.ones((BATCH, 20, KV_HEADS, WIDTH))}
    keys = jax.random.split(jax.random.key(0), 400)
    outs = quick_jit(jax.vmap(lambda key: dropped(name, 0.25, key, arrays)))(keys)
    assert abs(outs.mean() - 1) < 0.01
    # the first query sees one key: it is dropped, or scaled up
    first = np.asarray(outs[:, :, 0])
    assert set(np.unique(first.round(6))) == {0.0, round(1 / 0.75, 6)}
    assert abs((first == 0).mean() - 0.25) < 0.03


def test_dropout_gradient_is_that_of_the_same_draw(x64, quick_jit):
    arrays, key = inputs(20, 20), jax.random.key(1)
    noise = {n: normal(20 + i, *x.shape) for i, (n, x) in enumerate(arrays.items())}

    def total(step):
        moved = {n: x + step * noise[n] for n, x in arrays.items()}
        return (dropped("blockwise", 0.3, key, moved) * normal(9, BATCH, 20, HEADS, WIDTH)).sum()

    step, value = 1e-5, quick_jit(total)
    want = (value(step) - value(-step)) / (2 * step)
    got = quick_jit(jax.grad(total))(0.0)
    assert abs(got - want) < 1e-7 * abs(want)


def test_dropout_differs_by_key(quick_jit):
    arrays = inputs(20, 20)
    draw = quick_jit(lambda key: dropped("blockwise", 0.3, key, arrays))
    one, two = draw(jax.random.key(1)), draw(jax.random.key(2))
    np.testing.assert_array_equal(one, draw(jax.random.key(1)))
    assert relative_error(one, two) > 0.1


def test_dropout_without_a_key_is_off(quick_jit):
    arrays = inputs(20, 20)
    run = functools.partial(attention, mask=Mask(), backend="reference")
    on = quick_jit(lambda x: run(dropout=0.5, **x))(arrays)
    np.testing.assert_array_equal(on, quick_jit(lambda x: run(**x))(arrays))


def test_short_queries_are_materialised_and_the_choice_is_logged_once(caplog, quick_jit):
    attention_package._log_once.cache_clear()
    arrays, longer = inputs(1, 64), inputs(20, 20)
    positions = Mask(
        q_positions=jnp.full((BATCH, 1), 40, jnp.int32),
        kv_positions=jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), (BATCH, 64)),
    )
    with caplog.at_level(logging.INFO):
        got = [quick_jit(lambda x: attention(mask=positions, **x))(arrays) for _ in range(2)]
        jax.eval_shape(lambda: attention(mask=Mask(), **longer))
    messages = [r.message for r in caplog.records if "backend" in r.message]
    assert [m.split()[2] for m in messages] == ["reference", "blockwise"]
    want = quick_jit(lambda x: blockwise.attention(mask=positions, **x))(arrays)
    assert relative_error(got[0], want) < 1e-5


@pytest.mark.parametrize(
    "mask, options, reason",
    [
        (Mask(window=3), {}, "a window"),
        (Mask(), {"softcap": 3.0}, "a softcap"),
        (Mask(), {"sinks": jnp.ones(HEADS)}, "sinks"),
        (Mask(prefix_lengths=jnp.asarray([1, 2])), {}, "prefix lengths"),
    ],
)
def test_named_backend_says_why_it_cannot(mask, options, reason):
    with pytest.raises(ValueError, match=f"'xla' cannot run: .*{reason.removeprefix('a ')}"):
        attention(mask=mask, backend="xla", **inputs(20, 20), **options)


def test_bad_arguments_are_named():
    arrays = inputs(20, 20)
    with pytest.raises(ValueError, match=r"'flash' is unknown; choose auto or one of ring, pallas"):
        attention(mask=Mask(), backend="flash", **arrays)
    with pytest.raises(ValueError, match="do not divide 4 query heads"):
        attention(mask=Mask(), **arrays | {n: normal(1, BATCH, 20, 3, WIDTH) for n in "kv"})
    with pytest.raises(ValueError, match="shapes do not fit"):
        attention(mask=Mask(), **arrays | {"k": normal(1, BATCH, 19, KV_HEADS, WIDTH)})
    with pytest.raises(ValueError, match="both q_segment_ids and kv_segment_ids"):
        attention(mask=Mask(q_segment_ids=segments(20)), **arrays)


@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(causal=False),
        *(Mask(causal=causal, window=w) for causal in (True, False) for w in (1, 3, 4, 5, 9)),
        Mask(block_size=4, num_local_blocks=2, num_global_blocks=1, stride=3),
        Mask(window=7, block_size=3, num_local_blocks=1, num_global_blocks=2),
    ],
    ids=str,
)
def test_schedule_is_exact(mask):
    """A block is left out just where the mask allows nothing; nothing forbidden goes unmasked."""
    for queries, keys, query_block, key_block in [(20, 20, 4, 4), (21, 17, 4, 5), (9, 24, 2, 8)]:
        at = Indices(np.arange(queries)[None], np.arange(keys)[None])
        allowed = visible(mask, at, None, None)
        allowed = np.ones((queries, keys), bool) if allowed is None else np.asarray(allowed[0])
        made = schedule.make_schedule(mask, queries, keys, query_block, key_block)
        found = {(i, j) for i, row in enumerate(made.rows) for j in row}
        blocks = {
            (i, j): allowed[
                i * query_block : (i + 1) * query_block, j * key_block : (j + 1) * key_block
            ]
            for i, j in np.ndindex(-(-queries // query_block), -(-keys // key_block))
        }
        want = {at for at, block in blocks.items() if block.any()}
        assert found == {(i, j) for j, column in enumerate(made.columns) for i in column}
        # Window and pattern are each exact; together they may keep a block that is empty.
        assert found >= want if mask.window and mask.block_size else found == want
        assert made.masked >= any(not blocks[at].all() for at in want)


def test_whole_blocks_need_no_mask():
    assert not schedule.make_schedule(Mask(causal=False), 32, 64, 8, 8).masked
    assert schedule.make_schedule(Mask(causal=False), 32, 63, 8, 8).masked


def gradient_of_sum(jit=jax.jit, **options):
    def total(q, k, v):
        return blockwise.attention(q, k, v, Mask(), scale=0.2, **options).sum()

    return jit(jax.grad(total, (0, 1, 2)))


def shapes(length, batch=1):
    q = jax.ShapeDtypeStruct((batch, length, 2, 16), jnp.float32)
    k = jax.ShapeDtypeStruct((batch, length, 1, 16), jnp.float32)
    return q, k, k


def test_memory_is_linear_in_the_length():
    def temporary(length):
        compiled = gradient_of_sum(block=64).lower(*shapes(length)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    shorter, longer = temporary(2048), temporary(4096)
    assert longer < 2.2 * shorter
    assert longer < 4096**2  # a quarter of one head's scores


def test_a_sharded_batch_stays_where_it_is(quick_jit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arrays = {n: x.astype("float32") for n, x in inputs(40, 40).items()}
    arrays = [jnp.concatenate([arrays[n]] * 4) for n in "qkv"]
    run = gradient_of_sum(quick_jit, block=16)
    want = run(*arrays)
    with jax.set_mesh(mesh):
        placed = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
        compiled = run.lower(*placed).compile()
        got = compiled(*placed)
    assert not [c for c in ("all-gather", "all-to-all", "all-reduce") if c in compiled.as_text()]
    assert max(jax.tree.leaves(jax.tree.map(relative_error, got, want))) < 1e-5


@pytest.mark.parametrize("length", [300, 8192])
def test_lowers_for_tpu(length):
    traced = gradient_of_sum().trace(*shapes(length))
    assert "dot_general" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_buckets_of_t5_by_hand():
    """32 buckets to distance 128, as the paper's code counts them."""
    behind = relative_bucket(-jnp.arange(200), 32, 128, False)
    assert behind[:17].tolist() == list(range(17))
    assert behind[127] == 31 and behind[199] == 31
    assert (np.diff(np.asarray(behind)) >= 0).all()
    ahead = relative_bucket(jnp.arange(5), 32, 128, False)
    assert ahead.tolist() == [0] * 5
    both = relative_bucket(jnp.asarray([-3, 0, 3]), 32, 128, True)
    assert both.tolist() == [3, 0, 19]


@pytest.mark.parity
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (16, 20), (64, 300)])
def test_buckets_equal_those_of_transformers(num_buckets, max_distance, bidirectional):
    torch = pytest.importorskip("torch", reason="transformers' T5 needs torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="the code compared with")
    distance = np.arange(-500, 501)
    want = t5.T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, num_buckets, max_distance
    )
    got = relative_bucket(jnp.asarray(distance), num_buckets, max_distance, bidirectional)
    np.testing.assert_array_equal(got, want.numpy())
