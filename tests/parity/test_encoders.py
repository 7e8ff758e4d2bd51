"""Encoders and encoder-decoders equal those of `transformers` from the same random weights."""

import hf_encoders
import hf_models
import jax
import numpy as np
import pytest
from test_transformers import error, nested, random_weights

from jgpt import models
from jgpt.config import ModelConfig
from jgpt.trees import leaves_by_path

torch = pytest.importorskip("torch", reason="compares with transformers models, which run on torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers models")

pytestmark = pytest.mark.parity

VOCABULARY, LENGTH = 60, 21
REAL = np.arange(LENGTH) < np.array([[LENGTH], [13]])
"""Rows of different lengths."""
SHAPE = {
    "vocab_size": VOCABULARY,
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "max_length": 40,
}
ENCODER = SHAPE | {
    "attention": "bidirectional",
    "norm": "layernorm",
    "embedding_norm": True,
    "gelu_approximate": False,
    "head_transform": True,
    "head_bias": True,
    "tied_embeddings": True,
}
POST = ENCODER | {
    "norm_placement": "post",
    "norm_epsilon": 1e-12,
    "ffn": "gelu",
    "ffn_bias": True,
    "attention_bias": True,
    "attention_output_bias": True,
}
HF_SHAPE = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert():
    ours = ModelConfig(**POST, position="learned", token_types=2)
    theirs = transformers.BertConfig(
        **HF_SHAPE, **NO_DROPOUT, type_vocab_size=2, layer_norm_eps=1e-12
    )
    return ours, theirs, hf_encoders.BERT, None


def deberta():
    ours = ModelConfig(
        **POST | {"norm_epsilon": 1e-7},
        position="disentangled",
        relative_buckets=6,
        relative_max_distance=16,
    )
    theirs = transformers.DebertaV2Config(
        **HF_SHAPE,
        **NO_DROPOUT,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=6,
        max_relative_positions=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        layer_norm_eps=1e-7,
    )
    return ours, theirs, hf_encoders.DEBERTA, None


def modernbert():
    ours = ModelConfig(
        **ENCODER | {"num_layers": 4},
        norm_bias=False,
        first_attention_norm=False,
        ffn="geglu",
        attention_pattern=("global", "local", "local"),
        window=4,
        rope_theta=160000.0,
        local_rope_theta=10000.0,
    )
    theirs = transformers.ModernBertConfig(
        **HF_SHAPE | {"num_hidden_layers": 4},
        local_attention=6,
        global_attn_every_n_layers=3,
        reference_compile=False,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    return ours, theirs, hf_encoders.MODERNBERT, hf_encoders.modernbert_maps


FAMILIES = {"bert": bert, "deberta-v2": deberta, "modernbert": modernbert}


def text(seed=0):
    """Tokens [2, LENGTH] with padding at the end of the second row."""
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (2, LENGTH))
    return np.where(REAL, tokens, 0)


def weights_of(config, model, names, fused, gradients=False):
    template = leaves_by_path(models.abstract_params(config))
    arrays = hf_models.tensors(model, gradients)
    return hf_models.params_like(template, arrays, names, fused)


def assert_gradients_equal(found, expected):
    # A key's bias moves all of a query's scores alike: its gradient is 0 but for rounding.
    floor = 1e-3 * max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in leaves_by_path(found).items():
        assert error(leaf, expected[path], floor) < 1e-4, path


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_language_models(name):
    """Hidden states, logits, loss and gradients of padded rows."""
    ours, theirs, names, fused = FAMILIES[name]()
    model = random_weights(transformers.AutoModelForMaskedLM.from_config(theirs))
    tokens, labels = text(), text(1)
    chosen = REAL & (np.random.default_rng(2).random(REAL.shape) < 0.4)
    options = {}
    batch = {
        "inputs": tokens.astype(np.int32),
        "targets": labels.astype(np.int32),
        "loss_weights": chosen.astype(np.float32),
        "segment_ids": REAL.astype(np.int32),
    }
    if ours.token_types:
        types = np.random.default_rng(3).integers(0, 2, tokens.shape)
        options["token_type_ids"] = torch.tensor(types)
        batch["token_types"] = types.astype(np.int32)
    out = model(
        torch.tensor(tokens),
        attention_mask=torch.tensor(REAL.astype(np.int64)),
        labels=torch.tensor(np.where(chosen, labels, -100)),
        output_hidden_states=True,
        **options,
    )
    out.loss.backward()
    params = nested(weights_of(ours, model, names, fused))

    @jax.jit
    def run(params):
        variables = {"params": params}
        hidden, _ = models.apply(ours, variables, batch, output="hidden")
        logits, _ = models.apply(ours, variables, batch)

        def loss(params):
            sums, _ = models.apply(ours, {"params": params}, batch, output="cross_entropy")
            return sums.total / sums.weight

        return hidden, logits, *jax.value_and_grad(loss)(params)

    hidden, logits, loss, gradients = run(params)
    assert error(hidden[REAL], out.hidden_states[-1].detach()[REAL]) < 1e-4
    assert error(logits[REAL], out.logits.detach()[REAL]) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    assert_gradients_equal(gradients, weights_of(ours, model, names, fused, gradients=True))


HEADS = {
    "bert": {"pooling": "cls", "pooler": "tanh"},
    "deberta-v2": {"pooling": "cls", "pooler": "gelu"},
    "modernbert": {"pooling": "mean", "pooler": "gelu_norm"},
}


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("name", FAMILIES)
def test_task_heads(name, level):
    """Outputs of sequence and token classifiers."""
    if (name, level) == ("modernbert", "token"):
        pytest.skip("its token classifier has the transform of its masked-language model before it")
    ours, theirs, names, fused = FAMILIES[name]()
    theirs.num_labels = 3
    theirs.classifier_pooling = "mean"
    pooling = HEADS[name] if level == "sequence" else {}
    task = {"head_transform": False, "head_bias": False, "num_labels": 3, "label_level": level}
    ours = ModelConfig(**ours.__dict__ | task | pooling)
    kind = {
        "sequence": transformers.AutoModelForSequenceClassification,
        "token": transformers.AutoModelForTokenClassification,
    }[level]
    model = random_weights(kind.from_config(theirs))
    tokens = text()
    expected = model(
        torch.tensor(tokens), attention_mask=torch.tensor(REAL.astype(np.int64))
    ).logits.detach()
    params = nested(weights_of(ours, model, names, fused))
    batch = {"inputs": tokens.astype(np.int32), "segment_ids": REAL.astype(np.int32)}
    found, _ = models.apply(ours, {"params": params}, batch, output="labels")
    if level == "token":
        found, expected = found[REAL], expected[REAL]
    assert error(found, expected) < 1e-4


def t5():
    ours = ModelConfig(
        **SHAPE,
        encoder_layers=3,
        head_dim=8,
        position="relative",
        relative_buckets=8,
        relative_max_distance=12,
        attention_scale=8**0.5,
        norm_epsilon=1e-6,
        ffn="geglu",
    )
    theirs = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=3,
        num_decoder_layers=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        initializer_factor=1.0,
    )
    return ours, theirs, hf_encoders.T5, None


def untied(model):
    """With a head of its own, as the released models of version 1.1 have (a config cannot ask)."""
    model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=False)
    return model


def test_t5():
    """Encoder states, logits, loss and gradients, with padding on both sides."""
    ours, theirs, names, fused = t5()
    model = random_weights(untied(transformers.T5ForConditionalGeneration(theirs)))
    source, labels = text(), text(1)[:, :11]
    out = model(
        torch.tensor(source),
        attention_mask=torch.tensor(REAL.astype(np.int64)),
        labels=torch.tensor(np.where(labels > 0, labels, -100)),
    )
    out.loss.backward()
    params = nested(weights_of(ours, model, names, fused))
    batch = {
        "encoder_inputs": source.astype(np.int32),
        "encoder_segment_ids": REAL.astype(np.int32),
        "inputs": np.pad(labels, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "targets": labels.astype(np.int32),
        "loss_weights": (labels > 0).astype(np.float32),
    }

    @jax.jit
    def run(params):
        logits, _ = models.apply(ours, {"params": params}, batch)

        def loss(params):
            sums, _ = models.apply(ours, {"params": params}, batch, output="cross_entropy")
            return sums.total / sums.weight

        return logits, *jax.value_and_grad(loss)(params)

    logits, loss, gradients = run(params)
    assert error(logits, out.logits.detach()) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    assert_gradients_equal(gradients, weights_of(ours, model, names, fused, gradients=True))
