"""The LoRA family equals Hugging Face's `peft` on one small Llama: logits, gradients, starts, and
AdaLoRA's course over a whole run.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import AdaLoraConfig, PeftConfig
from jgpt.interop.parity import on_one_device
from jgpt.peft import hooks
from jgpt.peft.adapters import by_site, flat, nested
from tests.parity.hf_models import random_llama

torch = pytest.importorskip("torch", reason="compares with peft, which runs on torch")
transformers = pytest.importorskip("transformers", reason="compares with peft on its models")
their_peft = pytest.importorskip("peft", reason="compares with it")

pytestmark = pytest.mark.parity

RANK, ALPHA = 4, 6
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 7), np.int32)
DIRECTION = np.random.default_rng(1).standard_normal((2, 7, 40)).astype(np.float32)
SITES = {
    "self_attn.q_proj": "attention/query",
    "self_attn.v_proj": "attention/value",
    "mlp.down_proj": "ffn/down",
}
"""Their modules, of different sizes, and ours."""
TARGETS = ("attention/(query|value)$", "ffn/down$")
LEAVES = {
    "lora_A.default.weight": "lora_a",
    "lora_B.default.weight": "lora_b",
    "lora_magnitude_vector.default.weight": "magnitude",
    "lora_A.default": "lora_a",
    "lora_B.default": "lora_b",
    "lora_E.default": "lora_e",
    "vera_lambda_d.default": "vera_d",
    "vera_lambda_b.default": "vera_b",
}


def lora(**options):
    return their_peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=[m.split(".")[1] for m in SITES], **options
    )


CASES = {
    "lora": (lora(), PeftConfig("lora")),
    "rslora": (lora(use_rslora=True), PeftConfig("rslora")),
    "dora": (lora(use_dora=True), PeftConfig("dora")),
    "pissa": (lora(init_lora_weights="pissa"), PeftConfig("pissa")),
    "olora": (lora(init_lora_weights="olora"), PeftConfig("olora")),
    "vera": (
        their_peft.VeraConfig(r=RANK, target_modules=[m.split(".")[1] for m in SITES]),
        PeftConfig("vera"),
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small model with random weights."""
    return random_llama(tmp_path_factory.mktemp("llama"), 0.2, hidden_size=16, intermediate_size=24)


def theirs(folder, config):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return their_peft.get_peft_model(model, config).eval()


def ours(folder, settings):
    """(fitted, base, adapters, logits of variables) of the same folder."""
    settings = dataclasses.replace(
        settings, targets=TARGETS, rank=settings.rank or RANK, alpha=float(ALPHA)
    )
    config, variables = on_one_device(folder)
    fitted = peft.make_peft(settings, config)
    base, adapters = peft.init(fitted, variables["params"], jax.random.key(0))
    apply = peft.bind(fitted, functools.partial(models.apply, config))

    def logits(trained, constants, tokens=TOKENS):
        collections = {"params": base, peft.TRAINED: trained, peft.CONSTANTS: constants}
        return apply(collections, {"inputs": tokens})[0]

    return fitted, base, adapters, logits


def as_ours(model, of=lambda parameter: parameter):
    """Their trained arrays (or `of` them) as a tree of ours."""
    found = {}
    for name, parameter in model.named_parameters():
        place = re.search(r"layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.(.*)$", name)
        if place and place[4] in LEAVES:
            array = of(parameter).detach().numpy()
            leaf = LEAVES[place[4]]
            site = SITES[f"{place[2]}.{place[3]}"]
            array = array.reshape(-1) if leaf in ("lora_e", "vera_d", "vera_b") else array.T
            found[f"layers_{place[1]}/{site}/{leaf}"] = jnp.asarray(array.copy())
    return nested(found)


def close(found, expected, tolerance=1e-4):
    found, expected = dict(flat(found)), dict(flat(expected))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        difference = abs(np.asarray(found[path]) - leaf).max()
        assert difference <= tolerance * abs(leaf).max(), path


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_theirs(llama, name):
    """With every trained leaf random, upon the base that each side's own start leaves."""
    config, settings = CASES[name]
    model = theirs(llama, config)
    _, _, adapters, logits = ours(llama, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    constants = adapters.constants
    if name == "vera":
        a, b = (getattr(model.base_model, n)["default"].numpy() for n in ("vera_A", "vera_B"))
        drawn = {"projection_a": jnp.asarray(a.T), "projection_b": jnp.asarray(b.T)}
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, constants["shared"])
        constants = {"shared": drawn}
    trained = as_ours(model)
    assert jax.tree.structure(trained) == jax.tree.structure(adapters.trained)

    expected = model(torch.tensor(TOKENS.astype(np.int64))).logits
    (expected * torch.tensor(DIRECTION)).sum().backward()

    @jax.jit
    def run(trained):
        def total(trained):
            y = logits(trained, constants)
            return (y * DIRECTION).sum(), y

        return jax.grad(total, has_aux=True)(trained)

    gradients, found = run(trained)
    close({"logits": found}, {"logits": expected.detach().numpy()})
    close(gradients, as_ours(model, lambda parameter: parameter.grad))


@pytest.mark.parametrize("name", ["pissa", "olora", "dora"])
def test_training_starts_where_theirs_does(llama, name):
    """Base and update are the same; singular vectors may have the other sign."""
    config, settings = CASES[name]
    model = theirs(llama, config)
    _, base, adapters, _ = ours(llama, settings)
    modules = dict(model.named_modules())
    for module, site in SITES.items():
        layer = modules[f"base_model.model.model.layers.1.{module}"]
        path = ("layers_1", *site.split("/"))
        own, weight = (
            functools.reduce(dict.__getitem__, path, tree) for tree in (adapters.trained, base)
        )
        expected = {
            "base": layer.base_layer.weight.detach().numpy().T,
            "update": layer.get_delta_weight("default").detach().numpy().T,
        }
        found = {
            "base": weight["kernel"],
            "update": ALPHA / RANK * own["lora_a"] @ own["lora_b"],
        }
        if name == "dora":
            magnitude = layer.lora_magnitude_vector["default"].weight
            expected["magnitude"], found["magnitude"] = magnitude.detach().numpy(), own["magnitude"]
        elif name == "olora":
            a = layer.lora_A["default"].weight
            expected["a"], found["a"] = a.detach().numpy().T, own["lora_a"]
        close(found, expected)


def test_adalora_runs_as_theirs_does(llama):
    """Plain gradient descent with the penalty; leaves after each of eight updates."""
    steps, rate = 8, 0.5
    model = theirs(
        llama,
        their_peft.AdaLoraConfig(
            task_type="CAUSAL_LM",  # without it, the penalty is left out of the loss
            init_r=6,
            target_r=3,
            tinit=1,
            tfinal=2,
            deltaT=2,
            total_step=steps,
            lora_alpha=ALPHA,
            target_modules=[m.split(".")[1] for m in SITES],
        ),
    )
    allocator = AdaLoraConfig(initial_rank=6, warmup_steps=1, final_steps=2, interval=2)
    settings = PeftConfig("adalora", rank=3, adalora=allocator)
    fitted, _, adapters, logits = ours(llama, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    trained = as_ours(model)
    state = hooks.init_state(fitted, trained, steps)

    def loss(trained):
        y = logits(trained, adapters.constants)[:, :-1]
        scores = jax.nn.log_softmax(y)
        mean = -jnp.take_along_axis(scores, TOKENS[:, 1:, None], -1).mean()
        return mean + hooks.regulariser(fitted, adapters._replace(trained=trained))

    @jax.jit
    def update(trained, state, step):
        value, gradients = jax.value_and_grad(loss)(trained)
        trained = jax.tree.map(lambda p, g: p - rate * g, trained, gradients)
        after = adapters._replace(trained=trained)
        return value, *hooks.after_update(fitted, after, gradients, state, step, steps)

    tokens = torch.tensor(TOKENS.astype(np.int64))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for step in range(1, steps + 1):
        value, trained, state = update(trained, state, jnp.int32(step))
        their_loss = model(input_ids=tokens, labels=tokens).loss
        their_loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        np.testing.assert_allclose(value, their_loss.item(), rtol=1e-4)
        close(trained, as_ours(model), 1e-3)
    left = sum((leaves["lora_e"] != 0).sum() for leaves in by_site(trained).values())
    assert left == 3 * 6
