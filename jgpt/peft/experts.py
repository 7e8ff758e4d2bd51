"""Adapters on layers of experts: one per expert, on the rows that go to it.

Such a layer is a function of its weights, which travel to where the rows are: on a mesh that is
inside of a `shard_map`, and again in further rounds of an exchange. So an adapter does not wrap a
call there; it is put into the weights (`layers.experts.Adapted`), and lies over the mesh as its
leaves' axes say.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.layers.experts import Adapted, ExpertLinear, Weights, expert_linear
from jgpt.peft.adapters import Peft
from jgpt.peft.method import Call, Leaf
from jgpt.sharding import RULES
from jgpt.typing import Array

KEY = "dropout_key"
"""Among the leaves: a key as numbers that travel like others."""


def adapted_experts(
    peft: Peft, module: ExpertLinear, kernel: Weights, leaves: dict[str, Array]
) -> Adapted:
    """`kernel` with the adapter of the module that it belongs to."""
    own = leaves_of(peft, module.path)
    axes = {name: own[name].axes for name in leaves}
    if module.has_rng("adapters") and peft.settings.dropout:
        leaves = {**leaves, KEY: _as_numbers(module.make_rng("adapters"))}
        axes[KEY] = (None, None)
    fan_in = module.axes[0]
    call = functools.partial(_call, peft, fan_in)
    return Adapted(kernel, leaves, tuple(axes.items()), call)


def leaves_of(peft: Peft, path: tuple[str, ...]) -> dict[str, Leaf]:
    """The leaves of a module, at its path in the scanned or unrolled model; all layers have the
    same."""
    place = "/" + "/".join(path[-2:])
    return next(leaves for site, leaves in peft.leaves.items() if site.endswith(place))


def _call(
    peft: Peft,
    fan_in: str,
    adapted: Adapted,
    x: Array,
    group_sizes: Array | None,
    backend: str,
) -> Array:
    leaves = dict(adapted.leaves)
    key = leaves.pop(KEY, None)

    def base(x: Array, *_: Array | None) -> Array:
        return expert_linear(x, adapted.kernel, group_sizes, backend)

    def product(x: Array, matrices: Array) -> Array:
        return expert_linear(x, matrices, group_sizes, backend)

    def lookup(vectors: Array) -> Array:
        if group_sizes is None:
            return vectors[:, None]
        return jnp.repeat(vectors, group_sizes, axis=0, total_repeat_length=len(x))

    call = Call(
        leaves=leaves,
        settings=peft.settings,
        base=base,
        product=product,
        lookup=lookup,
        rows=_no_rows,
        kind="experts",
        weight=adapted.kernel,
        key=None if key is None else _own_key(key),
        total=functools.partial(_total, fan_in),
    )
    return peft.method.call(call, x, group_sizes)


def _no_rows(table: Array, ids: Array) -> Array:
    raise TypeError("experts have no tables")


def _as_numbers(key: Array) -> Array:
    """[2, words] float32 of a key: halves of its words, which are exact.

    The weights of experts are differentiated, as numbers only can be.
    """
    words = jax.random.key_data(key).reshape(-1)
    return jnp.stack([words >> 16, words & 0xFFFF]).astype(jnp.float32)


def _own_key(numbers: Array) -> Array:
    """The key, on a mesh another for every device with tokens of its own."""
    high, low = lax.stop_gradient(numbers).astype(jnp.uint32)
    key = jax.random.wrap_key_data(high << 16 | low)
    for axis in _manual_axes(RULES["batch"] + RULES["length"]):
        key = jax.random.fold_in(key, lax.axis_index(axis))
    return key


def _total(fan_in: str, part: Array) -> Array:
    """The sum of `part` over devices that hold parts of the inputs each."""
    axes = _manual_axes(RULES[fan_in]) if fan_in == "expert_mlp" else ()
    return lax.psum(part, axes) if axes else part


def _manual_axes(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those that a `shard_map` around this cuts over."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in axes if axis in mesh.manual_axes)
