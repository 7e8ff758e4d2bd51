"""A mixture of experts in the place of a feed-forward layer."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jgpt.config import ConfigError, ModelConfig, MoEConfig
from jgpt.layers import dispatch, exchange, expert_parallel
from jgpt.layers.exchange import Exchange
from jgpt.layers.experts import ExpertLinear, Experts, Kernels, swiglu_experts
from jgpt.layers.ffn import FFN
from jgpt.layers.initialization import hidden_std
from jgpt.layers.router import Router, choose_experts, router_scores, router_stats
from jgpt.typing import Array, RouterStats


class MoE(nn.Module):
    """SwiGLU experts, of which each token uses `top_k`, and `num_shared_experts` used by all.

    `config.moe.dispatch` chooses how tokens get there (`jgpt.layers.dispatch`); values and
    gradients are the same where no assignment is dropped, which only `capacity` does. With
    `router='expert_choice'` every expert has a fixed number of tokens, so `dropless` and
    `capacity` are the same thing, without a capacity factor.

    On a mesh that is set (`jax.set_mesh`) each device routes its own tokens
    (`jgpt.layers.expert_parallel`). The shared experts depend on none of it, so that the compiler
    may compute them while rows travel.

    Parameters: `router/kernel` [D, E], `gate/kernel` and `up/kernel` [E, D, F], `down/kernel`
    [E, F, D], and `shared` like a dense layer's.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        token_mask: Bool[Array, "B S"] | None = None,
        selection_bias: Float[Array, "E"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B S D"], RouterStats]:
        """The layer's output, and the router's sums over the batch.

        Args:
            token_mask: False for padding, which is not routed (its output is that of the shared
                experts, or 0) and not counted; None when every token counts.
            selection_bias: moves the choice of experts, not their weights.
            deterministic: False in training; jitter then draws from the rng `jitter`.

        Raises:
            ConfigError: `moe.group_size` does not divide the number of tokens, or what
                `expert_parallel.over_mesh` raises.
        """
        c = self.config
        mask = jnp.ones(x.shape[:2], bool) if token_mask is None else token_mask
        logits = Router(c, name="router")(x, deterministic)
        kernels = Kernels(*(expert.weights() for expert in self._experts()))
        mesh = None if self.is_initializing() else expert_parallel.mesh_to_cut()
        if mesh is None:
            apply = functools.partial(swiglu_experts, c.moe.fused, c.moe.backend, c.dtype)
            experts = Experts(apply, kernels)
            y, stats = route(c, x, logits, mask, selection_bias, experts)
        else:
            y, stats = expert_parallel.over_mesh(
                route, c, mesh, x, logits, mask, selection_bias, kernels
            )
        if c.moe.num_shared_experts:
            y = y + FFN(shared_config(c), name="shared")(x)
        return y, stats

    def _experts(self) -> tuple[ExpertLinear, ExpertLinear, ExpertLinear]:
        c = self.config

        def linear(name: str, shape: tuple[int, int], axes: tuple[str, str], residual=False):
            return ExpertLinear(
                c.moe.num_experts,
                *shape,
                axes,
                hidden_std(c, residual=residual),
                c.dtype,
                c.param_dtype,
                c.moe.backend,
                name=name,
            )

        shape, axes = (c.hidden_size, c.expert_size), ("embed", "expert_mlp")
        down = linear("down", shape[::-1], axes[::-1], residual=True)
        return linear("gate", shape, axes), linear("up", shape, axes), down


def route(
    config: ModelConfig,
    x: Float[Array, "B S D"],
    logits: Float[Array, "B S E"],
    token_mask: Bool[Array, "B S"],
    selection_bias: Float[Array, "E"] | None,
    experts: Experts,
    way: Exchange | None = None,
) -> tuple[Float[Array, "B S D"], RouterStats]:
    """Sends tokens to experts and adds up what comes back; the router's sums over these tokens.

    Args:
        way: on a device that owns a part of the experts: how rows get to the others. The tokens
            are then the device's own.
    """
    moe, (_, length, width) = config.moe, x.shape
    tokens, mask = x.reshape(-1, width), token_mask.reshape(-1)
    logits = logits.reshape(-1, moe.num_experts)
    scores = router_scores(logits, moe)
    send = _by_expert if moe.router == "expert_choice" else _by_token
    y, assignments, lost = send(moe, tokens, scores, mask, selection_bias, length, experts, way)
    stats = router_stats(logits, scores, assignments, mask, **lost)
    return y.reshape(x.shape), stats


def _by_token(
    moe: MoEConfig,
    x: Array,
    scores: Array,
    mask: Array,
    selection_bias: Array | None,
    length: int,
    experts: Experts,
    way: Exchange | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """Output, assignments per expert, and `dropped` or `deferred`, when tokens choose experts."""
    axis = None if way is None else way.axis
    routing = choose_experts(scores, mask, moe, selection_bias)
    assignments = jnp.sum(routing.experts[:, :, None] == jnp.arange(moe.num_experts), axis=(0, 1))
    if moe.dispatch == "dense":
        weights = dispatch.dense_weights(routing, moe.num_experts)
        return dispatch.dense(x, weights, experts, axis), assignments, {}
    if moe.dispatch == "dropless" and way is None:
        return dispatch.dropless(x, routing, moe.num_experts, experts), assignments, {}
    if moe.dispatch == "dropless":
        y, deferred = exchange.dropless(x, routing, moe.num_experts, experts, way)
        return y, assignments, {"deferred": deferred}
    size = group_size(moe.group_size, length, len(x))
    num_slots = dispatch.slots_per_expert(size, moe.top_k, moe.num_experts, moe.capacity_factor)
    slots, dropped = dispatch.assign_slots(routing, moe.num_experts, size, num_slots)
    y = dispatch.through_slots(x, slots, size, experts, axis)
    return y, assignments, {"dropped": dropped}


def _by_expert(
    moe: MoEConfig,
    x: Array,
    scores: Array,
    mask: Array,
    selection_bias: Array | None,
    length: int,
    experts: Experts,
    way: Exchange | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """The same, when experts choose tokens; the bias then has nothing to balance."""
    del selection_bias
    axis = None if way is None else way.axis
    size = group_size(moe.group_size, length, len(x))
    num_slots = dispatch.slots_per_expert(size, moe.top_k, moe.num_experts, factor=1.0)
    grouped = scores.reshape(-1, size, moe.num_experts)
    slots = dispatch.choose_tokens(grouped, mask.reshape(-1, size), num_slots)
    slots = slots._replace(weights=slots.weights * moe.routed_scale)
    assignments = jnp.sum(slots.tokens < size, axis=(0, 2))
    if moe.dispatch == "dense":
        return dispatch.dense(x, dispatch.slot_weights(slots, size), experts, axis), assignments, {}
    return dispatch.through_slots(x, slots, size, experts, axis), assignments, {}


def shared_config(config: ModelConfig) -> ModelConfig:
    """The shared experts as one SwiGLU layer of their summed width."""
    width = config.moe.num_shared_experts * config.expert_size
    return dataclasses.replace(config, ffn="swiglu", ffn_bias=False, intermediate_size=width)


def group_size(wanted: int, length: int, num_tokens: int) -> int:
    """Tokens per group: `wanted`, or the row's length when that is 0; never more than there are.

    Raises:
        ConfigError: groups of that size do not fill the batch.
    """
    size = min(wanted or length, num_tokens)
    if num_tokens % size:
        raise ConfigError(
            f"model.moe.group_size ({wanted}) does not divide the {num_tokens} tokens of a batch; "
            "choose a divisor, or 0 for one group per sequence"
        )
    return size
