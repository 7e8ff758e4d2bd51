"""Prompts and prefixes: packed rows, positions, encoders, generation, and how they begin."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import (
    Config,
    ConfigError,
    LatentConfig,
    ModelConfig,
    ObjectiveConfig,
    PeftConfig,
    PromptConfig,
    SampleConfig,
    TrainConfig,
)
from jgpt.inference.generate import Generator, pad_prompts
from jgpt.models.source import attach, read_source
from jgpt.trees import map_with_path

PROMPT = PromptConfig(length=2, hidden=8)
MODEL = ModelConfig(
    vocab_size=40,
    num_layers=2,
    hidden_size=16,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=24,
    attention_pattern=("local", "global"),
    window=3,
    scan_layers="off",
)


def drawn(shapes, size):
    """Random numbers in these shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: size * rng.standard_normal(x.shape, np.float32), shapes)


class Adapted:
    """A model with random weights and adapters of a method, with changes to the method."""

    def __init__(self, method, model=MODEL, **changes):
        self.model = model
        fitted = peft.make_peft(PeftConfig(method=method, prompt=PROMPT), model)
        method = dataclasses.replace(fitted.method, **changes)
        self.peft = dataclasses.replace(fitted, method=method)
        self.apply = peft.bind(self.peft, functools.partial(models.apply, model))
        self._logits = jax.jit(lambda variables, batch: self.apply(variables, batch)[0])
        self.variables = {
            "params": drawn(models.abstract_params(model), 0.3),
            peft.TRAINED: drawn(peft.abstract_adapters(self.peft).trained, 1.0),
        }

    @property
    def virtual(self):
        return list(range(-self.apply.virtual_tokens, 0))

    def logits(self, batch, trained=None):
        variables = self.variables if trained is None else {**self.variables, peft.TRAINED: trained}
        return self._logits(variables, batch)


def rows_of(*rows):
    """A batch of rows of documents (lists of ids), padded."""
    longest = max(sum(map(len, row)) for row in rows)
    names = ("inputs", "segment_ids", "positions")
    batch = {name: np.zeros((len(rows), longest), np.int32) for name in names}
    for r, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, 1):
            end = start + len(document)
            batch["inputs"][r, start:end] = document
            batch["segment_ids"][r, start:end] = number
            batch["positions"][r, start:end] = range(len(document))
            start = end
    return batch


def documents(*lengths):
    rng = np.random.default_rng(3)
    return [rng.integers(1, 40, n).tolist() for n in lengths]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning_v2"])
def test_documents_of_a_packed_row_are_what_they_are_alone(method):
    adapted = Adapted(method)
    first, second = (adapted.virtual + document for document in documents(7, 5))
    together, one, other = adapted.logits(rows_of([first, second], [first], [second]))
    np.testing.assert_allclose(together[: len(first)], one[: len(first)], rtol=0, atol=1e-5)
    np.testing.assert_allclose(together[len(first) :], other[: len(second)], rtol=0, atol=1e-5)
    assert abs(together).max() > 0.5


def test_positions_count_from_the_end_of_the_prefix():
    """As if the tokens came after so many others, and unlike when they do not."""
    batch = rows_of(documents(8))
    found = Adapted("p_tuning_v2").logits(batch)
    uncounted = Adapted("p_tuning_v2", past_tokens=lambda settings: 0)
    shifted = batch | {"positions": batch["positions"] + PROMPT.length}
    np.testing.assert_allclose(uncounted.logits(shifted), found, rtol=0, atol=1e-5)
    assert abs(uncounted.logits(batch) - found).max() > 1e-2


def moved(adapted, batch):
    """Logits, and how far they move when the leaf at one path is 0."""
    trained = adapted.variables[peft.TRAINED]
    paths = []
    map_with_path(lambda path, leaf: paths.append(path), trained)

    def without(path):
        return map_with_path(lambda p, leaf: leaf * (p != path), trained)

    found = adapted.logits(batch)
    return found, {p: float(abs(adapted.logits(batch, without(p)) - found).max()) for p in paths}


def test_an_encoder_decoder_has_prefixes_in_all_three_attentions():
    """Each counts; and the one before the source is kept with its keys while text is written."""
    model = dataclasses.replace(
        MODEL,
        num_layers=1,
        encoder_layers=1,
        attention_pattern=("global",),
        position="relative",
    )
    adapted = Adapted("p_tuning_v2", model)
    (source, target) = documents(6, 5)
    batch = rows_of([target]) | {"encoder_inputs": np.array([source], np.int32)}
    logits, distances = moved(adapted, batch)
    assert len(distances) == 3 and min(distances.values()) > 1e-3, distances

    read = peft.bind(adapted.peft, functools.partial(read_source, model))

    @jax.jit
    def written(variables):
        cache = attach(models.init_cache(model, 1, 5), read(variables, batch))
        parts = []
        for start in (0, 3):
            tokens = {"inputs": batch["inputs"][:, start : start + 3]}
            part, aux = adapted.apply(variables, tokens, cache=cache)
            parts.append(part)
            cache = aux.cache
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(written(adapted.variables), logits, rtol=0, atol=1e-5)


def test_latent_attention_with_a_prefix_decodes_as_it_reads():
    latent = LatentConfig(kv_rank=6, nope_dim=4, rope_dim=2, value_dim=3)
    model = dataclasses.replace(MODEL, num_layers=1, latent=latent, num_kv_heads=4)
    adapted = Adapted("prefix_tuning", model)
    batch = rows_of(documents(6))

    @jax.jit
    def written(variables):
        first = {"inputs": batch["inputs"][:, :4]}
        early, aux = adapted.apply(variables, first, cache=models.init_cache(model, 1, 6))
        last, _ = adapted.apply(variables, {"inputs": batch["inputs"][:, 4:]}, cache=aux.cache)
        return jnp.concatenate([early, last], axis=1)

    logits, distances = moved(adapted, batch)
    np.testing.assert_allclose(written(adapted.variables), logits, rtol=0, atol=1e-5)
    assert min(distances.values()) > 1e-3


def test_greedy_text_after_a_prompt_is_that_of_recomputation():
    adapted = Adapted("prompt_tuning")
    prompts, new = documents(6, 3), 4
    generate = Generator(
        adapted.apply,
        functools.partial(models.init_cache, adapted.model),
        SampleConfig(max_new_tokens=new, temperature=0.0),
        vocab_size=40,
        max_length=64,
        eos_id=0,
        forbidden=(0,),
        chunk=new,
    )
    found = generate(adapted.variables, *pad_prompts(prompts), jax.random.key(0))
    whole = [adapted.virtual + p + row for p, row in zip(prompts, found, strict=True)]
    logits = adapted.logits(rows_of(*([row] for row in whole)))
    for row, text in enumerate(whole):
        likeliest = logits[row, : len(text) - 1, 1:].argmax(-1) + 1
        assert likeliest[-new:].tolist() == text[-new:]
    assert found[0] != found[1]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning_v2"])
def test_what_stands_before_a_prompt_takes_room(method):
    adapted = Adapted(method)
    generate = Generator(
        adapted.apply,
        functools.partial(models.init_cache, adapted.model),
        SampleConfig(),
        vocab_size=40,
        max_length=8,
        eos_id=0,
    )
    with pytest.raises(ValueError, match="leaves no room"):
        next(generate.stream({}, np.ones((1, 6)), np.array([6]), jax.random.key(0)))


# --- how prompts begin ----------------------------------------------------------------------------


def begun(prompt, method="prompt_tuning"):
    fitted = peft.make_peft(PeftConfig(method=method, prompt=prompt), MODEL)
    params = drawn(models.abstract_params(MODEL), 0.3)
    base, adapters = peft.init(fitted, params, jax.random.key(1))
    assert base is params
    return adapters.trained["embedding"]["prompt"], params["embedding"]["table"]


def test_prompts_begin_as_their_config_says():
    normal, _ = begun(PromptConfig(length=50))
    assert 0.9 < normal.std() < 1.1
    uniform, _ = begun(PromptConfig(length=50, init="uniform"))
    assert -0.5 <= uniform.min() < -0.45 and 0.45 < uniform.max() <= 0.5
    rows, table = begun(PromptConfig(length=10, init="vocabulary"))
    ids = [int((table == row).all(1).argmax()) for row in rows]
    np.testing.assert_array_equal(rows, table[np.array(ids)])
    assert len(set(ids)) > 5
    text, table = begun(PromptConfig(length=5, init="text", tokens=(7, 9, 3)))
    np.testing.assert_array_equal(text, table[np.array([7, 9, 3, 7, 9])])


@pytest.mark.parametrize(
    "method, prompt, message",
    [
        ("prompt_tuning", {"init": "text"}, "needs the token ids of peft.prompt.text"),
        (
            "prompt_tuning",
            {"init": "text", "tokens": (50,)},
            "the embedding has those from 0 to 39",
        ),
        ("p_tuning", {"init": "vocabulary"}, "set it to 'normal' or 'uniform'"),
        ("p_tuning_v2", {"init": "text"}, "set it to 'normal' or 'uniform'"),
    ],
)
def test_beginnings_that_cannot_be_are_refused(method, prompt, message):
    with pytest.raises(ConfigError, match=message):
        begun(PromptConfig(**prompt), method)


def test_a_run_is_told_how_many_virtual_tokens_there_are_and_what_they_start_from():
    text = PromptConfig(length=4, init="text", text="abc")
    config = Config(peft=PeftConfig(method="prompt_tuning", prompt=text))
    found = peft.decide(config, lambda text: [ord(c) for c in text])
    assert found.data.virtual_tokens == 4
    assert found.peft.prompt.tokens == (97, 98, 99)
    assert peft.decide(Config(), None) == Config()
    prefix = Config(peft=PeftConfig(method="p_tuning_v2"))
    assert peft.decide(prefix, None) == prefix
    hidden = dataclasses.replace(
        config,
        model=ModelConfig(vocab_size=40, attention="bidirectional"),
        objective=ObjectiveConfig("mlm"),
        sample=SampleConfig(final_samples=0),
        train=TrainConfig(sample_every=0),
        peft=PeftConfig(method="prompt_tuning"),
    )
    with pytest.raises(ConfigError, match=r"objective\.name='mlm' hides some"):
        peft.decide(hidden, None)


def test_disentangled_attention_refuses_a_prefix():
    model = dataclasses.replace(
        MODEL,
        num_kv_heads=4,
        attention="bidirectional",
        attention_pattern=("global",),
        position="disentangled",
    )
    adapted = Adapted("p_tuning_v2", model)
    with pytest.raises(ConfigError, match="a learned prefix has no distance"):
        adapted.logits(rows_of(documents(4)))
