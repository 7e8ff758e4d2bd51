"""Public architectures: parameter tables, published counts, floating point operations."""

import dataclasses
import pathlib

import pytest

from jgpt import models, trees
from jgpt.models.presets import PRESETS
from tests.models.tiny_models import tiny, tiny_moe

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "presets"

PUBLISHED = {
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "gemma2-2b": 2_614_341_888,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
}
"""Numbers of weights in the released checkpoints."""


def parameter_table(name):
    return trees.table(models.abstract_params(PRESETS[name](scan_layers="on")))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_equal_the_golden_table(name):
    """To write the tables anew: python tests/models/test_presets.py"""
    assert parameter_table(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_total_is_the_published_one(name):
    last = (GOLDEN / f"{name}.txt").read_text().splitlines()[-1]
    assert last == f"total  {PUBLISHED[name]:,}"


def test_a_token_of_mixtral_uses_the_published_number_of_parameters():
    total, active = models.count_params(PRESETS["mixtral-8x7b"]())
    assert (total, active) == (46_702_792_704, 12_879_925_248)


def test_presets_take_overrides():
    assert PRESETS["gpt2-medium"](num_layers=2).num_layers == 2
    assert PRESETS["gpt2-medium"](num_layers=2).hidden_size == 1024


def test_flops_are_six_per_weight_and_twelve_per_seen_key():
    config = tiny(tied_embeddings=True)
    weights = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24) + 50 * 16
    attention = 2 * 12 * 16 * (20 / 2)
    assert models.flops_per_token(config, 20) == 6 * weights + attention
    untied = dataclasses.replace(config, tied_embeddings=False)
    assert models.flops_per_token(untied, 20) == 6 * weights + attention
    both_ways = dataclasses.replace(config, attention="bidirectional")
    assert models.flops_per_token(both_ways, 20) == 6 * weights + 2 * attention
    local = dataclasses.replace(config, attention_pattern=("local", "global"), window=4)
    assert models.flops_per_token(local, 20) == 6 * weights + attention * (4 + 10) / 20


def test_flops_count_only_the_experts_that_a_token_uses():
    config = tiny(**tiny_moe(num_experts=8, top_k=2, num_shared_experts=1))
    per_layer = 16 * 16 * 2 + 16 * 8 * 2 + 16 * 8 + (2 + 1) * 3 * 16 * 24
    attention = 2 * 12 * 16 * (20 / 2)
    expected = 6 * (2 * per_layer + 50 * 16) + attention
    assert models.flops_per_token(config, 20) == expected


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for each in PRESETS:
        (GOLDEN / f"{each}.txt").write_text(parameter_table(each))
