"""P-Tuning: a prompt whose rows a network makes together (Liu et al. 2021, GPT Understands, Too).

    model([P; E(x_1), E(x_2), ...]),    P = network(V), V [P, D]

V and the network are trained; the virtual tokens are those of `jgpt.peft.prompt`. Rows that are
trained one by one hardly depend on each other; a network that makes all of them ties them together
(section 3.2). It gives the same P for every document, and P is all that is exported.

`peft.prompt.encoder`, with h = `peft.prompt.hidden`:

- `mlp`, row by row: `W_3 relu(W_2 relu(W_1 v + b_1) + b_2) + b_3` with W_1 [D, h], W_2 [h, h], W_3
  [h, D];
- `lstm`: an LSTM of two layers that reads the rows in both directions (each layer's input: both
  directions of the one before), then `W_2 relu(W_1 [forward; backward] + b_1) + b_2` with W_1 [2 h,
  2 h], W_2 [2 h, D].

V begins N(0, 1), linear maps and LSTMs as torch's. **No identity at the start.**

Where paper and common code differ: the paper's virtual tokens stand anywhere in a template, as in
the authors' code for LAMA; here, as in peft, all stand in front. The paper has one LSTM with an MLP
after it; peft, which this follows, calls either of the two the encoder.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.peft import prompt
from jgpt.peft.initial import kaiming_uniform
from jgpt.peft.method import Call, Leaf, Method, Target
from jgpt.peft.networks import linear, linear_leaves
from jgpt.peft.virtual import initial, length, table
from jgpt.typing import Array

LSTM_LAYERS = 2
DIRECTIONS = ("forward", "backward")


def leaves(target: Target) -> dict[str, Leaf]:
    """`prompt` [P, D], V above, and the encoder's."""
    width = target.site.matrix[1]
    hidden = target.settings.prompt.hidden or width
    encoder = mlp_leaves if target.settings.prompt.encoder == "mlp" else lstm_leaves
    rows = Leaf((length(target.settings), width), (None, None), initial(target.settings))
    return {"prompt": rows, **encoder(width, hidden)}


def encoded(call: Call) -> Array:
    """P, [1 or B, P, D]."""
    encoder = mlp if call.settings.prompt.encoder == "mlp" else lstm
    return encoder(call, table(call, call.leaves["prompt"]))


def call(call: Call, tokens: Array) -> Array:
    """The encoder runs where there is a virtual token; while one token after the other is written,
    there is none."""
    return lax.cond(
        jnp.any(tokens < 0),
        lambda x: prompt.placed(encoded(call), tokens, x),
        lambda x: x,
        call.base(tokens),
    )


# --- a network of three layers --------------------------------------------------------------------


def mlp_leaves(width: int, hidden: int) -> dict[str, Leaf]:
    return {
        **linear_leaves("mlp_1", width, hidden),
        **linear_leaves("mlp_2", hidden, hidden),
        **linear_leaves("mlp_3", hidden, width),
    }


def mlp(call: Call, x: Array) -> Array:
    h = jax.nn.relu(linear(call, call.leaves, "mlp_1", x))
    h = jax.nn.relu(linear(call, call.leaves, "mlp_2", h))
    return linear(call, call.leaves, "mlp_3", h)


# --- a recurrent network in both directions -------------------------------------------------------


def lstm_leaves(width: int, hidden: int) -> dict[str, Leaf]:
    """Per layer and direction maps from input and state to the four gates; then an MLP of two."""
    start = kaiming_uniform(hidden)
    result = {}
    for layer in range(LSTM_LAYERS):
        inputs = 2 * hidden if layer else width
        for direction in DIRECTIONS:
            name = f"lstm_{layer}_{direction}"
            for part, size in (("input", inputs), ("state", hidden)):
                result |= linear_leaves(
                    f"{name}_{part}", size, 4 * hidden, kernel=start, bias=start
                )
    result |= linear_leaves("mlp_1", 2 * hidden, 2 * hidden)
    return result | linear_leaves("mlp_2", 2 * hidden, width)


def lstm(call: Call, x: Array) -> Array:
    for layer in range(LSTM_LAYERS):
        both = [
            one_direction(call, f"lstm_{layer}_{direction}", x, direction == "backward")
            for direction in DIRECTIONS
        ]
        x = jnp.concatenate(both, axis=-1)
    return linear(call, call.leaves, "mlp_2", jax.nn.relu(linear(call, call.leaves, "mlp_1", x)))


def one_direction(call: Call, name: str, x: Array, reverse: bool) -> Array:
    """States [R, P, h] of one LSTM (Hochreiter and Schmidhuber 1997, with forget gates) over x."""
    gates = linear(call, call.leaves, f"{name}_input", x)
    nothing = jnp.zeros((x.shape[0], gates.shape[-1] // 4), x.dtype)

    def step(carry: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
        state, cell = carry
        gates = gates + linear(call, call.leaves, f"{name}_state", state[:, None])[:, 0]
        keep_new, keep_old, new, show = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(keep_old) * cell + jax.nn.sigmoid(keep_new) * jnp.tanh(new)
        state = jax.nn.sigmoid(show) * jnp.tanh(cell)
        return (state, cell), state

    _, states = lax.scan(step, (nothing, nothing), jnp.moveaxis(gates, 1, 0), reverse=reverse)
    return jnp.moveaxis(states, 0, 1)


P_TUNING = Method(
    kinds=("embedding",),
    targets=prompt.EMBEDDING,
    leaves=leaves,
    call=call,
    identity=False,
    virtual_tokens=length,
)
