"""Prompt tuning: learned embeddings in front of every document (Lester et al. 2021).

    model([P; E(x_1), E(x_2), ...]),    P [P, D] is all that is trained

The P virtual tokens are token ids below 0: -P, ..., -1 stand in front of a document like any other
tokens, and the embedding gives them rows of P instead of its own. Masks, positions, packed rows,
caches and generation need to know nothing of it; who builds rows puts the ids there
(`Method.virtual_tokens`). They count for the length of a row, and none of them is learned to be
predicted, nor does one learn to predict.

`peft.prompt.init`: `normal` N(0, 1), as in peft; `uniform` U(-0.5, 0.5), as the paper says (section
3.2; its code, `linen.initializers.uniform(0.5)`, draws from [0, 0.5)); `vocabulary`, the embeddings
of random tokens; `text`, those of the tokens of `peft.prompt.text`, repeated or cut to P (the
paper's best for small models: the names of the classes). P is 100 there. With
`model.embedding_scale`, rows of P are scaled like all others. **No identity at the start:** the
model sees P tokens more.

Where paper and common code differ: of an encoder-decoder the paper puts P before the source. peft
lets the last virtual token learn to predict the first token of the document; here it does not,
since documents begin with the same token.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jgpt.config import ConfigError, PeftConfig
from jgpt.layers.initialization import Normal
from jgpt.peft.method import Call, Leaf, Method, Start, Target
from jgpt.peft.virtual import initial, length, table
from jgpt.typing import Array

EMBEDDING = (r"^embedding$",)
FROM_EMBEDDING = ("vocabulary", "text")


def virtual_ids(count: int) -> range:
    """The ids in front of a document: -P, ..., -1."""
    return range(-count, 0)


def leaves(target: Target) -> dict[str, Leaf]:
    """`prompt` [P, D]."""
    settings = target.settings
    later = settings.prompt.init in FROM_EMBEDDING
    shape = (length(settings), target.site.matrix[1])
    return {"prompt": Leaf(shape, (None, "embed"), Normal(1.0) if later else initial(settings))}


def placed(prompt: Array, tokens: Array, x: Array) -> Array:
    """`x` with the prompt's rows where tokens are virtual.

    Args:
        prompt: [1 or B, P, D].
        tokens: [B, S].
        x: [B, S, D], anything at virtual tokens.
    """
    rows, count = prompt.shape[:2]
    own = prompt[jnp.arange(rows)[:, None], jnp.clip(tokens + count, 0, count - 1)]
    return jnp.where((tokens < 0)[..., None], own.astype(x.dtype), x)


def call(call: Call, tokens: Array) -> Array:
    return placed(table(call, call.leaves["prompt"]), tokens, call.base(tokens))


# --- start from rows of the embedding -------------------------------------------------------------


def start(settings: PeftConfig) -> Start | None:
    return {"vocabulary": from_vocabulary, "text": from_text}.get(settings.prompt.init)


def from_vocabulary(
    target: Target, embedding: Array, leaves: dict[str, Array]
) -> tuple[None, dict[str, Array]]:
    """Rows of random tokens; the choice follows from what the prompt was drawn as."""
    seed = lax.bitcast_convert_type(leaves["prompt"][0, 0].astype(jnp.float32), jnp.uint32)
    ids = jax.random.randint(jax.random.key(seed), (length(target.settings),), 0, len(embedding))
    return None, {**leaves, "prompt": embedding[ids]}


def from_text(
    target: Target, embedding: Array, leaves: dict[str, Array]
) -> tuple[None, dict[str, Array]]:
    """Rows of `peft.prompt.tokens`, repeated or cut to P.

    Raises:
        ConfigError: there are none, or ids beyond the embedding.
    """
    tokens, count = target.settings.prompt.tokens, length(target.settings)
    if not tokens:
        raise ConfigError(
            "peft.prompt.init='text' needs the token ids of peft.prompt.text: set "
            "peft.prompt.tokens to them"
        )
    if not 0 <= min(tokens) <= max(tokens) < len(embedding):
        raise ConfigError(
            f"peft.prompt.tokens has ids from {min(tokens)} to {max(tokens)}; the embedding has "
            f"those from 0 to {len(embedding) - 1}"
        )
    ids = jnp.resize(jnp.asarray(tokens, jnp.int32), (count,))
    return None, {**leaves, "prompt": embedding[ids]}


PROMPT = Method(
    kinds=("embedding",),
    targets=EMBEDDING,
    leaves=leaves,
    call=call,
    start=start,
    identity=False,
    virtual_tokens=length,
)
