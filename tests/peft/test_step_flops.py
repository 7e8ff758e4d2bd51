"""What a LoRA step multiplies, beside a full fine-tune's: the compiled program's own products."""

import dataclasses
import math

import jax
import pytest

from jgpt import sharding
from jgpt.config import Config, DataConfig, ModelConfig, PeftConfig
from jgpt.planning.counts import count
from jgpt.planning.hlo import parse
from jgpt.planning.products import product_flops
from jgpt.planning.programs import compile_step

MODEL = ModelConfig(
    num_layers=8,
    hidden_size=512,
    num_heads=8,
    num_kv_heads=4,
    intermediate_size=1376,
    vocab_size=16384,
    max_length=512,
    scan_layers="on",
    remat="none",
)
WIDTHS, RANK = {512, 256, 1376}, 8
FULL = Config(model=MODEL, data=DataConfig(sequence_length=512, batch_size=4))
LORA = dataclasses.replace(FULL, peft=PeftConfig(method="lora", targets=("all-linear",), rank=RANK))


@pytest.fixture(scope="module")
def programs():
    """Name -> the compiled training step, its text read."""
    found = {}
    for name, config in (("full", FULL), ("lora", LORA)):
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        found[name] = parse(compile_step(config, mesh)[0].as_text())
    return found


def test_frozen_weights_have_no_gradients(programs):
    """A full step needs y = W x, dx and dW; LoRA on every map needs the first two, and little."""
    flops = {name: count(program).matmul_flops for name, program in programs.items()}
    assert flops["full"] > 2e11  # products are there to be counted
    assert 0.6 < flops["lora"] / flops["full"] <= 0.70


def updates(program):
    """Products [in, out] of two kernels' widths that contract the rank alone."""
    return [
        instruction.name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.op == "dot"
        and set(instruction.shapes[0].dims) <= WIDTHS
        and product_flops(instruction, computation)
        == 2 * math.prod(instruction.shapes[0].dims) * RANK
    ]


def test_the_update_is_never_added_to_the_weight(programs):
    assert not updates(programs["lora"])
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((512, RANK), (RANK, 256), (512, 256))]
    built = jax.jit(lambda a, b, w: w + a @ b).lower(*shapes).compile()
    assert updates(parse(built.as_text()))  # it would be found
