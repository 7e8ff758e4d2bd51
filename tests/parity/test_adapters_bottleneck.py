"""Bottleneck adapters against the `adapters` library, in a Llama (pre-norm) and a BERT (post-norm).

The library asks for a release of transformers of its own, so this wants an environment of its own.
"""

import functools

import jax
import numpy as np
import pytest

from jgpt import models, peft
from jgpt.config import BottleneckConfig, PeftConfig
from jgpt.interop.parity import on_one_device

torch = pytest.importorskip("torch", reason="adapters runs on torch")
transformers = pytest.importorskip("transformers", reason="makes the models")
adapters = pytest.importorskip("adapters", reason="what is compared with")

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, "logits"),
    "bert": (transformers.BertModel, transformers.BertConfig, "last_hidden_state"),
}
THEIRS = {
    "houlsby": adapters.DoubleSeqBnConfig,
    "pfeiffer": adapters.SeqBnConfig,
    "parallel": adapters.ParBnConfig,
}
OURS = {"houlsby": BottleneckConfig(activation="silu")}
PLACES = {
    "llama": ("model.layers.{}.attention_adapters", "model.layers.{}.output_adapters"),
    "bert": ("encoder.layer.{}.attention.output", "encoder.layer.{}.output"),
}
TOKENS = np.random.default_rng(0).integers(1, 60, (2, 9))


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_library(name, method, tmp_path):
    kind, config, output = MODELS[name]
    torch.manual_seed(0)
    kind(config(**SIZES)).save_pretrained(tmp_path)
    theirs = kind.from_pretrained(tmp_path, attn_implementation="eager").eval()
    adapters.init(theirs)
    theirs.add_adapter("a", config=THEIRS[method]())
    theirs.train_adapter("a")
    theirs.eval()
    learned = {n: p for n, p in theirs.named_parameters() if ".adapters.a." in n}
    with torch.no_grad():
        for parameter in learned.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        expected = theirs(torch.tensor(TOKENS))[output].numpy()

    model, variables = on_one_device(tmp_path)
    settings = PeftConfig(method=method, bottleneck=OURS.get(method, BottleneckConfig()))
    fitted = peft.make_peft(settings, model)
    assert peft.count_trained(fitted) == sum(p.numel() for p in learned.values())

    def leaves(layer, place):
        found = {}
        for ours, there in (("down", "adapter_down.0"), ("up", "adapter_up")):
            prefix = f"{place.format(layer)}.adapters.a.{there}"
            found[ours] = learned[f"{prefix}.weight"].detach().numpy().T
            found[f"{ours}_bias"] = learned[f"{prefix}.bias"].detach().numpy()
        return found

    attention, ffn = PLACES[name]
    trees = {}
    for layer in range(2):
        trees[f"layers_{layer}"] = {"ffn_residual": leaves(layer, ffn)}
        if method == "houlsby":
            trees[f"layers_{layer}"]["attention_residual"] = leaves(layer, attention)
    apply = peft.bind(fitted, functools.partial(models.apply, model))
    batch = {"inputs": TOKENS.astype(np.int32)}
    wanted = "logits" if output == "logits" else "hidden"
    found, _ = jax.jit(lambda v: apply(v, batch, output=wanted))(
        {"params": variables["params"], peft.TRAINED: trees}
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * abs(expected).max())
