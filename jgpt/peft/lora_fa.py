"""LoRA-FA: A stays as it was drawn, B's gradient makes up for it (Zhang et al. 2023; Wang et al.
2024, "LoRA-Pro", for the correction).

    y = W x + s B A x,    g_B' = (1 / s^2) g_B (A A^T + 1e-8 I)^-1

Only B is trained, so that of a site's input only A x [..., r] is kept for the backward pass. B
moves W by `s g_B' A`, and the g_B' above is the one for which that is nearest to the full gradient
of W.

The paper trains B with its plain gradient. The correction is that of common code, which then runs
AdamW with an epsilon of 1e-6.
"""

import dataclasses

import jax.numpy as jnp

from jgpt.config import PeftConfig
from jgpt.peft import lora
from jgpt.peft.method import Leaf, Leaves, Target, no_start

DAMPING = 1e-8


def leaves(target: Target) -> dict[str, Leaf]:
    """LoRA's, `lora_a` being constant."""
    found = lora.leaves(target)
    return {**found, "lora_a": found["lora_a"]._replace(trained=False)}


def gradient(gradients: Leaves, leaves: Leaves, settings: PeftConfig) -> Leaves:
    """B's gradient [..., r, out] as above; 0 in masked columns."""
    s = leaves["scaling"]
    used = s != 0
    a = leaves["lora_a"].astype(jnp.float32) * used[..., None, :]
    gram = jnp.swapaxes(a, -1, -2) @ a + DAMPING * jnp.eye(a.shape[-1])
    inverse = jnp.linalg.pinv(gram, hermitian=True)
    factor = jnp.where(used, 1 / jnp.where(used, s, 1.0) ** 2, 0.0)
    b = gradients["lora_b"]
    corrected = factor[..., None] * (inverse @ b.astype(jnp.float32))
    return {**gradients, "lora_b": corrected.astype(b.dtype)}


LORA_FA = dataclasses.replace(
    lora.LORA,
    kinds=("linear", "experts"),  # an embedding's A begins at 0
    leaves=leaves,
    gradient=gradient,
    start=no_start,
    inits=("default", "gaussian"),
)
