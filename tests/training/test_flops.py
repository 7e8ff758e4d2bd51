"""Model FLOPs of a run: what is frozen needs no gradient of itself."""

import dataclasses

import pytest

from jgpt import models
from jgpt.config import Config, DataConfig, ModelConfig, MoEConfig, OptimizerConfig, PeftConfig
from jgpt.training.flops import flops_per_token

S, D, F, V, RANK, EXPERTS, CHOSEN = 32, 32, 48, 128, 4, 4, 2
MODEL = ModelConfig(
    num_layers=2, hidden_size=D, num_heads=2, intermediate_size=F, vocab_size=V, max_length=S
)
DENSE = Config(model=MODEL, data=DataConfig(sequence_length=S))
MIXTURE = dataclasses.replace(
    MODEL, ffn_pattern=("moe",), moe=MoEConfig(num_experts=EXPERTS, top_k=CHOSEN)
)
LORA = PeftConfig(method="lora", targets=("all-linear",), rank=RANK)
ATTENTION = 2 * 12 * D * S / 2
"""Of both layers: half of the square."""
LAYER = 4 * D * D + 3 * D * F


def test_all_is_trained():
    whole = flops_per_token(DENSE)
    assert whole == models.flops_per_token(MODEL, S) == 6 * (2 * LAYER + D * V) + ATTENTION


@pytest.mark.parametrize("scan", ["on", "off"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_adapters_on_a_frozen_model(scan, quantize):
    """Packed or not, scanned or not: 4 of a frozen weight, 6 of an adapter's."""
    model = dataclasses.replace(MODEL, scan_layers=scan)
    peft = dataclasses.replace(LORA, quantize=quantize)
    adapters = 2 * RANK * (4 * 2 * D + 3 * (D + F))
    expected = 4 * (2 * LAYER + D * V) + 6 * adapters + ATTENTION
    assert flops_per_token(dataclasses.replace(DENSE, model=model, peft=peft)) == expected


def test_adapters_of_experts_meet_their_share_of_tokens():
    config = dataclasses.replace(DENSE, model=MIXTURE, peft=LORA)
    layer = 4 * D * D + D * EXPERTS + CHOSEN * 3 * D * F
    adapters = 2 * RANK * (4 * 2 * D + CHOSEN * 3 * (D + F))
    assert flops_per_token(config) == 4 * (2 * layer + D * V) + 6 * adapters + ATTENTION


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scan", ["on", "off"])
def test_the_last_layer_alone(tied, scan):
    """A frozen head counts, tied or not; of a scanned stack the trained slice."""
    config = dataclasses.replace(
        DENSE,
        model=dataclasses.replace(MODEL, tied_embeddings=tied, scan_layers=scan),
        optimizer=OptimizerConfig(rules=("layers_1/: rate=1", ".*: freeze")),
    )
    assert flops_per_token(config) == 4 * (LAYER + D * V) + 6 * LAYER + ATTENTION
