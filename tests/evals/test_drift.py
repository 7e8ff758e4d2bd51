"""Drift: the divergence of a model from the one it began as, and runs that report it."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ConfigError, ModelConfig, from_config_dict
from jgpt.evals import chunks, drift
from jgpt.training import loop
from tests.training.tiny import settings

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 6, 5, 17


def linear(variables, batch, *, output, key=None):
    assert output == "projection"
    p = variables["params"]
    return (p["table"][batch["inputs"]], p["kernel"], p["bias"]), SimpleNamespace()


def params(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"table": (VOCABULARY, WIDTH), "kernel": (WIDTH, VOCABULARY), "bias": (VOCABULARY,)}
    return {"params": {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())}}


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(0, VOCABULARY, (ROWS, LENGTH), np.int32),
        "targets": rng.integers(0, VOCABULARY, (ROWS, LENGTH), np.int32),
        "loss_weights": rng.choice([0, 0.5, 2], (ROWS, LENGTH)).astype(np.float32),
        "characters": rng.integers(0, 4, (ROWS, LENGTH), np.int32),
    }


def logps(variables, data, softcap):
    """[B, S, V] float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = p["table"][data["inputs"]] @ p["kernel"] + p["bias"]
    x = softcap * np.tanh(x / softcap) if softcap else x
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_sums_are_those_of_the_whole_distributions_however_they_are_cut(softcap, monkeypatch):
    first, second, data = params(1), params(2), batch(3)
    p, q = logps(first, data, softcap), logps(second, data, softcap)
    counted = data["loss_weights"] > 0
    kl = (np.exp(p) * (p - q)).sum(-1)[counted]
    own = [np.take_along_axis(x, data["targets"][..., None], -1)[..., 0][counted] for x in (p, q)]
    monkeypatch.setattr(drift, "by_chunks", functools.partial(chunks.by_chunks, chunk=7))
    found = drift.make_sums(linear, linear, softcap)(first, second, data)
    wanted = {
        "kl": kl.sum(),
        "kl_max": kl.max(),
        "nll_before": -own[0].sum(),
        "nll_after": -own[1].sum(),
        "weight": counted.sum(),
        "characters": data["characters"][counted].sum(),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    same = drift.make_sums(linear, linear, softcap)(first, first, data)
    assert same["kl"] == 0 and same["nll_before"] == same["nll_after"]
    assert found["kl"] > 0


def test_no_logits_of_more_tokens_than_a_chunk_are_made():
    rows, length = 4, 2048
    data = {name: jnp.zeros((rows, length), jnp.int32) for name in ("inputs", "targets")}
    data |= {name: jnp.ones((rows, length)) for name in ("loss_weights", "characters")}
    text = str(jax.make_jaxpr(drift.make_sums(linear, linear))(params(1), params(2), data))
    assert f"f32[{rows},{chunks.CHUNK // rows},{VOCABULARY}]" in text
    assert f"f32[{rows},{length},{VOCABULARY}]" not in text


QUIET = {
    "train__eval_every": 0,
    "train__sample_every": 0,
    "checkpoint__every": 0,
    "sample__final_samples": 0,
    "data__validation_documents": 2,
}


def start(model, places, replicated, convert):
    """The model that all runs here begin as."""
    found = models.init(model, jax.random.key(5))
    return {"params": jax.device_put(found, places)}


def test_runs_report_how_far_they_have_moved(tmp_path):
    """All parameters, not moved, and adapters, moved: both know what they began as."""

    def run(name, **changes):
        given = {"init__workdir": "given", "forgetting__drift_documents": 4, "model__num_layers": 1}
        values = settings(tmp_path / "cache", **{**QUIET, **given, **changes})
        return loop.run(from_config_dict(values), tmp_path / name, start)

    still = run("still", optimizer__learning_rate=0.0, train__steps=1)
    assert abs(still["drift_kl"]) < 1e-7
    assert still["drift_loss_after"] == pytest.approx(still["drift_loss_before"], rel=1e-6)
    moved = run("moved", optimizer__learning_rate=1.0, train__steps=2, peft__method="lora")
    assert moved["drift_kl"] > 1e-3
    assert moved["drift_loss_before"] == pytest.approx(still["drift_loss_before"], rel=1e-6)
    assert "Forgetting" in (tmp_path / "moved" / "report.html").read_text("utf-8")
    # The base is split between what is frozen and the adapters, and is no model by itself.
    split = run("split", optimizer__learning_rate=0.0, train__steps=1, peft__method="pissa")
    assert abs(split["drift_kl"]) < 1e-5
    assert split["drift_loss_before"] == pytest.approx(still["drift_loss_before"], rel=1e-4)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_model_without_virtual_tokens_is_asked_as_if_there_were_none(position):
    config = ModelConfig(
        vocab_size=VOCABULARY, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8,
        max_length=16, position=position, scan_layers="off",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, 9)
    # Two documents with two virtual tokens each, and the rest of one that began in another row.
    with_them = {
        "inputs": [-2, -1, *ids[:4], -2, -1, *ids[4:7], *ids[7:], 0],
        "segment_ids": [1] * 6 + [2] * 5 + [3] * 2 + [0],
        "positions": [*range(6), *range(5), 0, 1, 0],
    }
    without = {
        "inputs": [*ids, *[0] * 5],
        "segment_ids": [1] * 4 + [2] * 3 + [3] * 2 + [0] * 5,
        "positions": [*range(4), *range(3), 0, 1, *[0] * 5],
    }
    variables = {"params": models.init(config, jax.random.key(0))}

    def outputs(batch):
        return models.apply(config, variables, batch, output="hidden")[0][0]

    batch, plain = ({k: jnp.array([v]) for k, v in b.items()} for b in (with_them, without))
    found = outputs(drift.without_virtual_tokens(batch))[np.array(with_them["inputs"]) >= 0]
    np.testing.assert_allclose(found[:-1], outputs(plain)[:9], rtol=1e-5, atol=1e-6)


def test_a_run_from_random_weights_has_nothing_to_be_compared_with(tmp_path):
    with pytest.raises(ConfigError, match=r"set init\.workdir"):
        from_config_dict(settings(tmp_path, forgetting__drift_documents=4))
