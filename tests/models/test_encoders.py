"""Encoders and encoder-decoders: padding, pooling, forms, cached decoding, refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from jgpt import models, sharding
from jgpt.config import ConfigError, MeshConfig, SampleConfig
from jgpt.inference.from_source import SourceGenerator
from jgpt.training.optimizer import parameter_groups
from jgpt.trees import leaves_by_path
from tests.models.tiny_models import forward, random_tokens, random_variables, relative_error, tiny

BERT = tiny(
    num_kv_heads=0,
    attention="bidirectional",
    position="learned",
    token_types=2,
    norm="layernorm",
    norm_placement="post",
    embedding_norm=True,
    ffn="gelu",
    ffn_bias=True,
    attention_bias=True,
    head_transform=True,
    head_bias=True,
    tied_embeddings=True,
    pooling="mean",
    pooler="tanh",
    num_labels=3,
)
MODERNBERT = tiny(
    num_layers=5,
    attention="bidirectional",
    attention_pattern=("global", "local"),
    window=4,
    local_rope_theta=100.0,
    norm="layernorm",
    norm_bias=False,
    embedding_norm=True,
    first_attention_norm=False,
    ffn="geglu",
    pooling="cls",
)
DEBERTA = dataclasses.replace(
    BERT, position="disentangled", token_types=0, relative_buckets=4, relative_max_distance=8
)
T5 = tiny(
    encoder_layers=3,
    position="relative",
    relative_buckets=8,
    relative_max_distance=10,
    attention_scale=2.0,
    ffn="geglu",
)
ENCODERS = {"bert": BERT, "modernbert": MODERNBERT, "deberta": DEBERTA}
LENGTHS = np.array([12, 7])


def padded(extra=0, seed=0):
    """Rows of 12 and 7 tokens, padded on the right with anything."""
    width = 12 + extra
    tokens = random_tokens(2, 12, seed=seed)
    rows = np.concatenate([tokens, random_tokens(2, extra, seed=seed + 9)], axis=1)
    real = np.arange(width) < LENGTHS[:, None]
    rows[1, 7:] = random_tokens(width - 7, seed=extra + 1)
    return {"inputs": rows, "segment_ids": real.astype(np.int32)}


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_does_not_matter(name):
    config = ENCODERS[name]
    variables = random_variables(config)
    hidden, _ = forward(config, "hidden")(variables, padded())
    longer, _ = forward(config, "hidden")(variables, padded(extra=5))
    alone, _ = forward(config, "hidden")(variables, {"inputs": padded()["inputs"][1:, :7]})
    assert relative_error(longer[0, :12], hidden[0]) < 1e-5
    assert relative_error(longer[1, :7], hidden[1, :7]) < 1e-5
    assert relative_error(alone[0], hidden[1, :7]) < 1e-5
    for pooling in ("cls", "mean"):
        one, two = (models.embed(config, variables, padded(n), pooling=pooling) for n in (0, 5))
        assert relative_error(one, two) < 1e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_texts_are_what_they_are_alone(name):
    config = ENCODERS[name]
    variables = random_variables(config)
    tokens = random_tokens(1, 12)
    batch = {
        "inputs": tokens,
        "segment_ids": np.array([[1] * 5 + [2] * 7], np.int32),
        "positions": np.array([[*range(5), *range(7)]], np.int32),
    }
    packed, _ = forward(config, "hidden")(variables, batch)
    alone, _ = forward(config, "hidden")(variables, {"inputs": tokens[:, 5:]})
    assert relative_error(packed[:, 5:], alone) < 1e-5


def test_pooled_vectors_are_what_they_are_called():
    variables, batch = random_variables(BERT), padded()
    hidden, _ = forward(BERT, "hidden")(variables, batch)
    real = batch["segment_ids"][..., None]
    mean = (np.asarray(hidden) * real).sum(1) / LENGTHS[:, None]
    plain = models.embed(BERT, variables, batch, pooling="mean", normalize=False)
    assert relative_error(plain, mean) < 1e-6
    first = models.embed(BERT, variables, batch, pooling="cls", normalize=False)
    assert relative_error(first, hidden[:, 0]) < 1e-6
    unit = models.embed(BERT, variables, batch, pooling="mean")
    assert relative_error(unit, mean / np.linalg.norm(mean, axis=1, keepdims=True)) < 1e-6
    dense = variables["params"]["pooler"]["dense"]
    pooled = np.tanh(mean @ dense["kernel"] + dense["bias"])
    assert relative_error(models.apply(BERT, variables, batch, output="pooled")[0], pooled) < 1e-5
    head = variables["params"]["classifier"]
    labels, _ = models.apply(BERT, variables, batch, output="labels")
    assert relative_error(labels, pooled @ head["kernel"] + head["bias"]) < 1e-5
    tokens = dataclasses.replace(BERT, label_level="token")
    labels, _ = models.apply(tokens, variables, batch, output="labels")
    assert relative_error(labels, hidden @ head["kernel"] + head["bias"]) < 1e-5


def test_token_types_matter():
    variables, batch = random_variables(BERT), padded()
    zero, _ = forward(BERT, "hidden")(variables, batch | {"token_types": np.zeros((2, 12), int)})
    one, _ = forward(BERT, "hidden")(variables, batch | {"token_types": np.ones((2, 12), int)})
    default, _ = forward(BERT, "hidden")(variables, batch)
    np.testing.assert_array_equal(zero, default)
    assert relative_error(one, zero) > 1e-2


def source_and_target(seed=0):
    source = padded(seed=seed)
    return {
        "encoder_inputs": source["inputs"],
        "encoder_segment_ids": source["segment_ids"],
        "inputs": random_tokens(2, 6, seed=seed + 3),
    }


@pytest.mark.parametrize("config", [MODERNBERT, T5], ids=["first layer apart", "two stacks"])
def test_scanned_and_unrolled_forms_are_the_same(config):
    batch = source_and_target() if config.encoder_layers else padded()
    variables = random_variables(config)
    scanned = {"params": models.restack(variables["params"], config, scan=True)}
    assert "layers" in scanned["params"]
    expected, _ = models.apply(config, variables, batch)
    found, _ = models.apply(config, scanned, batch)
    assert relative_error(found, expected) < 1e-5
    back = models.restack(scanned["params"], config, scan=False)
    for path, leaf in leaves_by_path(variables["params"]).items():
        np.testing.assert_array_equal(leaves_by_path(back)[path], leaf)
    on = dataclasses.replace(config, scan_layers="on")
    shapes = jax.tree.map(lambda x: x.shape, models.abstract_params(on))
    assert shapes == jax.tree.map(lambda x: x.shape, scanned["params"])


@pytest.mark.parametrize("config", [BERT, MODERNBERT, DEBERTA, T5])
def test_every_parameter_has_axes_a_group_and_initial_values(config):
    params = models.init(config, jax.random.key(0))
    axes = models.logical_axes(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    sharding.shardings(mesh, axes, params)
    groups = leaves_by_path(parameter_groups(params))
    assert groups["embedding/table"] == "embedding"
    for path, group in (("classifier/kernel", "head"), ("relative_embedding/table", "embedding")):
        assert groups.get(path, group) == group
    batch = source_and_target() if config.encoder_layers else padded()
    logits, _ = models.apply(config, {"params": params}, batch)
    assert np.isfinite(logits).all()


def test_the_source_reaches_every_target_token_and_its_padding_none():
    variables, batch = random_variables(T5), source_and_target()
    logits, _ = models.apply(T5, variables, batch)

    def changed(row, column):
        tokens = batch["encoder_inputs"].copy()
        tokens[row, column] = tokens[row, column] % 40 + 5
        other, _ = models.apply(T5, variables, batch | {"encoder_inputs": tokens})
        return np.abs(np.asarray(other) - np.asarray(logits)).max(axis=(1, 2))

    assert changed(0, 11)[0] > 1e-3
    assert changed(0, 11)[1] == 0
    assert changed(1, 6)[1] > 1e-3
    assert changed(1, 7)[1] == 0


def test_a_packed_document_attends_to_the_source_of_its_own_number():
    variables = random_variables(T5)
    source, target = random_tokens(1, 12), random_tokens(1, 8, seed=4)
    batch = {
        "encoder_inputs": source,
        "encoder_segment_ids": np.array([[1] * 5 + [2] * 7], np.int32),
        "inputs": target,
        "segment_ids": np.array([[1] * 3 + [2] * 5], np.int32),
    }
    packed, _ = models.apply(T5, variables, batch)
    alone, _ = models.apply(
        T5, variables, {"encoder_inputs": source[:, 5:], "inputs": target[:, 3:]}
    )
    assert relative_error(packed[:, 3:], alone) < 1e-5


def test_cached_decoding_equals_recomputation():
    variables, batch = random_variables(T5), source_and_target()
    expected, _ = models.apply(T5, variables, batch)
    cache = models.init_cache(T5, 2, 8)
    first, aux = models.apply(
        T5, variables, batch | {"inputs": batch["inputs"][:, :2]}, cache=cache
    )
    found, cache = [first], aux.cache
    for i in range(2, 6):
        step = {"inputs": batch["inputs"][:, i : i + 1]}
        logits, aux = models.apply(T5, variables, step, cache=cache)
        found.append(logits)
        cache = aux.cache
    assert relative_error(np.concatenate(found, axis=1), expected) < 1e-5


def greedy(variables, batch, row, steps, eos):
    """One token after the other, everything computed anew."""
    source = batch["encoder_inputs"][row : row + 1, : LENGTHS[row]]
    written = [0]
    for _ in range(steps):
        # What follows a token cannot change its logits: one shape serves all steps.
        inputs = np.array([written + [7] * (steps + 1 - len(written))], np.int32)
        batch_of_one = {"encoder_inputs": source, "inputs": inputs}
        logits, _ = forward(T5)(variables, batch_of_one)
        written.append(int(np.argmax(logits[0, len(written) - 1])))
        if written[-1] == eos:
            return written[1:-1]
    return written[1:]


def test_generation_writes_what_recomputation_would():
    variables, batch = random_variables(T5, seed=1), source_and_target(seed=1)
    sample = SampleConfig(temperature=0.0, max_new_tokens=9)
    free = [greedy(variables, batch, row, 9, eos=-1) for row in range(2)]
    eos = free[0][4]
    generate = SourceGenerator(T5, sample, eos_id=eos, chunk=4)
    found = generate(variables, batch["encoder_inputs"], LENGTHS, jax.random.key(0))
    assert found == [greedy(variables, batch, row, 9, eos) for row in range(2)]
    assert len(found[0]) <= 4


def test_sampling_follows_the_key():
    variables, batch = random_variables(T5, seed=1), source_and_target(seed=1)
    generate = SourceGenerator(T5, SampleConfig(temperature=1.0, max_new_tokens=9), eos_id=3)
    one, same, other = (
        generate(variables, batch["encoder_inputs"], LENGTHS, jax.random.key(k)) for k in (1, 1, 2)
    )
    assert one == same != other


def test_dropout_reaches_the_encoder_and_cross_attention():
    batch = source_and_target()
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        config = dataclasses.replace(T5, **{name: 0.5})
        variables = random_variables(config)
        one, two = (
            models.apply(config, variables, batch, key=jax.random.key(k))[0] for k in (0, 1)
        )
        assert relative_error(one, two) > 1e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pooler": "tanh"}, "model.pooling"),
        ({"num_labels": 2}, "model.pooling"),
        ({"first_attention_norm": False, "norm_placement": "post"}, "model.norm_placement"),
        ({"position": "disentangled"}, "model.attention"),
        (
            {"position": "disentangled", "attention": "bidirectional", "num_kv_heads": 2},
            "model.num_kv_heads",
        ),
        ({"encoder_layers": 2, "attention": "bidirectional"}, "model.attention"),
        ({"encoder_layers": 2, "parallel_block": True}, "model.parallel_block"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_wrong_use_is_refused_in_one_line():
    config = tiny(attention="bidirectional")
    variables, batch = random_variables(config), padded()
    for output, message in (("pooled", "model.pooling"), ("labels", "model.num_labels")):
        with pytest.raises(ConfigError, match=message):
            models.apply(config, variables, batch, output=output)
    with pytest.raises(ConfigError, match="encoder_inputs"):
        models.apply(T5, random_variables(T5), batch)
    with pytest.raises(ConfigError, match="'cls', 'mean' or 'last'"):
        models.embed(config, variables, batch, pooling="max")
