"""Several adapters into one, as pure functions on pairs of a `Peft` and its `Adapters`.

Every update that is a product of two thin matrices (LoRA and its kin, AdaLoRA, VeRA) is looked at
as that, s and all scales put in: `Factors`, A [in, r] and B [r, out] of each site. Operations turn
lists of factors into factors, and `from_factors` makes plain LoRA of them with s = 1.

| name | what comes out | rank |
| --- | --- | --- |
| `cat` | the weighted sum of the updates, exactly | sum of the ranks |
| `svd` | the nearest to it of a given rank | given |
| `linear` | the weighted sums of A and of B: **not** the sum of the updates | that of all |
| `magnitude_prune`, `ties`, `dare_linear`, `dare_ties` | the same on pruned A and B | that of all |
| `*_svd` of these | pruning of the updates themselves, then `svd` | given |

`cat` is what one means by a sum, and negative weights take a task away (Ilharco et al. 2023, "Task
arithmetic"). The names are those of peft's `add_weighted_adapter`, and so are the figures
(`jgpt.peft.compose_rules` has the pruning). On A and B apart, pruning and electing signs have no
meaning for the product; the `*_svd` forms are what the papers describe.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.peft import compose_rules as rules
from jgpt.peft import lora, vera
from jgpt.peft.adapters import SHARED, Adapters, Peft, fit, flat, laid_out, nested, unrolled
from jgpt.peft.sites import find_sites
from jgpt.typing import Array

Pair = tuple[Peft, Adapters]


class Factor(NamedTuple):
    """Update `a @ b` of one site; experts have a leading axis."""

    a: Array
    """[in, r], of an embedding [V, r]; float32"""
    b: Array
    """[r, out]"""

    @property
    def product(self) -> Array:
        return jnp.matmul(self.a, self.b, precision=lax.Precision.HIGHEST)


Factors = Mapping[str, Factor]
"""By the path of the site in the unrolled model."""


# --- to factors and back -------------------------------------------------------------------------


def factors(peft: Peft, adapters: Adapters) -> dict[str, Factor]:
    """The updates as products of two.

    Raises:
        ConfigError: the method changes the model in another way, or has biases.
    """
    leaves = dict(flat(unrolled(peft, adapters.trained)))
    leaves |= dict(flat(unrolled(peft, adapters.constants)))
    shared = {name: leaves[f"{SHARED}/{name}"] for name in peft.leaves.get(SHARED, {})}
    found = {}
    for target in peft.targets:
        path = target.site.path
        own = {name: leaves[f"{path}/{name}"].astype(jnp.float32) for name in peft.leaves[path]}
        _refuse(peft, own)
        if not target.rank:
            continue
        found[path] = _factor(own, shared, target.site.matrix)
    return found


def _refuse(peft: Peft, own: Mapping[str, Array]) -> None:
    """Raises ConfigError where a site's leaves are no plain product."""
    what = peft.settings.method
    if "lora_bias" in own:
        raise ConfigError("peft.bias: a sum of adapters has no place for biases; train without")
    if "magnitude" in own:
        raise ConfigError("DoRA rescales the whole weight and adds nothing; merge it into the base")
    if not {"lora_a", "vera_b"} & own.keys():
        raise ConfigError(
            f"peft.method={what!r} adds no product of two matrices; only those of the LoRA family "
            "can be put together"
        )


def _factor(own: Mapping[str, Array], shared: Mapping[str, Array], matrix: tuple) -> Factor:
    if "vera_b" in own:
        a, b = vera.projections(shared, matrix[0], own["vera_d"].shape[-1], matrix[1])
        return Factor(a * own["vera_d"], b * own["vera_b"])
    scale = own["scaling"] * own.get("lora_e", 1.0)
    used = jnp.flatnonzero((scale != 0).reshape(-1, scale.shape[-1]).any(0))
    return Factor((own["lora_a"] * scale[..., None, :])[..., used], own["lora_b"][..., used, :])


def from_factors(model: ModelConfig, found: Factors, dtype: str = "float32") -> Pair:
    """Plain LoRA with these updates, s = 1, in the layout that `model` asks for.

    Raises:
        ConfigError: there is none, or a site that the model does not have.
    """
    ranks = {path: factor.a.shape[-1] for path, factor in found.items()}
    ranks = {path: rank for path, rank in ranks.items() if rank}
    if not ranks:
        raise ConfigError("nothing is left of these adapters: their updates are all zero")
    most = max(ranks.values())
    settings = PeftConfig(
        method="lora",
        targets=tuple(f"^{path}$" for path in ranks),
        rank=most,
        rank_pattern=tuple(f"^{path}$={r}" for path, r in ranks.items() if r != most),
        dtype=dtype,
    )
    peft = fit(compact(settings, model), model, {"lora": lora.LORA})
    trained, constants = {}, {}
    for target in peft.targets:
        path = target.site.path
        shapes = peft.leaves[path]
        given = found.get(path) if target.rank else None
        for name, leaf in (("lora_a", "a"), ("lora_b", "b")):
            whole = jnp.zeros(shapes[name].shape, dtype)
            value = getattr(given, leaf) if given is not None else whole[..., :0, :0]
            trained[f"{path}/{name}"] = lax.dynamic_update_slice(
                whole, value.astype(dtype), (0,) * whole.ndim
            )
        scaling = shapes["scaling"]
        used = jnp.arange(target.width) < target.rank
        constants[f"{path}/scaling"] = jnp.broadcast_to(used, scaling.shape).astype(jnp.float32)
    return peft, Adapters(laid_out(peft, nested(trained)), laid_out(peft, nested(constants)))


def compact(settings: PeftConfig, model: ModelConfig) -> PeftConfig:
    """The same targets, and ranks and alphas, by fewer patterns where all layers have the same."""

    def shorter(patterns: Sequence[str]) -> tuple[str, ...]:
        every = len({m[1] for m in map(re.compile(r"^\^(layers_\d+)/").match, patterns) if m})
        groups: dict[str, list[str]] = {}
        for pattern in patterns:
            groups.setdefault(re.sub(r"^\^layers_\d+/", r"^layers_\\d+/", pattern), []).append(
                pattern
            )
        short = []
        for general, own in groups.items():
            whole = every == model.num_layers == len(own) and general.startswith(r"^layers_\d+/")
            short += [general] if whole else own
        return tuple(short)

    return dataclasses.replace(
        settings,
        targets=shorter(settings.targets),
        rank_pattern=shorter(settings.rank_pattern),
        alpha_pattern=shorter(settings.alpha_pattern),
    )


def as_lora(pair: Pair) -> Pair:
    """The same adapters as plain LoRA with s = 1.

    Raises:
        ConfigError: as `factors`.
    """
    peft, adapters = pair
    return from_factors(peft.model, factors(peft, adapters), peft.settings.dtype)


# --- operations ----------------------------------------------------------------------------------


def cat(found: Sequence[Factors], weights: Sequence[float]) -> dict[str, Factor]:
    """sum_i w_i a_i b_i, exactly: the factors side by side."""

    def side_by_side(own: list[Factor], w: list[float]) -> Factor:
        a = jnp.concatenate([f.a * weight for f, weight in zip(own, w)], axis=-1)
        return Factor(a, jnp.concatenate([f.b for f in own], axis=-2))

    return _by_site(found, weights, side_by_side)


def truncated(found: Factors, rank: int) -> dict[str, Factor]:
    """The nearest updates of at most this rank (Eckart and Young); b's rows are orthonormal."""
    return {path: _truncated(factor.product, rank) for path, factor in found.items()}


def _truncated(update: Array, rank: int) -> Factor:
    left, values, right = jnp.linalg.svd(update, full_matrices=False)
    return Factor(left[..., :rank] * values[..., None, :rank], right[..., :rank, :])


def on_factors(
    rule: rules.Rule, found: Sequence[Factors], weights: Sequence[float]
) -> dict[str, Factor]:
    """`rule` on the A's with weights sign(w) sqrt|w|, and on the B's with sqrt|w|.

    The product has cross terms A_i B_j: it is not the weighted sum of the updates.

    Raises:
        ConfigError: ranks that differ.
    """

    def one(own: list[Factor], w: list[float]) -> Factor:
        if len({f.a.shape[-1] for f in own}) > 1:
            raise ConfigError("adapters of different rank: use 'cat', 'svd' or a form '..._svd'")
        w = jnp.asarray(w, jnp.float32)
        root = jnp.sqrt(jnp.abs(w))
        sides = [(root * jnp.where(w < 0, -1, 1), "a", 0), (root, "b", 1)]
        return Factor(*(rule(jnp.stack([getattr(f, n) for f in own]), r, i) for r, n, i in sides))

    return _by_site(found, weights, one)


def on_updates(
    rule: rules.Rule, found: Sequence[Factors], weights: Sequence[float], rank: int
) -> dict[str, Factor]:
    """`rule` on the updates themselves, then the nearest of `rank`."""

    def one(own: list[Factor], w: list[float]) -> Factor:
        updates = jnp.stack([f.product for f in own])
        return _truncated(rule(updates, jnp.asarray(w, jnp.float32), 0), rank)

    return _by_site(found, weights, one)


def _by_site(
    found: Sequence[Factors],
    weights: Sequence[float],
    one: Callable[[list[Factor], list[float]], Factor],
) -> dict[str, Factor]:
    """`one` at each site on the adapters that have it."""
    if len(found) != len(weights) or not found:
        raise ConfigError(f"{len(found)} adapters and {len(weights)} weights; give one to each")
    result = {}
    for path in dict.fromkeys(path for own in found for path in own):
        here = [(own[path], w) for own, w in zip(found, weights) if path in own]
        result[path] = one([factor for factor, _ in here], [w for _, w in here])
    return result


def one_model(pairs: Sequence[Pair]) -> ModelConfig:
    """The model of the first; how it is computed may differ among them.

    Raises:
        ConfigError: the others have other modules.
    """
    sites = [{s.path: (s.kind, s.shape) for s in find_sites(peft.model)} for peft, _ in pairs]
    if any(other != sites[0] for other in sites):
        raise ConfigError("these adapters belong to models of different architectures")
    return pairs[0][0].model


RULES = ("magnitude_prune", "ties", "dare_linear", "dare_ties")
WAYS = ("cat", "svd", "linear", *RULES, *(f"{name}_svd" for name in RULES))
"""Names of the ways to combine."""


def combine(
    pairs: Sequence[Pair],
    weights: Sequence[float],
    way: str = "cat",
    *,
    rank: int = 0,
    density: float = 1.0,
    majority: str = "total",
    key: Array | None = None,
) -> Pair:
    """One LoRA adapter of several, for the model of the first.

    Args:
        pairs: adapters of the LoRA family on the same model.
        weights: one of each; may be negative, need not sum to 1.
        way: one of `WAYS`.
        rank: `svd` and `*_svd`: of the result; 0 for the largest among `pairs`.
        density: pruning: the share of entries that stays.
        majority: TIES: signs are elected by their sum (`total`) or their number (`frequency`).
        key: DARE: chooses the entries; `jax.random.key(0)` if None.

    Raises:
        ConfigError: what cannot be combined so.
    """
    if way not in WAYS:
        raise ConfigError(f"unknown way {way!r} to combine adapters; choose {', '.join(WAYS)}")
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; it must be above 0 and at most 1")
    model = one_model(pairs)
    found = [factors(*pair) for pair in pairs]
    rank = rank or max(f.a.shape[-1] for own in found for f in own.values())
    key = jax.random.key(0) if key is None else key
    name = way.removesuffix("_svd")
    if way == "cat":
        result = cat(found, weights)
    elif way == "svd":
        result = truncated(cat(found, weights), rank)
    else:
        rule = rules.choose(name, density, majority, key)
        on = on_factors if name == way else _bound(rank)
        result = on(rule, found, weights)
    return from_factors(model, result, pairs[0][0].settings.dtype)


def _bound(rank: int) -> Callable[..., dict[str, Factor]]:
    return lambda rule, found, weights: on_updates(rule, found, weights, rank)
