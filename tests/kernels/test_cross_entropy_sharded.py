"""The loss over meshes of eight devices: equal to one device's, and no head is gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jgpt.kernels.cross_entropy import blockwise, layout, pallas_tpu, reference
from jgpt.sharding import RULES
from tests.kernels.test_cross_entropy import inputs, relative_error

AXES = ("data", "fsdp", "expert", "tensor", "context")
MESHES = {
    "tensor": {"tensor": 8},
    "data and tensor": {"data": 2, "tensor": 4},
    "fsdp and tensor": {"fsdp": 4, "tensor": 2},
    "data, fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp": {"fsdp": 8},
    "context and tensor": {"fsdp": 2, "context": 2, "tensor": 2},
    "experts and tensor": {"expert": 4, "tensor": 2},
}
BOTH = {**RULES, "vocab": ("tensor", "fsdp"), "embed": ()}
"""Rules by which `fsdp` cuts tokens and vocabulary alike."""
OPTIONS = {"z_loss": 0.05, "softcap": 2.0, "label_smoothing": 0.1}


def arrays(rows=8, length=12, vocabulary=160):
    """A device's part of the vocabulary is longer than every other axis."""
    rng, x = np.random.default_rng(vocabulary), inputs(rows, length)
    return x | {
        "head": jnp.asarray(rng.standard_normal((x["hidden"].shape[-1], vocabulary))),
        "bias": jnp.asarray(rng.standard_normal(vocabulary)),
        "targets": jnp.asarray(rng.integers(0, vocabulary, (rows, length)), jnp.int32),
    }


def results(function, x):
    """Sums and gradients of the loss, log-probabilities and their gradients, and the program."""

    def run(smooth, targets, weights):
        def total(smooth):
            sums = function.cross_entropy(targets=targets, weights=weights, **smooth, **OPTIONS)
            return 3 * sums.total, sums

        def logps(smooth):
            return function.token_logps(targets=targets, **smooth, softcap=2.0)

        loss, gradients = jax.value_and_grad(total, has_aux=True)(smooth)
        values, pull = jax.vjp(logps, smooth)
        return loss, gradients, values, pull(weights)

    smooth = {n: x[n] for n in ("hidden", "head", "bias")}
    arguments = smooth, x["targets"], x["weights"]
    compiled = jax.jit(run).lower(*arguments).compile()
    return jax.tree.map(np.asarray, compiled(*arguments)), compiled.as_text()


def over(mesh, rules, x):
    def put(x, *axes):
        axes = [tuple(a for a in axis if mesh.shape[a] > 1) or None for axis in axes]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    tokens = rules["batch"], rules["length"]
    return {
        "hidden": put(x["hidden"], *tokens),
        "head": put(x["head"], rules["embed"], rules["vocab"]),
        "bias": put(x["bias"], rules["vocab"]),
        "targets": put(x["targets"], *tokens),
        "weights": put(x["weights"], *tokens),
    }


def make_mesh(sizes):
    sizes = {name: sizes.get(name, 1) for name in AXES}
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def gathered_heads(text, vocabulary, parts):
    """Results of all-gathers of more than a device's part of the vocabulary."""
    shapes = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather", text)
    sizes = [max(map(int, shape.split(","))) for shape in shapes if shape]
    return [size for size in sizes if size > vocabulary // parts]


@pytest.mark.parametrize("rules", [RULES, BOTH], ids=["one", "both"])
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_changes_no_value_and_no_gradient(name, rules, x64, monkeypatch):
    if rules is BOTH and "fsdp" not in MESHES[name]:
        pytest.skip("the same as with the other rules")
    x = arrays()
    want, _ = results(reference, x)
    monkeypatch.setattr(layout, "RULES", rules)
    monkeypatch.setattr(blockwise, "CHUNK", 5)
    mesh = make_mesh(MESHES[name])
    with jax.set_mesh(mesh):
        assert not layout.find_layout(*x["hidden"].shape, x["head"].shape[1])[1]
        got, text = results(blockwise, over(mesh, rules, x))
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-12, errors
    parts = int(np.prod([mesh.shape[a] for a in rules["vocab"]]))
    if parts > 1:
        assert not gathered_heads(text, x["head"].shape[1], parts)


def test_the_kernels_on_a_mesh_equal_one_device():
    with jax.enable_x64(True):
        x = arrays()
        want, _ = results(reference, x)
        x = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float32), x)

    class Interpreted:
        @staticmethod
        def cross_entropy(**options):
            return pallas_tpu.cross_entropy(**options, blocks=(128, 128), interpret=True)

        @staticmethod
        def token_logps(**options):
            return pallas_tpu.token_logps(**options, blocks=(128, 128), interpret=True)

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        got, text = results(Interpreted, over(mesh, RULES, x))
    errors = jax.tree.map(relative_error, got, want)
    assert max(jax.tree.leaves(errors)) < 5e-5, errors
    assert not gathered_heads(text, x["head"].shape[1], 2)


def test_what_cannot_be_cut_is_left_to_the_compiler(x64):
    x = arrays(rows=3, vocabulary=47)
    want, _ = results(reference, x)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        reason = layout.find_layout(*x["hidden"].shape, 47)[1]
        assert reason == "rows of size 3 cannot be cut into 2"
        got, _ = results(blockwise, x)
    assert max(jax.tree.leaves(jax.tree.map(relative_error, got, want))) < 1e-12


def test_inside_of_a_shard_map_only_the_devices_own_tokens_are_seen(x64):
    x = arrays()
    mesh = make_mesh({"data": 8})

    def own(hidden, targets, weights):
        return blockwise.cross_entropy(hidden, x["head"], targets, weights).total[None]

    rows = PartitionSpec("data")
    with jax.set_mesh(mesh):
        got = jax.jit(
            jax.shard_map(own, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False)
        )(x["hidden"], x["targets"], x["weights"])
    for i in range(8):
        part = [x[n][i : i + 1] for n in ("hidden", "targets", "weights")]
        want = reference.cross_entropy(part[0], x["head"], *part[1:]).total
        assert relative_error(got[i], want) < 1e-12
