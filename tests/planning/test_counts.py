"""What is counted in compiled programs, against formulas by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jgpt import models
from jgpt.config import model_from_dict
from jgpt.planning.activations import saved_bytes
from jgpt.planning.counts import count
from jgpt.planning.hlo import parse, trip_count


def compiled(function, *shapes, specs=None, mesh=None, out=None):
    """Counts of `function` compiled for fake devices."""
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    if mesh is not None:
        args = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
            for a, spec in zip(args, specs, strict=True)
        ]
    places = None if out is None else NamedSharding(mesh, out)
    return parse(jax.jit(function, out_shardings=places).lower(*args).compile().as_text())


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def test_a_product_in_nested_loops_counts_every_trip():
    def loop(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    found = count(compiled(loop, (32, 64), (64, 64)))
    assert found.matmul_flops == 5 * 3 * 2 * 32 * 64 * 64
    assert found.unknown_loops == 0


def test_batched_products_and_gradients():
    """Forward, and two products of the same size backward."""

    def loss(x, w):
        return jnp.sum(jnp.einsum("bij,bjk->bik", x, w) ** 2)

    found = count(compiled(jax.grad(loss, (0, 1)), (4, 16, 32), (4, 32, 24)))
    assert found.matmul_flops == 3 * 2 * 4 * 16 * 32 * 24


def test_of_a_conditional_the_costlier_branch_counts():
    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)

    found = count(compiled(choose, (128, 256), (256, 256)))
    assert found.matmul_flops == 2 * 2 * 128 * 256 * 256


def test_a_loop_that_the_data_bounds_is_not_counted_and_named():
    def loop(x, w):
        rounds = jnp.int32(x[0, 0])
        return jax.lax.while_loop(lambda c: c[0] < rounds, lambda c: (c[0] + 1, c[1] @ w), (0, x))

    found = count(compiled(loop, (16, 16), (16, 16)))
    assert (found.data_loops, found.unknown_loops, found.matmul_flops) == (1, 0, 0)


@pytest.mark.parametrize(
    ("kind", "spec", "out", "factor"),
    [
        ("all-gather", P("x"), P(), 7 / 8),
        ("all-reduce", P(None, "x"), P(), 2 * 7 / 8),
    ],
)
def test_wire_bytes_of_sharded_products(mesh, kind, spec, out, factor):
    """An array made whole is gathered; a product cut along its contraction is summed."""

    if kind == "all-gather":
        program = compiled(lambda x: x * 2, (256, 64), specs=[spec], mesh=mesh, out=out)
        whole = 256 * 64 * 4
    else:
        shapes = (32, 512), (512, 64)
        specs = [spec, P("x")]
        program = compiled(lambda x, w: x @ w, *shapes, specs=specs, mesh=mesh, out=out)
        whole = 32 * 64 * 4
    found = count(program)
    assert dict(found.collectives) == {kind: 1}
    assert found.wire_bytes[kind] == pytest.approx(whole * factor)
    assert found.wire_bytes_by_group == {8: pytest.approx(whole * factor)}


def test_collectives_in_a_loop_count_every_trip(mesh):
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    def rotate(x):
        def step(x, _):
            return jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)]) + 1, None

        return jax.lax.scan(step, x, None, length=6)[0]

    found = count(compiled(rotate, (80, 16), specs=[P("x")], mesh=mesh))
    assert found.collectives == {"collective-permute": 6}
    assert found.wire_bytes["collective-permute"] == 6 * 10 * 16 * 4


TPU_PRODUCTS = """HloModule jit_f, is_scheduled=true

%fused (p.0: bf16[8,128,256], p.1: bf16[8,256,64]) -> f32[8,128,64] {
  %p.0 = bf16[8,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[8,256,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[8,128,64]{2,1,0:T(8,128)} convolution(%p.0, %p.1), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}

%body (state: (s32[], bf16[8,128,256], bf16[8,256,64])) -> (s32[], bf16[8,128,256], bf16[8,256,64]) {
  %state = (s32[]{:T(128)}, bf16[8,128,256]{2,1,0}, /*index=2*/bf16[8,256,64]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %a = bf16[8,128,256]{2,1,0} get-tuple-element(%state), index=1
  %b = bf16[8,256,64]{2,1,0} get-tuple-element(%state), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %product = f32[8,128,64]{2,1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%fused
  %kernel.3 = bf16[8,128,256]{2,1,0} custom-call(%a, %product), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"QUJD","cost_estimate":{"flops":"1000","transcendentals":"0","bytes_accessed":"7"}}}
  ROOT %state.next = (s32[]{:T(128)}, bf16[8,128,256]{2,1,0}, bf16[8,256,64]{2,1,0}) tuple(%next, %kernel.3, %b)
}

%condition (state.1: (s32[], bf16[8,128,256], bf16[8,256,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,128,256]{2,1,0}, bf16[8,256,64]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %bound = s32[]{:T(128)} constant(11)
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

%all-reduce-scatter.1 (p.2: f32[64,32]) -> f32[16,32] {
  %p.2 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,32]{1,0:T(8,128)} all-reduce(%p.2), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true, to_apply=%add
  ROOT %slice = f32[16,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,32}
}

ENTRY %main (x: bf16[8,128,256], w: bf16[8,256,64], g: f32[64,32]) -> f32[16,32] {
  %x = bf16[8,128,256]{2,1,0} parameter(0)
  %w = bf16[8,256,64]{2,1,0} parameter(1)
  %g = f32[64,32]{1,0} parameter(2)
  %one = s32[]{:T(128)} constant(1)
  %start = (s32[]{:T(128)}, bf16[8,128,256]{2,1,0}, bf16[8,256,64]{2,1,0}) tuple(%one, %x, %w)
  %loop = (s32[]{:T(128)}, bf16[8,128,256]{2,1,0}, bf16[8,256,64]{2,1,0}) while(%start), condition=%condition, body=%body
  %permute = (bf16[8,128,256]{2,1,0}, bf16[8,128,256]{2,1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %permute.done = bf16[8,128,256]{2,1,0} collective-permute-done(%permute)
  ROOT %scattered = f32[16,32]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501
"""In the TPU compiler's way of writing: batched products as dilated convolutions, no trip counts,
scattered sums as a fusion, kernels as custom calls."""


def test_the_tpu_compilers_forms():
    program = parse(TPU_PRODUCTS)
    main = program.computations["main"]
    # 1, 3, 5, 7, 9 are below 11.
    assert trip_count(program, main.instructions["loop"], main) == 5
    found = count(program)
    assert found.matmul_flops == 5 * 2 * 8 * 128 * 256 * 64
    assert dict(found.pallas_calls) == {"kernel": 5}
    assert found.pallas_flops == 5 * 1000 and found.undeclared_calls == 0
    assert dict(found.pallas_flops_by_kernel) == {"kernel": 5 * 1000}
    assert dict(found.collectives) == {"collective-permute": 1, "reduce-scatter": 1}
    assert found.wire_bytes["collective-permute"] == 8 * 128 * 256 * 2
    assert found.wire_bytes["reduce-scatter"] == 64 * 32 * 4 * 3 / 4
    json.dumps(found.as_dict())


def test_an_asynchronous_collective_is_counted_once():
    text = """HloModule m

%start (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %gather.1 = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%end (q: f32[8]) -> f32[32] {
  %q = f32[8]{0} parameter(0)
  %gather.2 = f32[32]{0} all-gather(%q), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %done = f32[32]{0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8]) -> f32[32] {
  %x = f32[8]{0} parameter(0)
  %a = f32[32]{0} fusion(%x), kind=kCustom, calls=%start
  ROOT %b = f32[32]{0} fusion(%x), kind=kCustom, calls=%end
}
"""  # noqa: E501
    found = count(parse(text))
    assert dict(found.collectives) == {"all-gather": 1}
    assert found.wire_bytes["all-gather"] == 32 * 4 * 3 / 4


def test_what_a_scan_keeps_for_the_backward_pass():
    """One [L, B, D] stack: with everything recomputed the layers' inputs alone are kept."""

    def loss(x, w):
        @jax.checkpoint
        def layer(x, w):
            return jnp.sin(x @ w) @ w.T, None

        return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)

    program = compiled(jax.grad(loss, (0, 1)), (24, 32), (6, 32, 48))
    assert saved_bytes(program) == 6 * 24 * 32 * 4
    assert saved_bytes(compiled(lambda x: x @ x, (8, 8))) is None


def test_moved_bytes_of_a_plain_product():
    """Both operands are read, the result is written."""
    found = count(compiled(lambda x, w: x @ w, (512, 256), (256, 128)))
    assert found.hbm_bytes == pytest.approx(4 * (512 * 256 + 256 * 128 + 512 * 128), rel=0.3)


def test_a_slice_in_a_fusion_in_a_fusion_moves_the_slice():
    """A layer's part of a stack, read and written by nested fusions: not the whole stack."""
    text = """HloModule m

%cut (p: bf16[16,8,128], i: s32[]) -> bf16[8,128] {
  %p = bf16[16,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %s = bf16[1,8,128]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %b = bf16[8,128]{1,0} bitcast(%s)
}

%put (p: bf16[16,8,128], x: bf16[8,128], i: s32[]) -> bf16[16,8,128] {
  %p = bf16[16,8,128]{2,1,0} parameter(0)
  %x = bf16[8,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %b = bf16[1,8,128]{2,1,0} bitcast(%x)
  ROOT %u = bf16[16,8,128]{2,1,0} dynamic-update-slice(%p, %b, %i, %zero, %zero)
}

%outer (p: bf16[16,8,128], q: bf16[16,8,128], w: bf16[8,128], i: s32[]) -> bf16[16,8,128] {
  %p = bf16[16,8,128]{2,1,0} parameter(0)
  %q = bf16[16,8,128]{2,1,0} parameter(1)
  %w = bf16[8,128]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %f = bf16[8,128]{1,0} fusion(%p, %i), kind=kLoop, calls=%cut
  %y = bf16[8,128]{1,0} add(%f, %w)
  ROOT %r = bf16[16,8,128]{2,1,0} fusion(%q, %y, %i), kind=kLoop, calls=%put
}

ENTRY %main (p: bf16[16,8,128], q: bf16[16,8,128], w: bf16[8,128], i: s32[]) -> bf16[16,8,128] {
  %p = bf16[16,8,128]{2,1,0} parameter(0)
  %q = bf16[16,8,128]{2,1,0} parameter(1)
  %w = bf16[8,128]{1,0} parameter(2)
  %i = s32[] parameter(3)
  ROOT %a = bf16[16,8,128]{2,1,0} fusion(%p, %q, %w, %i), kind=kOutput, calls=%outer
}
"""
    part, index = 8 * 128 * 2, 4
    # One part read, w read, one part written; the index is read by both.
    assert count(parse(text)).hbm_bytes == pytest.approx(3 * part, abs=2 * index)


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="entry"):
        parse("nothing here")


def test_counts_add_up():
    rng = np.random.default_rng(0)
    rows, inner, columns = (int(n) for n in rng.integers(2, 40, 3))
    once = count(compiled(lambda x, w: x @ w, (rows, inner), (inner, columns)))
    total = count(parse(TPU_PRODUCTS))
    before = total.matmul_flops
    total.add(once, 3)
    assert total.matmul_flops == before + 3 * 2 * rows * inner * columns


def test_what_each_remat_policy_computes_again():
    """none nothing, dots no dense map (attention and norms only), full the whole forward pass."""
    executed = {}
    for remat in ("none", "dots", "full"):
        config = model_from_dict(
            {
                "vocab_size": 64,
                "num_layers": 3,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 64,
                "scan_layers": "on",
                "remat": remat,
            }
        )

        def loss(params, inputs, config=config):
            return models.apply(config, {"params": params}, {"inputs": inputs})[0].sum()

        inputs = jax.ShapeDtypeStruct((2, 16), jnp.int32)
        step = jax.jit(jax.grad(loss)).lower(models.abstract_params(config), inputs)
        executed[remat] = count(parse(step.compile().as_text())).matmul_flops
    maps = 2 * 2 * 16 * 3 * (4 * 32 * 32 + 3 * 32 * 64)
    attention = executed["dots"] - executed["none"]
    assert executed["none"] <= executed["dots"] < executed["full"]
    # The last product of a layer is needed by nothing in its own backward pass.
    last = 2 * 2 * 16 * 3 * 32 * 64
    assert executed["full"] == executed["none"] + attention + maps - last
