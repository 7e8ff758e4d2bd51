"""A language model of three matrices with the interface of `models.apply`."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.config import Config, from_config_dict
from jgpt.objectives import make_objective
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import init_state
from jgpt.training.step import make_train_step
from jgpt.typing import CrossEntropy, RouterStats

VOCAB, WIDTH = 13, 8


def init(key):
    keys = jax.random.split(key, 3)
    normal = jax.random.normal
    return {
        "embedding": {"table": 0.5 * normal(keys[0], (VOCAB, WIDTH))},
        "layers_0": {"kernel": 0.5 * normal(keys[1], (WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)},
        "head": {"kernel": 0.5 * normal(keys[2], (WIDTH, VOCAB))},
    }


def apply(variables, batch, *, output, key=None, z_loss=0.0, label_smoothing=0.0, router=None):
    """With `key`, hidden units are dropped; `router` is handed through."""
    assert output == "cross_entropy"
    p = variables["params"]
    hidden = p["embedding"]["table"][batch["inputs"]]
    hidden = jnp.tanh(hidden @ p["layers_0"]["kernel"] + p["layers_0"]["bias"])
    logits = hidden @ p["head"]["kernel"]
    lse = jax.nn.logsumexp(logits, -1)
    even = lse - logits.mean(-1)
    nll = lse - jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    w = batch["loss_weights"]
    sums = CrossEntropy(
        total=jnp.sum(w * (nll + label_smoothing * (even - nll) + z_loss * lse**2)),
        nll=jnp.sum(w * nll),
        z=jnp.sum(w * lse**2),
        correct=jnp.sum(w * (logits.argmax(-1) == batch["targets"])),
        weight=jnp.sum(w),
    )
    return sums, SimpleNamespace(router=router, cache=None)


def batch_of(seed: int, rows: int = 8, length: int = 6) -> dict[str, np.ndarray]:
    """Random tokens; rows differ much in how many targets count."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0, 1, (rows, 1)) ** 2
    return {
        "inputs": rng.integers(0, VOCAB, (rows, length), np.int32),
        "targets": rng.integers(0, VOCAB, (rows, length), np.int32),
        "loss_weights": (rng.uniform(size=(rows, length)) < share).astype(np.float32),
        "characters": rng.integers(0, 4, (rows, length), np.int32),
    }


def config_of(**sections) -> Config:
    """A config of small sizes; each argument is a section's overrides."""
    defaults = {
        "data": {"batch_size": 8, "virtual_shards": 8},
        "train": {"steps": 20, "seed": 3},
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.01},
    }
    merged = {name: {**defaults.get(name, {}), **values} for name, values in sections.items()}
    return from_config_dict({**defaults, **merged})


fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles in half the time; the programs here run for microseconds."""


@functools.cache
def initial_params(seed: int):
    """Of a run with this seed; not to be donated."""
    return fast_jit(init)(jax.random.key(seed))


def fresh_state(config: Config):
    """(optimizer, initial state)."""
    params = initial_params(config.train.seed)
    optimizer = make_optimizer(config.optimizer, config.train.steps, params)
    ema = config.optimizer.ema_decay > 0
    copied = jax.tree.map(jnp.copy, params)
    return optimizer, init_state(lambda key: copied, optimizer, None, ema=ema)


@functools.cache
def make(config: Config, apply=apply, objective=None, donate: bool = False) -> tuple:
    """(compiled training step, fresh state); the same ones for the same arguments."""
    optimizer, state = fresh_state(config)
    step = make_train_step(objective or make_objective(config), apply, optimizer, config)
    return fast_jit(step, donate_argnums=0 if donate else ()), state


def router_stats(assignments) -> RouterStats:
    """Stacked stats of layers with these [L, E] assignments, the rest plausible."""
    assignments = jnp.asarray(assignments, jnp.float32)
    tokens = assignments.sum(-1)
    return RouterStats(
        assignments=assignments,
        probabilities=assignments,
        z=2 * tokens,
        entropy=0.5 * tokens,
        dropped=0.25 * tokens,
        tokens=tokens,
        deferred=0.125 * tokens,
    )


def assert_trees_equal(first, second):
    """Bit for bit, types and structure included."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def relative_error(tree, reference) -> float:
    """Norm of the difference over the norm of the reference, over all leaves."""
    difference = [
        np.asarray(a, np.float64) - np.asarray(b, np.float64)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    ]
    size = np.sqrt(
        sum(np.sum(np.square(np.asarray(b, np.float64))) for b in jax.tree.leaves(reference))
    )
    return float(np.sqrt(sum(np.sum(d**2) for d in difference)) / size)
