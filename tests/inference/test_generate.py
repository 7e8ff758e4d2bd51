"""Cached generation against recomputing everything for every token."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt.config import ModelConfig, SampleConfig
from jgpt.inference.generate import Generator, pad_prompts, until

EOS = 3
MODEL = ModelConfig(
    vocab_size=61,
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=48,
    max_length=96,
)
GREEDY = SampleConfig(max_new_tokens=12, temperature=0.0)
DRAWN = SampleConfig(max_new_tokens=12, temperature=1.0, top_k=20, top_p=0.9)


@pytest.fixture(scope="module")
def variables() -> dict:
    params = models.init(MODEL, jax.random.key(1))
    # Larger weights than at init: likeliest tokens must differ from place to place.
    return {"params": jax.tree.map(lambda p: p * 4, params)}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(4, 61, n).tolist() for n in (1, 7, 3)]


@functools.cache
def generator(sample: SampleConfig, model: ModelConfig = MODEL, **kwargs) -> Generator:
    """Kept, because each one compiles."""
    kwargs = {"eos_id": EOS, "forbidden": (0, 1, 2), "chunk": 5, **kwargs}
    return Generator(
        partial(models.apply, model),
        partial(models.init_cache, model),
        sample,
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        **kwargs,
    )


def recomputed_greedy(variables: dict, prompt: list[int], number: int) -> list[int]:
    """The likeliest next token of a full forward pass, `number` times."""
    length = len(prompt) + number
    forward = jax.jit(partial(models.apply, MODEL))
    text = list(prompt)
    for _ in range(number):
        row = np.zeros((1, length), np.int32)
        row[0, : len(text)] = text
        logits = np.array(forward(variables, {"inputs": row})[0][0, len(text) - 1])
        logits[[0, 1, 2]] = -np.inf
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


def test_greedy_equals_recomputation(variables, prompts):
    tokens, lengths = pad_prompts(prompts)
    found = generator(GREEDY)(variables, tokens, lengths, jax.random.key(0))
    for prompt, row in zip(prompts, found):
        assert row == until(recomputed_greedy(variables, prompt, 12), EOS)
    assert len({tuple(row) for row in found}) == 3


@pytest.mark.parametrize("sample", [GREEDY, DRAWN])
def test_a_row_of_a_ragged_batch_is_what_it_is_alone(variables, prompts, sample):
    generate = generator(sample)
    tokens, lengths = pad_prompts(prompts)
    together = generate(variables, tokens, lengths, jax.random.key(7))
    padded = np.full((3, 20), 55, np.int32)
    padded[:, : tokens.shape[1]] = np.where(
        np.arange(tokens.shape[1]) < lengths[:, None], tokens, 55
    )
    assert generate(variables, padded, lengths, jax.random.key(7)) == together
    # A row's random numbers follow from its index, so only the first can be compared alone.
    first = generate(variables, *pad_prompts(prompts[:1]), jax.random.key(7))
    assert first[0] == together[0]


def test_seeds_repeat(variables, prompts):
    generate = generator(DRAWN)
    first = generate(variables, *pad_prompts(prompts), jax.random.key(1))
    assert generate(variables, *pad_prompts(prompts), jax.random.key(1)) == first
    assert generate(variables, *pad_prompts(prompts), jax.random.key(2)) != first


def test_the_size_of_chunks_does_not_matter(variables, prompts):
    args = (variables, *pad_prompts(prompts), jax.random.key(3))
    assert generator(DRAWN, chunk=100)(*args) == generator(DRAWN)(*args)


def test_a_row_ends_with_eos_and_the_others_go_on(variables, prompts):
    """The token that greedy decoding writes fourth in one row is made the end."""
    tokens, lengths = pad_prompts(prompts)
    full = generator(GREEDY, eos_id=60)(variables, tokens, lengths, jax.random.key(0))
    end = full[1][3]
    found = generator(GREEDY, eos_id=end)(variables, tokens, lengths, jax.random.key(0))
    assert found == [until(row, end) for row in full]
    assert len(found[1]) <= 3


def test_stops_early_when_all_rows_have_ended(variables, prompts):
    tokens, lengths = pad_prompts(prompts[:1])
    full = generator(GREEDY, eos_id=60)(variables, tokens, lengths, jax.random.key(0))
    stream = generator(GREEDY, eos_id=full[0][0]).stream(
        variables, tokens, lengths, jax.random.key(0)
    )
    assert [chunk.tolist() for chunk in stream] == [[[full[0][0]] * 5]]


def test_forbidden_tokens_are_never_drawn(variables, prompts):
    forbidden = tuple(range(0, 61, 2))
    found = generator(GREEDY, forbidden=forbidden)(
        variables, *pad_prompts(prompts), jax.random.key(4)
    )
    assert not {token for row in found for token in row} & set(forbidden)


def test_repetition_penalty_sees_prompt_and_text(variables, prompts):
    strong = dataclasses.replace(GREEDY, repetition_penalty=1e6)
    tokens, lengths = pad_prompts(prompts)
    for prompt, row in zip(
        prompts, generator(strong)(variables, tokens, lengths, jax.random.key(0))
    ):
        assert len(set(row)) == len(row)
        assert not set(row) & set(prompt)


def test_text_ends_where_positions_do(variables):
    long = dataclasses.replace(GREEDY, max_new_tokens=500)
    prompt = np.full((1, 90), 7, np.int32)
    found = generator(long, eos_id=60)(variables, prompt, np.array([90]), jax.random.key(0))
    assert len(found[0]) == 6
    with pytest.raises(ValueError, match=r"no room in model\.max_length"):
        generator(long)(variables, np.full((1, 96), 7), np.array([96]), jax.random.key(0))
    with pytest.raises(ValueError, match="at least one token"):
        generator(long)(variables, np.full((1, 4), 7), np.array([0]), jax.random.key(0))


def test_mixture_of_experts_and_local_layers_decode_as_they_train():
    """Greedy against recomputation where layers are local and experts are chosen per token."""
    model = dataclasses.replace(
        MODEL,
        attention_pattern=("local", "global"),
        window=4,
        ffn_pattern=("dense", "moe"),
        moe=dataclasses.replace(MODEL.moe, num_experts=4, top_k=2),
    )
    weights = {"params": jax.tree.map(lambda p: p * 4, models.init(model, jax.random.key(8)))}
    prompt = [5, 9, 11, 40, 23, 8]
    found = generator(GREEDY, model, eos_id=60)(weights, *pad_prompts([prompt]), jax.random.key(0))[
        0
    ]
    row = jnp.asarray([prompt + found])
    logits = np.array(models.apply(model, weights, {"inputs": row})[0][0])
    logits[:, [0, 1, 2]] = -np.inf
    expected = logits.argmax(-1)[len(prompt) - 1 : -1]
    np.testing.assert_array_equal(found, expected)
