"""Folders of adapters are peft's: what we write loads there with the same logits, and back.

Each case goes the whole way: ours to a folder, into `PeftModel`, out of it by `save_pretrained`,
and into ours again. Sums of adapters are those of `add_weighted_adapter`.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models
from jgpt import peft as ours
from jgpt.config import AdaLoraConfig, PeftConfig, PromptConfig
from jgpt.interop.parity import on_one_device
from jgpt.interop.peft_format import CONFIG_FILE, WEIGHTS_FILE
from jgpt.interop.peft_format_read import build, open_adapters, read
from jgpt.interop.peft_format_write import write_folder
from jgpt.interop.tensor_files import Shape, write_file
from jgpt.peft import compose
from jgpt.trees import map_with_path

torch = pytest.importorskip("torch", reason="peft runs on torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers models")
peft = pytest.importorskip("peft", reason="compares with folders that peft writes")

pytestmark = pytest.mark.parity

TOKENS = np.random.default_rng(1).integers(1, 60, (2, 9))
SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=64),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=2),
}
LORA = PeftConfig(
    method="lora", targets=("all-linear",), rank=4, alpha=6.0, rank_pattern=("layers_1/.*query=2",)
)
CASES = {
    "lora, embedding": (
        "llama",
        dataclasses.replace(
            LORA, targets=("query$", "down$", "embedding"), alpha_pattern=("down$=9",)
        ),
    ),
    "rslora, bias": ("llama", dataclasses.replace(LORA, scaling="sqrt_rank", bias=True)),
    "lora, train_also": (
        "llama",
        dataclasses.replace(LORA, train_also=("^final_norm/", "^head/")),
    ),
    "lora, fused": ("phi3", dataclasses.replace(LORA, targets=("(query|value|gate|down)$",))),
    "lora, in_out": ("gpt2", LORA),
    "dora": ("llama", dataclasses.replace(LORA, method="dora", targets=("(query|up)$",))),
    "adalora": (
        "llama",
        PeftConfig(method="adalora", rank=3, adalora=AdaLoraConfig(initial_rank=5)),
    ),
    "vera": ("llama", PeftConfig(method="vera", rank=6)),
    "ia3": ("llama", PeftConfig(method="ia3")),
    "ia3, fused": ("gpt2", PeftConfig(method="ia3")),
    "prefix_tuning": ("llama", PeftConfig(method="prefix_tuning", prompt=PromptConfig(length=3))),
    "p_tuning": ("gemma3", PeftConfig(method="p_tuning", prompt=PromptConfig(length=3))),
}


@functools.cache
def base(family, folder):
    """A random model of transformers, in a folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    path = folder / family
    model.eval().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def loaded(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")


def randomly(settings, model, params, seed=0):
    """A method with random leaves and, where they are trained too, parameters."""
    fitted = ours.make_peft(settings, model)
    _, adapters = ours.init(fitted, params, jax.random.key(0))
    generator = np.random.default_rng(seed)

    def noise(path, leaf):
        new = leaf + 0.3 * generator.standard_normal(leaf.shape)
        cut = path.endswith("lora_e") * (generator.random(leaf.shape) < 0.4)
        if path.endswith("layers_0/attention/value/lora_e"):
            cut = True
        return jnp.asarray(np.where(cut, 0, new), leaf.dtype)

    return fitted, adapters._replace(trained=map_with_path(noise, adapters.trained))


def our_logits(pair, params):
    fitted, adapters = pair
    apply = ours.bind(fitted, functools.partial(models.apply, fitted.model))
    tokens = TOKENS.astype(np.int32)
    virtual = fitted.method.virtual_tokens(fitted.settings)
    ids = np.tile(np.arange(-virtual, 0, dtype=np.int32), (len(tokens), 1))
    variables = {"params": params, "adapters": adapters.trained, "constants": adapters.constants}
    batch = {"inputs": np.concatenate([ids, tokens], axis=1)}
    return np.asarray(jax.jit(lambda v: apply(v, batch)[0])(variables))[:, virtual:]


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits[:, -TOKENS.shape[1] :].numpy()


def error(found, expected):
    return abs(found - expected).max() / abs(expected).max()


def with_own(params, own):
    flat = dict(ours.adapters.flat(params)) | own
    return ours.adapters.nested(flat)


@pytest.mark.parametrize("case", CASES)
def test_what_we_write_loads_in_peft_and_comes_back(case, folder, tmp_path):
    family, settings = CASES[case]
    path = base(family, folder)
    model, variables = on_one_device(path)
    params = variables["params"]
    pair = randomly(settings, model, params)
    own = {
        name: leaf * 1.5
        for name, leaf in ours.adapters.flat(params)
        if any(pattern.strip("^") in name for pattern in settings.train_also)
    }
    expected = our_logits(pair, with_own(params, own))
    assert error(our_logits(pair, params), their_logits(loaded(path))) > 1e-2

    named = "gemma3_text" if family == "gemma3" else family
    write_folder(tmp_path / "ours", *pair, own=own, base=str(path), family=named)
    theirs = peft.PeftModel.from_pretrained(loaded(path), tmp_path / "ours")
    assert error(their_logits(theirs), expected) < 1e-4

    theirs.save_pretrained(tmp_path / "theirs")
    found = read(open_adapters(tmp_path / "theirs"), model, named)
    again = our_logits(build(found, model), with_own(params, dict(found.own)))
    assert error(again, expected) < 1e-4


def test_the_least_that_is_a_folder(folder, tmp_path):
    path = base("llama", folder)
    model, variables = on_one_device(path)
    generator = np.random.default_rng(0)
    tensors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight": (
            generator.standard_normal(shape).astype(np.float32)
        )
        for i in range(2)
        for side, shape in (("A", (4, 24)), ("B", (24, 4)))
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q_proj"]}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    shapes = {name: Shape(x.shape, x.dtype) for name, x in tensors.items()}
    write_file(tmp_path / WEIGHTS_FILE, shapes, tensors.__getitem__, {})
    pair = build(read(open_adapters(tmp_path), model, "llama"), model)
    theirs = peft.PeftModel.from_pretrained(loaded(path), tmp_path)
    assert error(our_logits(pair, variables["params"]), their_logits(theirs)) < 1e-4


def test_sums_are_those_of_peft(folder, tmp_path):
    path = base("llama", folder)
    model, variables = on_one_device(path)
    settings = dataclasses.replace(LORA, targets=("(query|down)$",), rank_pattern=())
    pairs = [randomly(settings, model, variables["params"], seed) for seed in (1, 2)]
    weights = [0.7, -0.4]
    for name, pair in zip("ab", pairs, strict=True):
        write_folder(tmp_path / name, *pair, base=str(path), family="llama")
    theirs = peft.PeftModel.from_pretrained(loaded(path), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", adapter_name="b")
    for way in compose.WAYS:
        if way.startswith("dare"):  # other random numbers
            continue
        theirs.add_weighted_adapter(
            ["a", "b"], weights, way, combination_type=way, density=0.5, svd_rank=3
        )
        theirs.set_adapter(way)
        combined = compose.combine(pairs, weights, way, rank=3, density=0.5)
        found = our_logits(combined, variables["params"])
        assert error(found, their_logits(theirs)) < 1e-4, way
