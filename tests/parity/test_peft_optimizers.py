"""LoRA-FA and LoRA+ over several updates of AdamW, beside the optimizers of `peft`."""

import jax
import numpy as np
import pytest

from jgpt import peft
from jgpt.config import OptimizerConfig, PeftConfig
from jgpt.peft.adapters import flat
from jgpt.training.optimizer import make_optimizer
from jgpt.training.state import ADAPTERS
from jgpt.training.trainable import Trainable
from tests.parity.test_peft import (
    ALPHA,
    DIRECTION,
    RANK,
    TOKENS,
    as_ours,
    close,
    lora,
    ours,
    theirs,
)
from tests.parity.test_peft import llama as llama  # a fixture

torch = pytest.importorskip("torch", reason="compares with peft, which runs on torch")
their_optimizers = pytest.importorskip("peft.optimizers", reason="compares with them")

pytestmark = pytest.mark.parity

UPDATES, RATE = 5, 3e-3


def lora_fa(model, monkeypatch):
    module = "peft.optimizers.lorafa.is_bf16_available"
    monkeypatch.setattr(module, lambda: False)  # or it multiplies in bfloat16 where it can
    return their_optimizers.create_lorafa_optimizer(model, RANK, ALPHA, RATE)


def lora_plus(model, monkeypatch):
    return their_optimizers.create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16, eps=1e-6
    )


@pytest.mark.parametrize("optimizer", [lora_fa, lora_plus])
def test_updates_are_theirs(llama, optimizer, monkeypatch):
    """From random A and B, so that neither has gradients of zero at the start."""
    model = theirs(llama, lora())
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    fitted, _, adapters, logits = ours(llama, PeftConfig(optimizer.__name__))
    everything = dict(flat(as_ours(model)))
    trained, constants = (
        peft.adapters.nested({path: everything.get(path, leaf) for path, leaf in flat(tree)})
        for tree in adapters
    )

    their_update = optimizer(model, monkeypatch)
    weight = torch.tensor(DIRECTION)
    for _ in range(UPDATES):
        (model(torch.tensor(TOKENS.astype(np.int64))).logits * weight).sum().backward()
        their_update.step()
        their_update.zero_grad()

    settings = OptimizerConfig(
        learning_rate=RATE, schedule="constant", warmup_steps=0, clip_norm=0.0,
        weight_decay=0.0, b2=0.999, epsilon=1e-6,
    )  # fmt: skip
    trainable, params = Trainable(fitted.model, fitted), {ADAPTERS: trained}
    rule = make_optimizer(
        settings, UPDATES, params, None, trainable.rates(params), trainable.decays(params),
        trainable.groups(params), trainable.gradient,
    )  # fmt: skip
    state = rule.init(params)

    @jax.jit
    def update(params, state):
        def total(params):
            return (logits(params[ADAPTERS], constants) * DIRECTION).sum()

        changes, state = rule.update(jax.grad(total)(params), state, params, constants=constants)
        return jax.tree.map(lambda p, change: p + change, params, changes), state

    for _ in range(UPDATES):
        params, state = update(params, state)
    expected = {p: leaf for p, leaf in flat(as_ours(model)) if p in dict(flat(trained))}
    moved = {path: leaf - everything[path] for path, leaf in expected.items()}
    found = {path: leaf - everything[path] for path, leaf in flat(params[ADAPTERS])}
    close(peft.adapters.nested(found), peft.adapters.nested(moved), 1e-2)
