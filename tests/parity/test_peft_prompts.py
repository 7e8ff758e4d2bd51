"""Virtual tokens, prefixes and IA3 against `peft`, on one tiny Llama whose weights both have.

Whatever is trained there is random here too, so that nothing agrees because it is 0 or 1.
"""

import functools

import jax
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import PeftConfig, PromptConfig
from jgpt.interop.parity import on_one_device

torch = pytest.importorskip("torch", reason="peft runs on torch")
transformers = pytest.importorskip("transformers", reason="makes the model")
theirs_peft = pytest.importorskip("peft", reason="what is compared with")

pytestmark = pytest.mark.parity

LENGTH, HIDDEN, WIDTH, LAYERS = 3, 10, 32, 2
TOKENS = np.random.default_rng(0).integers(1, 60, (2, 9))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(the folder, our config, our parameters)."""
    config = transformers.LlamaConfig(
        vocab_size=60,
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        attention_bias=True,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    model, variables = on_one_device(path)
    return path, model, variables["params"]


def adapted(path, config):
    """Their model with everything that it trains random."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    model = theirs_peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def only(arrays, ending):
    (found,) = [array for name, array in arrays.items() if name.endswith(ending)]
    return found


def linear(name, arrays, theirs):
    return {
        name: only(arrays, f"{theirs}.weight").T,
        f"{name}_bias": only(arrays, f"{theirs}.bias"),
    }


# --- their trained arrays, or the gradients of them, as our leaves --------------------------------


def layers_of(leaves):
    return {f"layers_{i}": leaves(i) for i in range(LAYERS)}


def keys_and_values(array, layer):
    """Columns of one layer of what holds a key and a value of every layer side by side."""
    width = array.shape[-1] // (2 * LAYERS)
    return array[..., 2 * layer * width : 2 * (layer + 1) * width]


def direct_prefix(arrays):
    table = only(arrays, "embedding.weight")
    return layers_of(lambda i: {"attention": {"key_value": {"prefix": keys_and_values(table, i)}}})


def network_prefix(arrays):
    up = linear("up", arrays, "transform.2")
    tree = layers_of(
        lambda i: {"attention": {"key_value": {n: keys_and_values(x, i) for n, x in up.items()}}}
    )
    down = linear("down", arrays, "transform.0")
    return tree | {"shared": {"prefix": only(arrays, "embedding.weight"), **down}}


def prompt(arrays):
    return {"embedding": {"prompt": only(arrays, "default.embedding.weight")}}


def maps(arrays, count):
    found = [linear(f"mlp_{i + 1}", arrays, f"mlp_head.{2 * i}") for i in range(count)]
    return {name: leaf for leaves in found for name, leaf in leaves.items()}


def mlp(arrays):
    return {"embedding": prompt(arrays)["embedding"] | maps(arrays, 3)}


def lstm(arrays):
    leaves = prompt(arrays)["embedding"] | maps(arrays, 2)
    for layer in range(2):
        for direction, ending in (("forward", ""), ("backward", "_reverse")):
            for part, theirs in (("input", "ih"), ("state", "hh")):
                name = f"lstm_{layer}_{direction}_{part}"
                leaves[name] = only(arrays, f"lstm_head.weight_{theirs}_l{layer}{ending}").T
                leaves[f"{name}_bias"] = only(arrays, f"lstm_head.bias_{theirs}_l{layer}{ending}")
    return {"embedding": leaves}


def ia3(arrays):
    def vector(layer, module):
        return only(arrays, f"layers.{layer}.{module}.ia3_l.default").reshape(-1)

    return layers_of(
        lambda i: {
            "attention": {
                "key": {"output_scale": vector(i, "self_attn.k_proj")},
                "value": {"output_scale": vector(i, "self_attn.v_proj")},
            },
            "ffn": {"down": {"input_scale": vector(i, "mlp.down_proj")}},
        }
    )


TOKENS_BEFORE = {"task_type": "CAUSAL_LM", "num_virtual_tokens": LENGTH}
NETWORK = {"encoder_hidden_size": HIDDEN}
CASES = {
    "p_tuning_v2": ("PrefixTuningConfig", TOKENS_BEFORE, {}, direct_prefix),
    "prefix_tuning": (
        "PrefixTuningConfig",
        TOKENS_BEFORE | NETWORK | {"prefix_projection": True},
        {},
        network_prefix,
    ),
    "prompt_tuning": ("PromptTuningConfig", TOKENS_BEFORE, {}, prompt),
    "p_tuning": ("PromptEncoderConfig", TOKENS_BEFORE | NETWORK, {"encoder": "mlp"}, mlp),
    "p_tuning, lstm": (
        "PromptEncoderConfig",
        TOKENS_BEFORE | NETWORK | {"encoder_reparameterization_type": "LSTM"},
        {"encoder": "lstm"},
        lstm,
    ),
    "ia3": ("IA3Config", {"task_type": "CAUSAL_LM"}, {}, ia3),
}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_peft(llama, name):
    kind, fields, ours, as_ours = CASES[name]
    path, model, params = llama
    theirs = adapted(path, getattr(theirs_peft, kind)(**fields))
    expected = theirs(torch.tensor(TOKENS)).logits
    direction = np.random.default_rng(2).standard_normal(expected.shape).astype(np.float32)
    (expected * torch.tensor(direction)).sum().backward()
    learned = {n: p for n, p in theirs.named_parameters() if p.requires_grad}

    prompt = PromptConfig(length=LENGTH, hidden=HIDDEN, **ours)
    fitted = peft.make_peft(PeftConfig(method=name.split(",")[0], prompt=prompt), model)
    apply = peft.bind(fitted, functools.partial(models.apply, model))
    count = apply.virtual_tokens
    before = np.broadcast_to(np.arange(-count, 0), (len(TOKENS), count))
    batch = {"inputs": np.concatenate([before, TOKENS], axis=1).astype(np.int32)}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(adapters):
        logits = apply({"params": params, peft.TRAINED: adapters}, batch)[0]
        return (logits * direction).sum(), logits

    adapters = as_ours({n: p.detach().numpy() for n, p in learned.items()})
    assert peft.count_trained(fitted) == sum(p.numel() for p in learned.values())
    found, logits = gradients(adapters)
    close(logits, expected.detach().numpy())
    right = as_ours({n: p.grad.numpy() for n, p in learned.items()})
    jax.tree.map(close, found, right)
