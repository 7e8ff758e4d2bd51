"""The TPU kernels of the loss: against float64 in the interpreter, and through the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.cross_entropy import pallas_tpu
from tests.kernels.test_cross_entropy import OPTIONS, expected, relative_error

SHAPES = {
    "whole blocks": (256, 24, 256),
    "ragged tokens and vocabulary": (150, 24, 300),
    "less than a block": (5, 9, 50),
    "many steps": (130, 8, 1100),
}
"""Tokens, width, vocabulary."""


def inputs(tokens, width, vocabulary, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 2, (1, tokens)) * (rng.uniform(size=(1, tokens)) > 0.3)
    return {
        "hidden": jnp.asarray(rng.standard_normal((1, tokens, width)), dtype),
        "head": jnp.asarray(rng.standard_normal((width, vocabulary)), dtype),
        "bias": jnp.asarray(rng.standard_normal(vocabulary), jnp.float32),
        "targets": jnp.asarray(rng.integers(0, vocabulary, (1, tokens)), jnp.int32),
        "weights": jnp.asarray(weights, jnp.float32),
    }


def run(x, blocks=(128, 128), interpret=True, **options):
    """Sums, gradients, log-probabilities and their gradients from one program."""
    names = ("hidden", "head", "bias") if options.pop("bias", False) else ("hidden", "head")
    both = {"blocks": blocks, "interpret": interpret}
    capped = {n: o for n, o in options.items() if n == "softcap"}

    def losses(smooth):
        def total(smooth):
            sums = pallas_tpu.cross_entropy(
                targets=x["targets"], weights=x["weights"], **smooth, **options, **both
            )
            return 3 * sums.total, sums

        def logps(smooth):
            return pallas_tpu.token_logps(targets=x["targets"], **smooth, **capped, **both)

        (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(smooth)
        values, pull = jax.vjp(logps, smooth)
        return (
            sums,
            [gradients[n] / 3 for n in names],
            values,
            [pull(-x["weights"])[0][n] for n in names],
        )

    sums, *rest = jax.jit(losses)({n: x[n] for n in names})
    return (sums.total, sums.nll, sums.z, sums.correct, sums.weight), *rest


def errors(x, **options):
    """Of each sum, gradient, log-probability and gradient of those, relative to float64."""
    sums, gradients, logps, pulled = run(x, **options)
    options = {n: o for n, o in options.items() if n not in ("blocks", "interpret")}
    exact = jax.tree.map(np.asarray, x)
    want_sums, want, want_logps = expected(exact, **options)
    plain = {n: o for n, o in options.items() if n in ("softcap", "bias")}
    _, want_pulled, want_logps = expected(exact, **plain)
    pairs = [*zip(sums, want_sums), *zip(gradients, want), *zip(pulled, want_pulled)]
    return [relative_error(*pair) for pair in [*pairs, (logps, want_logps)]]


TABLE = [("ragged tokens and vocabulary", option) for option in OPTIONS]
TABLE += [(shape, "everything") for shape in SHAPES if "ragged" not in shape]


@pytest.mark.parametrize("shape, option", TABLE)
def test_kernels_equal_the_reference(shape, option):
    found = errors(inputs(*SHAPES[shape]), **OPTIONS[option])
    assert max(found) < 2e-5, found


@pytest.mark.parametrize("blocks", [(256, 128), (128, 256)])
def test_blocks_do_not_matter(blocks):
    found = errors(inputs(300, 16, 500), blocks=blocks, z_loss=0.1)
    assert max(found) < 2e-5, found


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "label_smoothing": 0.1, "bias": True}])
def test_bfloat16_stays_close_to_float64(options):
    found = errors(inputs(200, 24, 300, "bfloat16"), **options)
    assert max(found) < 1e-2, found


def test_gradients_of_confident_tokens_are_precise_in_bfloat16():
    """p - 1 at the target comes from float32, not from a rounded p."""
    x = inputs(128, 16, 256, "bfloat16")
    head = np.zeros((16, 256), np.float32)
    head[np.arange(16), np.arange(16)] = 8
    hidden = np.eye(16, dtype=np.float32)[np.arange(128) % 16]
    x |= {"hidden": jnp.asarray(hidden[None], "bfloat16"), "head": jnp.asarray(head, "bfloat16")}
    x["targets"] = jnp.asarray(np.arange(128)[None] % 16, jnp.int32)
    found = errors(x)
    assert max(found[5:]) < 1e-2, found


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 200),
    width=st.integers(1, 40),
    vocabulary=st.integers(2, 400),
    z_loss=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([0.0, 3.0]),
    label_smoothing=st.sampled_from([0.0, 0.3]),
    bias=st.booleans(),
)
def test_any_shape_and_any_option(tokens, width, vocabulary, **options):
    found = errors(inputs(tokens, width, vocabulary, seed=tokens), **options)
    assert max(found) < 3e-5, found


def test_large_scores_and_tokens_of_weight_zero():
    x = inputs(140, 16, 200)
    x["hidden"] *= 1e3
    _, gradients, _, _ = run(x)
    _, want, _ = expected(jax.tree.map(np.asarray, x))
    assert max(map(relative_error, gradients, want)) < 1e-3
    assert not np.asarray(gradients[0])[np.asarray(x["weights"]) == 0].any()


def test_nothing_is_computed_twice():
    """Two kernels with the gradient in the forward pass, one without; three with probabilities."""
    x = inputs(128, 16, 256)

    def total(hidden):
        return pallas_tpu.cross_entropy(
            hidden, x["head"], x["targets"], x["weights"], interpret=False, blocks=(128, 128)
        ).total

    assert str(jax.make_jaxpr(total)(x["hidden"])).count("pallas_call[") == 1
    assert str(jax.make_jaxpr(jax.grad(total))(x["hidden"])).count("pallas_call[") == 2


def test_no_races_and_nothing_out_of_bounds():
    """Two chunks, so that the head's gradient is added to in place, of two blocks, one ragged."""
    x = inputs(150, 8, 200)
    strict = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)

    def total(hidden, head):
        return pallas_tpu.cross_entropy(
            hidden, head, x["targets"], x["weights"], blocks=(128, 128), interpret=strict
        ).total

    found = jax.jit(jax.grad(total, (0, 1)))(x["hidden"], x["head"])
    _, want, _ = expected(jax.tree.map(np.asarray, x))
    assert max(map(relative_error, found, want)) < 2e-5


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jgpt.kernels.cross_entropy import cross_entropy, pallas_tpu, token_logps

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = Mesh(np.array(topology.devices[:4]).reshape(2, 2), ("fsdp", "tensor"),
            axis_types=(AxisType.Auto,) * 2)

def array(shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

tokens = array((4, 300), jnp.int32, "fsdp")
weights = array((4, 300), jnp.float32, "fsdp")

for width, dtype in ((256, jnp.bfloat16), (192, jnp.float32)):
    def loss(hidden, head, bias, targets, weights):
        options = dict(bias=bias, softcap=30.0, backend="pallas_tpu")
        sums = cross_entropy(hidden, head, targets, weights, label_smoothing=0.1, **options)
        return sums.total + token_logps(hidden, head, targets, **options).sum()
    with jax.set_mesh(mesh):
        hidden = array((4, 300, width), dtype, "fsdp")
        head = array((width, 2 * 700), jnp.float32, "fsdp", "tensor")
        bias = array((2 * 700,), jnp.float32, "tensor")
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
            hidden, head, bias, tokens, weights).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= 4, "our kernels run"
print("compiled")
"""


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_tpu(topology, compile_for_tpu):
    assert compile_for_tpu(PROGRAM, topology).strip() == "compiled"
