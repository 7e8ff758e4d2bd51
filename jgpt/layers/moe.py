"""A mixture of experts in the place of a feed-forward layer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jgpt.config import ConfigError, ModelConfig
from jgpt.layers import dispatch
from jgpt.layers.experts import ExpertLinear, gated_experts
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
            ConfigError: `moe.group_size` does not divide the number of tokens.
        """
        c, moe = self.config, self.config.moe
        tokens = x.reshape(-1, x.shape[-1])
        mask = jnp.ones(len(tokens), bool) if token_mask is None else token_mask.reshape(-1)
        logits = Router(c, name="router")(tokens, deterministic)
        scores = router_scores(logits, moe)
        route = self._by_expert if moe.router == "expert_choice" else self._by_token
        y, assignments, dropped = route(tokens, scores, mask, selection_bias, x.shape[1])
        stats = router_stats(logits, scores, assignments, dropped, mask)
        y = y.reshape(x.shape)
        if moe.num_shared_experts:
            y = y + FFN(shared_config(c), name="shared")(x)
        return y, stats

    def _by_token(
        self, x: Array, scores: Array, mask: Array, selection_bias: Array | None, length: int
    ) -> tuple[Array, Array, Array]:
        """Output, assignments per expert, and dropped ones, when tokens choose experts."""
        moe, ffn = self.config.moe, self._experts()
        routing = choose_experts(scores, mask, moe, selection_bias)
        experts = jnp.arange(moe.num_experts)
        assignments = jnp.sum(routing.experts[:, :, None] == experts, axis=(0, 1))
        dropped = jnp.zeros(())
        if moe.dispatch == "dense":
            y = dispatch.dense(x, dispatch.dense_weights(routing, moe.num_experts), ffn)
        elif moe.dispatch == "dropless":
            y = dispatch.dropless(x, routing, moe.num_experts, ffn)
        else:
            size = group_size(moe.group_size, length, len(x))
            num_slots = dispatch.slots_per_expert(
                size, moe.top_k, moe.num_experts, moe.capacity_factor
            )
            slots, dropped = dispatch.assign_slots(routing, moe.num_experts, size, num_slots)
            y = dispatch.through_slots(x, slots, size, ffn)
        return y, assignments, dropped

    def _by_expert(
        self, x: Array, scores: Array, mask: Array, selection_bias: Array | None, length: int
    ) -> tuple[Array, Array, Array]:
        """The same, when experts choose tokens; the bias then has nothing to balance."""
        del selection_bias
        moe, ffn = self.config.moe, self._experts()
        size = group_size(moe.group_size, length, len(x))
        num_slots = dispatch.slots_per_expert(size, moe.top_k, moe.num_experts, factor=1.0)
        grouped = scores.reshape(-1, size, moe.num_experts)
        slots = dispatch.choose_tokens(grouped, mask.reshape(-1, size), num_slots)
        slots = slots._replace(weights=slots.weights * moe.routed_scale)
        assignments = jnp.sum(slots.tokens < size, axis=(0, 2))
        if moe.dispatch == "dense":
            y = dispatch.dense(x, dispatch.slot_weights(slots, size), ffn)
        else:
            y = dispatch.through_slots(x, slots, size, ffn)
        return y, assignments, jnp.zeros(())

    def _experts(self) -> dispatch.ExpertFFN:
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
        gate, up = linear("gate", shape, axes), linear("up", shape, axes)
        down = linear("down", shape[::-1], axes[::-1], residual=True)

        def ffn(x: Array, group_sizes: Array | None = None) -> Array:
            if c.moe.fused and group_sizes is not None:
                h = gated_experts(gate, up, x, group_sizes)
            else:
                h = jax.nn.silu(gate(x, group_sizes)) * up(x, group_sizes)
            return down(h, group_sizes)

        return ffn


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
