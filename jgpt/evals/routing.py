"""Where the routers of a mixture of experts send each token of a text.

Training keeps sums over a batch (`layers.router.RouterStats`); here the choices themselves are
read, token by token, to be looked at.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jgpt import models
from jgpt.config import ConfigError, ModelConfig
from jgpt.inference.generate import pad_prompts
from jgpt.layers.router import Router, Routing, choose_experts, router_scores
from jgpt.tokenizers import Tokenizer
from jgpt.typing import Array, Batch, PyTree

BYTES = "·"
"""Shown for a token that is a part of a character only."""


def token_routing(config: ModelConfig, variables: PyTree, batch: Batch) -> Routing:
    """The experts of every token, in every mixture-of-experts layer.

    Args:
        config: of the model.
        variables: of the model; its layers may be scanned.
        batch: as `models.apply` takes it.

    Returns:
        `experts` [L, B, S, k] int32, the likeliest first (E for padding), and their `weights`.

    Raises:
        ConfigError: the model has no routers, or its experts choose the tokens.
    """
    if not config.moe.num_experts or config.moe.router == "expert_choice":
        raise ConfigError(
            "routing is read of models whose tokens choose experts: model.moe.num_experts is "
            f"{config.moe.num_experts}, model.moe.router {config.moe.router!r}"
        )
    # What is seen inside of a scan or a rematerialised block has no value outside of it.
    config = replace(config, scan_layers="off", remat="none")
    return _token_routing(config, variables, dict(batch))


@partial(jax.jit, static_argnums=0)
def _token_routing(config: ModelConfig, variables: PyTree, batch: Batch) -> Routing:
    seen: list[Array] = []

    def note(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_function(*args, **kwargs)
        if isinstance(context.module, Router) and context.method_name == "__call__":
            seen.append(result)
        return result

    params = models.restack(variables["params"], config, scan=False)
    with nn.intercept_methods(note):
        models.apply(config, {**variables, "params": params}, batch, output="hidden")
    shape = batch["inputs"].shape
    real = batch.get("segment_ids", jnp.ones(shape, jnp.int32)).reshape(-1) > 0
    biases = variables.get("selection_bias", [None] * len(seen))
    layers = []
    for logits, bias in zip(seen, biases, strict=True):
        scores = router_scores(logits.reshape(-1, config.moe.num_experts), config.moe)
        chosen = choose_experts(scores, real, config.moe, bias)
        layers.append(jax.tree.map(lambda x: x.reshape(*shape, -1), chosen))
    return jax.tree.map(lambda *layer: jnp.stack(layer), *layers)


@dataclass(frozen=True)
class RoutedText:
    """A text in tokens, with the experts of each.

    Attributes:
        pieces: text of each token, `·` where it is but a part of a character.
        experts: [L, S, k] int32, the likeliest first.
        weights: [L, S, k] float32.
        num_experts: E.
    """

    pieces: tuple[str, ...]
    experts: np.ndarray
    weights: np.ndarray
    num_experts: int

    def __str__(self) -> str:
        """A line per layer: every token with its first expert."""
        return "\n".join(
            " ".join(f"{text}{expert}" for text, expert in zip(self.pieces, layer[:, 0]))
            for layer in self.experts
        )

    def _repr_html_(self) -> str:
        """What notebooks show: a line per layer, every token in the colour of its first expert."""
        lines = []
        for number, (experts, weights) in enumerate(zip(self.experts, self.weights)):
            tokens = "".join(
                self._marked(text, chosen[0], _choice(chosen, shares))
                for text, chosen, shares in zip(self.pieces, experts, weights)
            )
            lines.append(f"<p style='line-height:2'><small>layer {number}</small> {tokens}</p>")
        legend = "".join(self._marked(f" {e} ", e, f"expert {e}") for e in range(self.num_experts))
        return f"<p><small>experts</small> {legend}</p>{''.join(lines)}"

    def _marked(self, text: str, expert: int, title: str) -> str:
        shown = text.replace("\n", "⏎")
        hue, light = 360 * int(expert) // self.num_experts, (84, 72)[expert % 2]
        return (
            f"<span title='{title}' style='background:hsl({hue},75%,{light}%);color:#111;"
            f"padding:2px 3px;margin-right:1px;border-radius:3px'>{html.escape(shown)}</span>"
        )


def _choice(experts: np.ndarray, weights: np.ndarray) -> str:
    """The experts of a token in words."""
    return ", ".join(f"expert {e}: {w:.0%}" for e, w in zip(experts, weights))


def route_texts(
    config: ModelConfig,
    variables: PyTree,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    rows: int = 16,
) -> list[RoutedText]:
    """The experts of all tokens of `texts`, each read as a document of its own.

    Args:
        config: of the model; texts are cut at its `max_length`.
        rows: texts that are read side by side.
    """
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)][: config.max_length] for text in texts]
    if not ids:
        return []
    longest = max(map(len, ids))
    routed = []
    for start in range(0, len(ids), rows):
        chosen = ids[start : start + rows]
        padded, lengths = pad_prompts(chosen + [[tokenizer.bos_id]] * (rows - len(chosen)))
        padded = np.pad(padded, ((0, 0), (0, longest - padded.shape[1])))  # one shape: one compile
        real = np.arange(longest) < lengths[:, None]
        batch = {"inputs": padded, "segment_ids": real.astype(np.int32)}
        experts, weights = jax.device_get(token_routing(config, variables, batch))
        routed += [
            RoutedText(
                tuple(piece(tokenizer, token) for token in row[1:]),
                experts[:, i, 1 : len(row)],
                weights[:, i, 1 : len(row)],
                config.moe.num_experts,
            )
            for i, row in enumerate(chosen)
        ]
    return routed


def piece(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token alone."""
    try:
        return tokenizer.token_bytes(token).decode()
    except UnicodeDecodeError:
        return BYTES
