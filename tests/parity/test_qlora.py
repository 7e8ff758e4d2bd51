"""QLoRA beside transformers with bitsandbytes and peft: equal codes, logits, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import PeftConfig
from jgpt.interop.parity import on_one_device
from jgpt.peft.quantization import quantized
from tests.parity.hf_models import random_llama
from tests.parity.test_peft import LEAVES, close

torch = pytest.importorskip("torch", reason="compares with peft, which runs on torch")
transformers = pytest.importorskip("transformers", reason="compares with its quantised models")
pytest.importorskip("bitsandbytes", reason="transformers quantises with it")
their_peft = pytest.importorskip("peft", reason="compares with its adapters")

pytestmark = pytest.mark.parity

MODULES = {
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.o_proj": "attention/output",
    "mlp.gate_proj": "ffn/gate",
    "mlp.up_proj": "ffn/up",
    "mlp.down_proj": "ffn/down",
}
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 9), np.int32)
DIRECTION = np.random.default_rng(1).standard_normal((2, 9, 40)).astype(np.float32)
TOLERANCE = {False: 1e-4, True: 2e-3}
"""With scales in 8 bits, one that lies half way between two levels may be rounded the other way."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small model whose widths are whole blocks of 64."""
    return random_llama(
        tmp_path_factory.mktemp("llama"), 0.1, hidden_size=64, intermediate_size=128
    )


def theirs(folder, double):
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=four_bits, device_map="cpu"
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # its quick product is one in bfloat16
    config = their_peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
    model = their_peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def as_ours(model, of):
    """`of` their trained arrays as a tree of ours."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            _, _, _, _, layer, *module, leaf, adapter, weight = name.split(".")
            place = f"layers_{layer}/{MODULES['.'.join(module)]}"
            array = of(parameter).detach().numpy().T
            found[f"{place}/{LEAVES[f'{leaf}.{adapter}.{weight}']}"] = jnp.asarray(array.copy())
    return peft.adapters.nested(found)


@pytest.mark.parametrize("double", [False, True])
def test_logits_and_gradients_are_theirs(llama, double):
    model = theirs(llama, double)
    expected = model(torch.tensor(TOKENS.astype(np.int64))).logits
    (expected * torch.tensor(DIRECTION)).sum().backward()

    settings = PeftConfig(
        "lora", ("all-linear",), rank=4, alpha=6.0, quantize="nf4", double_quantize=double
    )
    config, variables = on_one_device(llama)
    fitted = peft.make_peft(settings, config)
    _, adapters = peft.init(fitted, variables["params"], jax.random.key(0))
    apply = peft.bind(fitted, functools.partial(models.apply, config))
    trained = as_ours(model, lambda parameter: parameter)
    assert jax.tree.structure(trained) == jax.tree.structure(adapters.trained)

    @jax.jit
    def run(base, trained):
        def total(trained):
            collections = {
                "params": base, peft.TRAINED: trained, peft.CONSTANTS: adapters.constants,
            }  # fmt: skip
            logits = apply(collections, {"inputs": TOKENS})[0]
            return (logits * DIRECTION).sum(), logits

        return jax.grad(total, has_aux=True)(trained)

    packed = quantized(settings, config, variables["params"])
    gradients, logits = run(packed, trained)
    close({"logits": logits}, {"logits": expected.detach().numpy()}, TOLERANCE[double])
    close(gradients, as_ours(model, lambda parameter: parameter.grad), TOLERANCE[double])

    _, whole = run(variables["params"], trained)
    lost = abs(whole - logits).max() / abs(logits).max()
    assert lost > 1e-2  # four bits lose far more than what the two differ by


def test_the_other_form_of_the_scales_would_be_seen(llama):
    """Scales of 8 and of 32 bits differ by more than is accepted above."""
    logits = [
        theirs(llama, double)(torch.tensor(TOKENS.astype(np.int64))).logits.detach().numpy()
        for double in (False, True)
    ]
    with pytest.raises(AssertionError):
        close({"logits": logits[0]}, {"logits": logits[1]}, TOLERANCE[True])
