"""Which experts a token goes to, with which weights, and the figures that keep routers healthy.

All of it is float32. `T` tokens are flattened from the batch; tokens outside `token_mask` (padding)
are sent nowhere and counted nowhere.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from jgpt.config import ModelConfig, MoEConfig
from jgpt.layers.initialization import hidden_std, normal
from jgpt.typing import Array, RouterStats


class Routing(NamedTuple):
    """Token choice: the experts of each token."""

    experts: Int[Array, "T k"]
    """In [0, E); E for tokens that go nowhere."""
    weights: Float[Array, "T k"]
    """What each expert's output is multiplied by; they alone carry gradients to the router."""


class Router(nn.Module):
    """A linear map to one logit per expert, in float32 whatever the model computes in.

    Parameter: `kernel` [D, E].
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*rows D"], deterministic: bool = True
    ) -> Float[Array, "*rows E"]:
        """Logits. In training the input is jittered (Fedus et al. 2022, "Switch", section 2.3)."""
        c = self.config
        shape = (x.shape[-1], c.moe.num_experts)
        kernel = self.param("kernel", normal(hidden_std(c), "embed", None), shape, c.param_dtype)
        x = x.astype(jnp.float32)
        if c.moe.jitter and not deterministic:
            low, high = 1 - c.moe.jitter, 1 + c.moe.jitter
            x = x * jax.random.uniform(self.make_rng("jitter"), x.shape, minval=low, maxval=high)
        return jnp.dot(x, kernel.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def router_scores(logits: Float[Array, "T E"], moe: MoEConfig) -> Float[Array, "T E"]:
    """What selection and weights are made of: softmax over the experts, or a sigmoid of each."""
    if moe.router == "sigmoid":
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


def choose_experts(
    scores: Float[Array, "T E"],
    token_mask: Bool[Array, "T"],
    moe: MoEConfig,
    selection_bias: Float[Array, "E"] | None = None,
) -> Routing:
    """The k best experts of every token, ties going to the lower index.

    Args:
        scores: from `router_scores`.
        token_mask: False for padding.
        moe: `top_k`, `renormalize`, `routed_scale` and the groups are read.
        selection_bias: added to the scores for the selection, and for nothing else (Wang et al.
            2024, "Auxiliary-Loss-Free Load Balancing", section 3).
    """
    biased = lax.stop_gradient(scores)
    if selection_bias is not None:
        biased = biased + selection_bias
    if moe.num_groups:
        biased = within_groups(biased, moe)
    _, experts = lax.top_k(biased, moe.top_k)
    weights = jnp.take_along_axis(scores, experts, axis=1)
    if moe.renormalize:
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + 1e-20)
    nowhere = jnp.where(token_mask[:, None], experts, scores.shape[1])
    return Routing(nowhere, weights * moe.routed_scale)


def within_groups(scores: Float[Array, "T E"], moe: MoEConfig) -> Float[Array, "T E"]:
    """`scores`, with minus infinity outside each token's best `top_groups` of `num_groups`.

    Groups are neighbouring experts (of one device, say, to bound communication). A group counts by
    its best expert (DeepSeek-V2, section 2.2.2); with a sigmoid router by the sum of its best two
    (DeepSeek-V3, section 2.1.2).
    """
    grouped = scores.reshape(len(scores), moe.num_groups, -1)
    best = 2 if moe.router == "sigmoid" else 1
    worth = jnp.sum(lax.top_k(grouped, best)[0], axis=-1)
    _, chosen = lax.top_k(worth, moe.top_groups)
    kept = jnp.any(chosen[:, :, None] == jnp.arange(moe.num_groups), axis=1)
    return jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(scores.shape)


def router_stats(
    logits: Float[Array, "T E"],
    scores: Float[Array, "T E"],
    assignments: Float[Array, "E"],
    token_mask: Bool[Array, "T"],
    dropped: Float[Array, ""] | float = 0.0,
    deferred: Float[Array, ""] | float = 0.0,
) -> RouterStats:
    """Sums over the tokens of `token_mask`; those of `probabilities` and `z` are differentiable."""

    def masked_sum(values: Array) -> Array:
        return jnp.sum(values, axis=0, where=token_mask.reshape(-1, *[1] * (values.ndim - 1)))

    probabilities = scores / (jnp.sum(scores, axis=1, keepdims=True) + 1e-20)
    logs = jnp.log(jnp.maximum(lax.stop_gradient(probabilities), 1e-30))
    return RouterStats(
        assignments=lax.stop_gradient(assignments.astype(jnp.float32)),
        probabilities=masked_sum(probabilities),
        z=masked_sum(jax.nn.logsumexp(logits, axis=1) ** 2),
        entropy=masked_sum(-jnp.sum(lax.stop_gradient(probabilities) * logs, axis=1)),
        dropped=lax.stop_gradient(jnp.asarray(dropped, jnp.float32)),
        tokens=jnp.sum(token_mask, dtype=jnp.float32),
        deferred=lax.stop_gradient(jnp.asarray(deferred, jnp.float32)),
    )


def balance_loss(stats: RouterStats) -> Array:
    """`E * sum_e f_e P_e` per layer, summed over the layers; 1 per layer at uniform routing.

    f: fraction of all assignments (before any is dropped), P: mean router probability (Fedus et al.
    2022, equation 4, extended to k experts per token). Its gradient reaches P only.

    Args:
        stats: of one layer ([E]) or stacked ([L, E]), summed over the whole batch.

    Returns:
        [] float32.
    """
    assigned = jnp.sum(stats.assignments, axis=-1, keepdims=True)
    fractions = stats.assignments / jnp.maximum(assigned, 1)
    means = stats.probabilities / jnp.maximum(stats.tokens[..., None], 1)
    return jnp.sum(fractions * means) * stats.assignments.shape[-1]


def z_loss(stats: RouterStats) -> Array:
    """`mean(logsumexp(logits)**2)` per layer, summed over the layers (Zoph et al. 2022, "ST-MoE").

    Returns:
        [] float32.
    """
    return jnp.sum(stats.z / jnp.maximum(stats.tokens, 1))


def router_loss(stats: RouterStats, moe: MoEConfig) -> Array:
    """Both losses with their coefficients: what a training objective adds, a [] float32."""
    return moe.balance_coefficient * balance_loss(stats) + moe.z_coefficient * z_loss(stats)


def router_metrics(stats: RouterStats) -> dict[str, Array]:
    """Figures in which a collapse shows early.

    Args:
        stats: of one layer ([E]) or stacked ([L, E]).

    Returns:
        float32 scalars: `balance` and `z` (means over layers), `entropy` (nats, mean over layers;
        ln E is even), `max_load` (largest over mean load, of the worst layer; 1 is even, E is one
        expert for all), `dropped` and `deferred` (fractions of assignments); and `load` [E] or
        [L, E], each expert's fraction of the assignments.
    """
    layers = jnp.maximum(stats.tokens.size, 1)
    tokens = jnp.maximum(stats.tokens, 1)
    assigned = jnp.maximum(jnp.sum(stats.assignments, axis=-1), 1)
    load = stats.assignments / assigned[..., None]
    return {
        "balance": balance_loss(stats) / layers,
        "z": z_loss(stats) / layers,
        "entropy": jnp.mean(stats.entropy / tokens),
        "max_load": jnp.max(load) * stats.assignments.shape[-1],
        "dropped": jnp.sum(stats.dropped) / jnp.sum(assigned),
        "deferred": jnp.sum(stats.deferred) / jnp.sum(assigned),
        "load": load,
    }


def update_selection_bias(
    bias: Float[Array, "*L E"], assignments: Float[Array, "*L E"], rate: float
) -> Float[Array, "*L E"]:
    """`b + rate * sign(mean load - load)`: busy experts are chosen less from now on.

    Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing", algorithm 1.
    """
    mean = jnp.mean(assignments, axis=-1, keepdims=True)
    return bias + rate * jnp.sign(mean - assignments)
