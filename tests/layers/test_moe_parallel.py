"""The mixture-of-experts layer over meshes of eight devices: equal to one device, and local."""

import dataclasses
import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jgpt.config import ConfigError, MeshConfig, ModelConfig, MoEConfig
from jgpt.layers import exchange, expert_parallel
from jgpt.layers.exchange import Exchange
from jgpt.layers.moe import MoE
from jgpt.layers.router import balance_loss, z_loss
from jgpt.models.stack import rematerialised
from jgpt.sharding import make_mesh, spec

B, S, D, F, E, K = 8, 12, 16, 8, 8, 2
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "expert": {"expert": 8},
    "fsdp, expert": {"fsdp": 2, "expert": 4},
    "data, fsdp, expert": {"data": 2, "fsdp": 2, "expert": 2},
    "expert, tensor": {"expert": 4, "tensor": 2},
    "fsdp, expert, tensor": {"fsdp": 2, "expert": 2, "tensor": 2},
    "fsdp, tensor": {"fsdp": 4, "tensor": 2},
    "expert, context": {"expert": 4, "context": 2},
    "fsdp, expert, context": {"fsdp": 2, "expert": 2, "context": 2},
}
BUSY = jnp.zeros(E).at[2].set(1.0).at[3].set(0.5)
"""A selection bias by which two experts of one device get nearly all tokens."""
KERNELS = {
    "gate": ("embed", "expert_mlp"),
    "up": ("embed", "expert_mlp"),
    "down": ("expert_mlp", "embed"),
}


def model(**moe):
    options = {"scan_layers": moe.pop("scan_layers", "off"), "remat": moe.pop("remat", "none")}
    return ModelConfig(
        hidden_size=D,
        intermediate_size=F,
        init_std=0.3,
        dtype=moe.pop("dtype", "float32"),
        attention=moe.pop("attention", "causal"),
        ffn_pattern=("moe",),
        moe=MoEConfig(
            num_experts=E,
            top_k=K,
            selection_bias=True,
            num_shared_experts=1,
            backend="reference",
            **{"exchange_factor": 8.0, **moe},
        ),
        **options,
    )


@functools.cache
def initial():
    x, dy = np.random.default_rng(0).standard_normal((2, B, S, D)).astype(np.float32)
    params = meta.unbox(jax.jit(MoE(model(dispatch="dense")).init)(jax.random.key(1), x)["params"])
    mask = np.arange(S) < np.array([S, 5, S, S - 1, 1, S, S, 7])[:, None]
    return params, x, dy * mask[..., None], mask


def step(config):
    def objective(params, x, dy, mask, bias):
        y, stats = MoE(config).apply({"params": params}, x, token_mask=mask, selection_bias=bias)
        total = jnp.sum(y * dy) + 3.0 * balance_loss(stats) + 0.5 * z_loss(stats)
        return total, (y, stats)

    gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def alone(config, busy=False):
    return step(config)(*initial(), BUSY if busy else jnp.zeros(E))


def mesh_of(name):
    return make_mesh(MeshConfig(**{"data": 1, **MESHES[name]}))


def placed(mesh):
    """The arguments of `step` where a training step has them."""
    params, x, dy, mask = initial()

    def place(value, *axes):
        return jax.device_put(value, NamedSharding(mesh, spec(axes)))

    params = jax.tree.map(place, params) | {
        name: {"kernel": place(params[name]["kernel"], "experts", *axes)}
        for name, axes in KERNELS.items()
    }
    return params, *(place(value, "batch", "length") for value in (x, dy, mask))


def over(mesh, config, busy=False):
    with jax.set_mesh(mesh):
        run = step(config).lower(*placed(mesh), BUSY if busy else jnp.zeros(E)).compile()
        return run(*placed(mesh), BUSY if busy else jnp.zeros(E)), run.as_text()


def assert_equal(got, want, ignore=("deferred",)):
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        if not any(word in name for word in ignore):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-3), name


EVERY_TIME = ("fsdp", "data, fsdp, expert", "expert, tensor", "fsdp, expert, context")
"""Meshes that are no `slow` tests: most of the time goes to the compiler."""


@pytest.mark.parametrize(
    "mesh", [m if m in EVERY_TIME else pytest.param(m, marks=pytest.mark.slow) for m in MESHES]
)
def test_dropless_equals_one_device_over_every_mesh(mesh):
    config = model()
    (gradients, out), _ = over(mesh_of(mesh), config)
    assert_equal((gradients, out), alone(config))


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("fsdp, expert", {"dispatch": "dense"}),
        ("fsdp, expert, tensor", {"dispatch": "capacity", "capacity_factor": 0.75}),
        ("expert, context", {"dispatch": "capacity", "capacity_factor": 0.75, "group_size": 3}),
        ("data, fsdp, expert", {"router": "expert_choice", "attention": "bidirectional"}),
        ("fsdp, expert", {"remat": "full", "fused": False}),
    ],
    ids=str,
)
def test_every_dispatch_equals_one_device(mesh, options):
    config = model(**options)
    (gradients, out), _ = over(mesh_of(mesh), config)
    if "capacity" in options.values():
        assert float(out[1].dropped) > 0
    assert_equal((gradients, out), alone(config))


def ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """What `lax.ragged_all_to_all` is documented to do, and the CPU cannot: all see everything."""
    everything = lax.all_gather((operand, input_offsets, send_sizes, output_offsets), axis_name)
    me, place = lax.axis_index(axis_name), jnp.arange(len(output))
    for source, (rows, begins, sizes, lands) in enumerate(
        zip(*(list(part) for part in everything), strict=True)
    ):
        here = (place >= lands[me]) & (place < lands[me] + recv_sizes[source])
        index = jnp.where(here, begins[me] + place - lands[me], 0)
        output = jnp.where(here[:, None], rows[index], output)
        output = jnp.where(sizes[me] == recv_sizes[source], output, jnp.nan)
    return output


@pytest.mark.parametrize(
    ("form", "mesh"), [("padded", "fsdp, expert"), ("ragged", "expert, tensor")]
)
def test_rows_over_the_bound_wait_for_a_further_round_and_nothing_is_lost(form, mesh, monkeypatch):
    """All tokens want two experts of one device, buffers have room for less than the even share."""
    monkeypatch.setattr(lax, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setitem(expert_parallel.RAGGED_DEVICES, "cpu", 8)
    config = model(exchange=form, exchange_factor=0.7)
    (gradients, out), _ = over(mesh_of(mesh), config, busy=True)
    assert 0 < float(out[1].deferred) < float(jnp.sum(out[1].assignments))
    assert float(out[1].dropped) == 0
    assert_equal((gradients, out), alone(model(), busy=True))


def test_room_for_the_worst_case_needs_no_further_round(monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setitem(expert_parallel.RAGGED_DEVICES, "cpu", 8)
    monkeypatch.setattr(exchange, "all_rounds", None)
    config = model(exchange="ragged", exchange_factor=8.0)
    (gradients, out), _ = over(mesh_of("fsdp, expert"), config, busy=True)
    assert float(out[1].deferred) == 0
    assert_equal((gradients, out), alone(model(), busy=True))


def gathers(text):
    """(result shape, replica groups) of every all-gather of a compiled program."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(.*?replica_groups=(\S+?),? ", text)
    return [(tuple(int(n) for n in shape.split(",") if n), groups) for shape, groups in found]


def test_no_device_gathers_other_experts_and_gradients_are_scattered():
    """In the compiled program: matrices are gathered over fsdp, their gradients scattered there."""
    _, text = over(mesh_of("fsdp, expert"), model())
    owned = E // 4
    matrices = [shape for shape, _ in gathers(text) if len(shape) == 3]
    assert matrices and all(shape[0] == owned for shape in matrices)
    assert not re.search(rf"f32\[{E},({D}|{D // 2}),{F}\]|f32\[{E},{F},({D}|{D // 2})\]", text)
    assert len(re.findall(r" reduce-scatter\(", text)) >= 3
    assert " all-to-all(" in text


def lowered_gradient(config, param_dtype="float32"):
    """The gradient's program before it is compiled, with the layer computed again as configured."""

    def objective(params, x, dy, mask, bias):
        layer = rematerialised(MoE, config)(config)
        y, _ = layer.apply({"params": params}, x, token_mask=mask, selection_bias=bias)
        return jnp.sum(jnp.sin(y) * dy)

    mesh = mesh_of("fsdp, expert")
    with jax.set_mesh(mesh):
        params, *rest = placed(mesh)
        params = jax.tree.map(lambda a: a.astype(param_dtype), params)
        run = jax.jit(jax.grad(objective, argnums=(0, 1)))
        return run.lower(params, *rest, jnp.zeros(E)).as_text()


@pytest.mark.parametrize(("dispatch", "rows"), [("dropless", r"\d+"), ("capacity", r"\d+x\d+")])
def test_rows_travel_no_more_often_than_they_must(dispatch, rows):
    """There and back, and their gradients. `full` sends rows once more; no remat outputs again."""

    def travels(remat):
        text = lowered_gradient(model(dispatch=dispatch, remat=remat))
        return len(re.findall(rf"stablehlo\.all_to_all.* -> tensor<{rows}x{D}xf32>", text))

    assert [travels(remat) for remat in ("none", "dots", "full")] == [4, 4, 5]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 8, 6), 1), ((1, 6, 8), 2), ((2, 6, 8), 2), ((3, 8), 1), ((1, 8), 1), ((2, 3, 1024), 2)],
)
def test_a_scattered_gradient_is_the_sum_cut(shape, axis):
    """Whatever form it takes for the compiler's sake: one expert alone, few columns, many."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, expert=2))
    parts = np.random.default_rng(3).normal(size=(8, *shape)).astype(np.float32)
    everywhere = PartitionSpec(("fsdp", "expert"))
    run = jax.shard_map(
        lambda dy: expert_parallel._scattered(dy[0], ("fsdp",), axis)[None],
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,
    )
    found = np.asarray(jax.jit(run)(parts)).reshape(4, 2, *np.split(parts[0], 4, axis)[0].shape)
    sums = parts.reshape(4, 2, *shape).sum(axis=0)
    expected = np.stack(np.split(sums, 4, axis + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_matrices_are_summed_in_the_type_they_are_taken_by(dtype):
    """Which `train.gradient_dtype` chooses; the matrices travel in the model's type either way."""
    text = lowered_gradient(model(dtype="bfloat16"), dtype)
    scattered = re.findall(
        r'"stablehlo\.reduce_scatter".*?\}\) : \(tensor<[\dx]*x(\w+)>\)', text, re.DOTALL
    )
    assert scattered == [{"float32": "f32", "bfloat16": "bf16"}[dtype]] * 3
    matrices = re.findall(rf"stablehlo\.all_gather.*-> tensor<{E // 4}x[\dx]*x(\w+)>", text)
    assert len(matrices) >= 3 and set(matrices) == {"bf16"}


def test_tokens_stay_on_their_device_where_it_has_all_experts():
    """No array of the compiled program has the rows of the whole batch."""
    _, text = over(mesh_of("fsdp"), model())
    sizes = {int(n) for n in re.findall(r"\w+\[(\d+)[,\]]", text)}
    assert not sizes & {B * S, B * S * K}
    assert " all-to-all(" not in text


def test_rows_that_the_mesh_does_not_divide_are_filled_up():
    config = model()
    params, x, _, mask = initial()
    x, mask = x[:3, :1], np.array([[True], [False], [True]])
    run = lambda: MoE(config).apply({"params": params}, x, token_mask=mask)  # noqa: E731
    want = jax.jit(run)()
    with jax.set_mesh(mesh_of("fsdp, expert, context")):
        got = jax.jit(run)()
    assert_equal(got, want)


def test_bfloat16_over_a_mesh_is_near_float32():
    config = model(dtype="bfloat16")
    (_, (y, _)), _ = over(mesh_of("fsdp, expert"), config)
    want = np.asarray(alone(model())[1][0])
    assert np.median(np.abs(np.asarray(y, np.float32) - want)) < 0.02 * np.abs(want).max()


def test_a_buffer_is_the_even_share_times_the_factor_and_never_over_the_worst_case():
    way = Exchange("expert", 4, (), "padded", 1.5)
    assert way.room(8192, 2, 2) == (6144 + 128, 16384)
    assert dataclasses.replace(way, form="ragged").room(8192, 2, 2) == (24576 + 512, 65536)
    assert dataclasses.replace(way, factor=4.0).room(64, 2, 1) == (64, 64)


@pytest.mark.parametrize(
    ("mesh", "options", "message"),
    [
        (
            {"expert": 3},
            {},
            r"model\.moe\.num_experts \(8\) cannot be cut into 3 parts \(mesh\.expert",
        ),
        ({"fsdp": 3}, {}, r"model\.hidden_size \(16\) cannot be cut into 3"),
        ({"tensor": 3}, {}, r"model\.moe\.intermediate_size \(8\) cannot be cut into 3"),
        ({"context": 2}, {"dispatch": "capacity"}, r"set model\.moe\.group_size to a divisor of 6"),
    ],
)
def test_what_a_mesh_cannot_do_is_refused_by_name(mesh, options, message):
    sizes = {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1, "context": 1, **mesh}
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with pytest.raises(ConfigError, match=message):
        expert_parallel.check(model(**options), abstract, S)


def test_the_form_of_exchange_follows_the_device(caplog):
    def form(kind, size, wanted="auto"):
        device = jax.sharding.AbstractDevice(kind, 1, "tpu")
        mesh = AbstractMesh((size,), ("expert",), abstract_device=device)
        return expert_parallel.exchange_form(wanted, mesh)

    assert form("TPU v5 lite", 16) == form("TPU v6 lite", 256) == form("TPU v5", 512) == "ragged"
    assert form("TPU v5 lite", 32) == form("cpu", 8) == form("TPU v5", 8, "padded") == "padded"
    with caplog.at_level(logging.INFO):
        expert_parallel._log_once.cache_clear()
        form("TPU v5 lite", 64)
    assert "padded (TPU v5 lite has a ragged all-to-all up to 16 devices only)" in caplog.text
    with pytest.raises(ConfigError, match=r"exchange='ragged' cannot run: cpu has no ragged"):
        form("cpu", 8, "ragged")
