"""A model that computes with its adapters: `bind` is the one seam between the two.

The adapters lie in a variable collection of their own beside `params` (`adapters`, with `constants`
for what is not trained), so that scans, remat and meshes carry them like parameters. One
interceptor, entered inside the function that is traced, puts a method's `call` around the five
kinds of sites; a site without leaves is left as it is.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError
from jgpt.peft.adapters import SHARED, Peft
from jgpt.peft.experts import adapted_experts
from jgpt.peft.method import Call
from jgpt.peft.sites import KINDS, WEIGHTS, WRAPPED
from jgpt.peft.thin import thin_matmul
from jgpt.typing import Array, Batch

TRAINED, CONSTANTS = "adapters", "constants"
"""The collections."""
ADAPTER_IDS = "adapter_ids"
"""In a batch: [B] int32, which of several stacked adapters each row has."""


def bind(peft: Peft, apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` (as `models.apply` with its config bound) that computes with adapters.

    Its `variables` hold the collections `adapters` and `constants` beside `params`. Where the batch
    has `adapter_ids` [B], every leaf has a leading axis of adapters (behind that of stacked
    layers), and each row uses its own (`jgpt.peft.compose.stack`).

    The function's attributes `virtual_tokens` and `past_tokens` say what the method puts before a
    document, of which generation takes account by itself.
    """
    past = peft.method.past_tokens(peft.settings)

    @functools.wraps(apply)
    def bound(variables: Mapping[str, Any], batch: Batch, **options: Any) -> Any:
        collections = {name: dict(variables.get(name, {})) for name in (TRAINED, CONSTANTS)}
        shared = {k: v for c in collections.values() for k, v in c.pop(SHARED, {}).items()}
        around = functools.partial(_around, peft, shared, batch.get(ADAPTER_IDS))
        if past:
            options["past_tokens"] = past
        with nn.intercept_methods(around):
            return apply({**variables, **collections}, batch, **options)

    bound.virtual_tokens = peft.method.virtual_tokens(peft.settings)
    bound.past_tokens = past
    return bound


def _around(peft: Peft, shared: dict, ids: Array | None, next_function, args, kwargs, context):
    module = context.module
    kind = KINDS.get(type(module))
    if kind not in peft.method.kinds or context.method_name != WRAPPED.get(kind, "__call__"):
        return next_function(*args, **kwargs)
    variables = module.variables
    leaves = {**variables.get(TRAINED, {}), **variables.get(CONSTANTS, {})}
    if not leaves:
        return next_function(*args, **kwargs)
    if kind == "experts":
        if ids is not None:
            raise ConfigError(
                "batch['adapter_ids']: experts do not see the rows of a batch; adapt other modules "
                "(peft.exclude), or merge one adapter at a time"
            )
        return adapted_experts(peft, module, next_function(*args, **kwargs), leaves)
    if kind == "linear":
        args = (args[0].astype(module.dtype), *args[1:])
    call = Call(
        leaves=leaves,
        settings=peft.settings,
        base=functools.partial(next_function, **kwargs),
        product=thin_matmul if ids is None else functools.partial(_product_by_row, ids),
        lookup=_same if ids is None else functools.partial(_vector_by_row, ids),
        rows=_rows if ids is None else functools.partial(_rows_by_row, ids),
        weight=variables.get("params", {}).get(WEIGHTS.get(kind)),
        bias=variables.get("params", {}).get("bias"),
        shared=shared,
        key=module.make_rng(TRAINED) if module.has_rng(TRAINED) else None,
        kind=kind,
    )
    return peft.method.call(call, *args)


def _same(vector: Array) -> Array:
    return vector


def _rows(table: Array, ids: Array) -> Array:
    return jnp.take(table, ids, axis=0, mode="clip")


def _product_by_row(ids: Array, x: Array, matrices: Array) -> Array:
    """x [B, ..., in] times each row's own of matrices [N, in, out]."""
    own = jnp.take(matrices, ids, axis=0).astype(x.dtype)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    y = lax.dot_general(rows, own, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _vector_by_row(ids: Array, vectors: Array) -> Array:
    """[B, 1, n] of vectors [N, n]."""
    return jnp.take(vectors, ids, axis=0)[:, None]


def _rows_by_row(ids: Array, tables: Array, tokens: Array) -> Array:
    """tables [N, V, r] and tokens [B, S] to [B, S, r]."""
    return tables[ids[:, None], tokens]
