"""Samples of a small random model: repeatable, whole characters only, streamed as they are read."""

import dataclasses

import jax
import pytest

from jgpt import models
from jgpt.config import ModelConfig, SampleConfig
from jgpt.evals.writing import Writer, make_generator, stream_text
from jgpt.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()
MODEL = ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    hidden_size=32,
    num_heads=2,
    intermediate_size=32,
    max_length=64,
)
SAMPLE = SampleConfig(prompts=("", "春になると、"), max_new_tokens=24, temperature=1.0)


@pytest.fixture(scope="module")
def variables() -> dict:
    return {"params": models.init(MODEL, jax.random.key(0))}


@pytest.fixture(scope="module")
def samples(variables):
    return Writer(MODEL, SAMPLE, TOKENIZER, rows_multiple=4).write(variables, 3)


def test_prompts_are_taken_in_turn(samples):
    assert [s.prompt for s in samples] == ["", "春になると、", ""]
    assert samples[0].text != samples[2].text


def test_random_bytes_show_no_replacement_character(samples):
    """An untrained byte model writes mostly invalid UTF-8: it is dropped and counted."""
    assert all("\ufffd" not in s.text for s in samples)
    assert sum(s.dropped_bytes for s in samples) > 0


def test_the_same_settings_give_the_same_text(samples, variables):
    assert Writer(MODEL, SAMPLE, TOKENIZER, rows_multiple=4).write(variables, 3) == samples


def test_scanned_weights_write_the_same(samples, variables):
    scanned = dataclasses.replace(MODEL, scan_layers="on")
    stacked = models.restack(variables["params"], scanned, scan=True)
    writer = Writer(scanned, SAMPLE, TOKENIZER, rows_multiple=4)
    assert writer.write({"params": stacked}, 3) == samples


def test_a_stream_is_the_text_in_pieces(variables):
    generator = make_generator(MODEL, SAMPLE, TOKENIZER, chunk=4)
    whole = make_generator(MODEL, SAMPLE, TOKENIZER, chunk=24)
    key = jax.random.key(5)
    pieces = list(stream_text(generator, TOKENIZER, variables, "猫", key))
    assert len(pieces) == 7
    assert "".join(pieces) == "".join(stream_text(whole, TOKENIZER, variables, "猫", key))
