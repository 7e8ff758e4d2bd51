"""A mixture of experts over a mesh: who has which tokens and weights, and what each device does.

`sharding.RULES` cuts tokens along rows and length, experts over `expert`, their matrices over
`fsdp` (D) and `tensor` (F). Under one `shard_map` over all axes every device

1. gathers its own experts' matrices over `fsdp`, in the model's compute type; the transpose
   scatters their gradient's sum back. No device ever holds another's experts;
2. routes its own tokens: nothing is sorted across devices. With `mesh.expert` 1 that is all;
   otherwise rows travel to the experts' devices and back (`exchange`);
3. gives its part of the sum over `tensor`, and the router's sums over its tokens. Both are added
   up outside, where the partitioner knows best, and are those of one device.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Bool, Float

from jgpt.config import ConfigError, ModelConfig
from jgpt.kernels.nf4_matmul import Nf4
from jgpt.kernels.nf4_matmul.format import whole_scales
from jgpt.layers.exchange import Exchange
from jgpt.layers.experts import (
    SCALED,
    Adapted,
    Experts,
    Kernels,
    Weights,
    swiglu_experts,
    whole,
)
from jgpt.layers.packed import is_packed, packed_axes
from jgpt.sharding import RULES, spec
from jgpt.typing import Array, RouterStats

log = logging.getLogger(__name__)

RAGGED_DEVICES: dict[str, int] = {
    "TPU v5 lite": 16,
    "TPU v5": 2**31,
    "TPU v5p": 2**31,
    "TPU v6 lite": 2**31,
}
"""Device kind -> the largest mesh for which the TPU compiler takes `ragged_all_to_all`.

Found by compiling with libtpu 0.0.52: v5e refuses from 4x8 on ("limited ICI routing"), v6e and v5p
take all that were tried (to 16x16 and 8x8x8), tpu7x refuses; v4 was not tried."""

TILE = 128
"""Columns that lie together in a TPU's memory."""

GATHERED = "expert_kernels"
"""Name of the gathered matrices, by which they are left out of what is kept for the backward."""


def mesh_to_cut() -> AbstractMesh | None:
    """The mesh that is set, where a layer is to be cut over it.

    None without one, on one device, on a mesh without the axes of `sharding.RULES`, and where a
    `shard_map` has cut already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    known = {axis for axes in RULES.values() for axis in axes}
    if mesh.size == 1 or not known <= set(mesh.axis_names):
        return None
    return None if AxisType.Manual in mesh.axis_types else mesh


def over_mesh(
    route: Callable[..., tuple[Array, RouterStats]],
    config: ModelConfig,
    mesh: AbstractMesh,
    x: Float[Array, "B S D"],
    logits: Float[Array, "B S E"],
    token_mask: Bool[Array, "B S"],
    selection_bias: Float[Array, "E"] | None,
    kernels: Kernels,
) -> tuple[Float[Array, "B S D"], RouterStats]:
    """`route(config, x, ...)` on every device for its own tokens; value and gradient of one device.

    Rows and length are filled up with masked tokens where the mesh does not divide them, as when
    writing text.

    Args:
        route: `moe.route`.
        config: of the model.
        mesh: from `mesh_to_cut`.
        kernels: weights of all experts, placed as `sharding.RULES` says.

    Raises:
        ConfigError: sizes that the mesh does not divide, groups that it would cut, a form of
            exchange that cannot run.
    """
    check(config, mesh, x.shape[1])
    batch, length = RULES["batch"], RULES["length"]
    rows, columns = _parts(mesh, batch), _parts(mesh, length)
    tokens = PartitionSpec(batch, length)
    up, down = ("experts", "embed", "expert_mlp"), ("experts", "expert_mlp", "embed")
    kernels = Kernels(*(cuttable(weights) for weights in kernels))
    places = Kernels(*(weight_specs(w, axes) for w, axes in zip(kernels, (up, up, down))))

    def local(x, logits, mask, bias, kernels):
        gather = functools.partial(gathered_weights, config, mesh)
        weights = Kernels(*map(gather, kernels, places))
        moe = config.moe
        apply = functools.partial(swiglu_experts, moe.fused, moe.backend, config.dtype)
        way = make_exchange(config, mesh)
        y, stats = route(config, x, logits, mask, bias, Experts(apply, weights), way)
        return y[None], jax.tree.map(lambda s: s[None], stats)

    run = jax.shard_map(
        _regathering(local, config),
        in_specs=(tokens, tokens, tokens, PartitionSpec(), places),
        out_specs=(
            PartitionSpec(RULES["expert_mlp"], batch, length),
            PartitionSpec(batch + length),
        ),
        check_vma=False,
    )
    padded = (_pad(array, rows, columns) for array in (x, logits, token_mask))
    y, stats = run(*padded, selection_bias, kernels)
    y = jnp.sum(y, axis=0)[: x.shape[0], : x.shape[1]]
    return y, jax.tree.map(lambda s: jnp.sum(s, axis=0), stats)


def check(config: ModelConfig, mesh: AbstractMesh, length: int) -> None:
    """Raises ConfigError where `config` cannot run on `mesh`, or on it with rows of `length`."""
    for name, size, axes in (
        ("moe.num_experts", config.moe.num_experts, RULES["experts"]),
        ("hidden_size", config.hidden_size, RULES["embed"]),
        ("moe.intermediate_size", config.expert_size, RULES["expert_mlp"]),
    ):
        if size % _parts(mesh, axes):
            raise ConfigError(
                f"model.{name} ({size}) cannot be cut into {_parts(mesh, axes)} parts "
                f"(mesh.{' x mesh.'.join(axes)}); choose sizes that divide"
            )
    grouped = config.moe.dispatch == "capacity" or config.moe.router == "expert_choice"
    columns = _parts(mesh, RULES["length"])
    group = config.moe.group_size or length
    if grouped and columns > 1 and (length % columns or (length // columns) % group):
        raise ConfigError(
            f"groups of {group} tokens would be cut by mesh.{' x mesh.'.join(RULES['length'])} "
            f"({columns}); set model.moe.group_size to a divisor of {max(1, length // columns)}, "
            "or model.moe.dispatch to 'dropless'"
        )


def make_exchange(config: ModelConfig, mesh: AbstractMesh) -> Exchange | None:
    """How rows travel on this mesh; None where every device has all experts.

    Raises:
        ConfigError: `moe.exchange='ragged'` where it cannot run.
    """
    (axis,) = RULES["experts"]
    if mesh.shape[axis] == 1:
        return None
    return Exchange(
        axis=axis,
        size=mesh.shape[axis],
        other_axes=tuple(name for name in mesh.axis_names if name != axis),
        form=exchange_form(config.moe.exchange, mesh),
        factor=config.moe.exchange_factor,
    )


def exchange_form(wanted: str, mesh: AbstractMesh) -> str:
    """`ragged` or `padded`, for the devices that the program is compiled for.

    Raises:
        ConfigError: `wanted` is `ragged`, which cannot run there.
    """
    device = mesh.abstract_device
    kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    reason = ""
    if kind not in RAGGED_DEVICES:
        reason = f"{kind} has no ragged all-to-all"
    elif mesh.size > RAGGED_DEVICES[kind]:
        reason = f"{kind} has a ragged all-to-all up to {RAGGED_DEVICES[kind]} devices only"
    if wanted == "ragged" and reason:
        raise ConfigError(f"model.moe.exchange='ragged' cannot run: {reason}; set it to 'auto'")
    form = wanted if wanted != "auto" else "padded" if reason else "ragged"
    _log_once(form, reason)
    return form


@functools.cache
def _log_once(form: str, why: str) -> None:
    log.info("exchange between experts: %s%s", form, f" ({why})" if why else "")


def cuttable(weights: Weights) -> Weights:
    """Weights all of whose arrays can be cut as the kernel is: scales of scales are multiplied out
    (half a bit per number), which lie in one row over the whole kernel."""
    if isinstance(weights, Adapted):
        return dataclasses.replace(weights, kernel=cuttable(weights.kernel))
    if isinstance(weights, Nf4):
        return Nf4(weights.codes, jax.vmap(whole_scales)(weights))
    return weights


def weight_specs(weights: Weights, axes: tuple[str, ...]) -> Any:
    """How every array of an expert's weights lies over the mesh; `axes` are the kernel's."""
    if isinstance(weights, Adapted):
        return dataclasses.replace(
            weights,
            kernel=weight_specs(weights.kernel, axes),
            leaves={name: spec(names) for name, names in weights.axes},
        )
    if is_packed(weights):
        names = packed_axes(weights, axes)
        return jax.tree.map(spec, names, is_leaf=lambda x: isinstance(x, tuple))
    return spec(axes)


def gathered_weights(
    config: ModelConfig, mesh: AbstractMesh, weights: Weights, places: Any
) -> Weights:
    """The weights of the device's experts, whole along D. Packed kernels travel as they are, and
    are numbers from here on; both is done again in the backward pass."""
    if isinstance(weights, Adapted):
        leaves = {
            name: gathered(config, mesh, leaf, places.leaves[name])
            for name, leaf in weights.leaves.items()
        }
        kernel = gathered_weights(config, mesh, weights.kernel, places.kernel)
        return dataclasses.replace(weights, kernel=kernel, leaves=leaves)
    if is_packed(weights):
        packed = jax.tree.map(functools.partial(_all_gathered, mesh), weights, places)
        return checkpoint_name(whole(packed, config.dtype), GATHERED)
    return gathered(config, mesh, weights, places)


def gathered(config: ModelConfig, mesh: AbstractMesh, array: Array, place: PartitionSpec) -> Array:
    """The device's experts' part of an array, whole along D; nothing to do where it is."""
    names, axis = _cut_along(mesh, place)
    if axis is None:
        return array
    return checkpoint_name(_gathered(array, names, axis, config.dtype), GATHERED)


def _all_gathered(mesh: AbstractMesh, array: Array, place: PartitionSpec) -> Array:
    names, axis = _cut_along(mesh, place)
    return array if axis is None else lax.all_gather(array, names, axis=axis, tiled=True)


def _cut_along(mesh: AbstractMesh, place: PartitionSpec) -> tuple[tuple[str, ...], int | None]:
    """Mesh axes that cut D, and which axis of the array that is."""
    names = tuple(name for name in RULES["embed"] if mesh.shape[name] > 1)
    entry = spec(("embed",))[0]
    return names, place.index(entry) if names and entry in place else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(kernel: Array, names: tuple[str, ...], axis: int, dtype: str) -> Array:
    """Numbers of `dtype` in an array of the kernel's type.

    They travel in `dtype`. Their gradient is of the kernel's type (`train.gradient_dtype`), from
    the product on through the sum over devices.
    """
    whole = lax.all_gather(kernel.astype(dtype), names, axis=axis, tiled=True)
    return whole.astype(kernel.dtype)


def _gathered_forward(kernel, names, axis, dtype):
    return _gathered(kernel, names, axis, dtype), None


def _gathered_backward(names, axis, dtype, _, dy):
    return (_scattered(dy, names, axis),)


def _scattered(dy: Array, names: tuple[str, ...], axis: int) -> Array:
    """The sum over devices, cut along `axis`, in a form that costs a reduce-scatter on TPU.

    The compiler adds up by an all-reduce and cuts afterwards, which sends twice as much, where a
    first axis of size 1 lies before the one that is cut, and where every device gets only one tile
    of columns of the last axis.
    """
    rows = dy[0] if dy.shape[0] == 1 and axis > 0 else dy
    axis -= dy.ndim - rows.ndim
    columns = dy.shape[-1] // math.prod(lax.axis_size(name) for name in names)
    turned = rows.ndim > 1 and axis == rows.ndim - 1 and columns < 2 * TILE
    if turned:
        in_order = Layout(tuple(range(rows.ndim)))
        rows, axis = with_layout_constraint(jnp.swapaxes(rows, -1, -2), in_order), axis - 1
    part = lax.psum_scatter(rows, names, scatter_dimension=axis, tiled=True)
    part = jnp.swapaxes(part, -1, -2) if turned else part
    return part if part.ndim == dy.ndim else part[None]


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _regathering(local: Callable[..., Any], config: ModelConfig) -> Callable[..., Any]:
    """`local`, whose backward pass gathers matrices again rather than keep them.

    Where the block is recomputed (`model.remat`), that happens by itself.
    """
    if config.remat != "none":
        return local
    policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED, SCALED)
    return jax.checkpoint(local, policy=policy, prevent_cse=config.scan_layers != "on")


def _parts(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _pad(x: Array, rows: int, columns: int) -> Array:
    """Zeros after the first two axes, up to multiples."""
    missing = [(0, -x.shape[0] % rows), (0, -x.shape[1] % columns)]
    if missing == [(0, 0), (0, 0)]:
        return x
    return jnp.pad(x, missing + [(0, 0)] * (x.ndim - 2))
