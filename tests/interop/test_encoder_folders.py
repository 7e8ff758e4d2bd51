"""Encoders' and T5's folders as `transformers` writes them: equal here, and ours equal there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jgpt import models
from jgpt.config import SampleConfig
from jgpt.inference.from_source import SourceGenerator
from jgpt.interop.configs import differences
from jgpt.interop.description import InteropError
from jgpt.interop.export import export
from jgpt.interop.folder import open_folder
from jgpt.interop.parity import on_one_device
from jgpt.interop.weights import load
from jgpt.trees import leaves_by_path
from tests.interop.test_transformers_folders import check_gradients, error, gradients_as_folder

torch = pytest.importorskip("torch", reason="transformers models run on torch")
transformers = pytest.importorskip("transformers", reason="writes and reads the folders")

pytestmark = pytest.mark.parity

VOCABULARY, LENGTH = 60, 21
REAL = np.arange(LENGTH) < np.array([[LENGTH], [13]])
"""Rows of different lengths."""
SIZES = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
BERT = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DEBERTA = BERT | {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 6,
    "max_relative_positions": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
MODERNBERT = SIZES | {
    "num_hidden_layers": 4,
    "local_attention": 6,
    "classifier_pooling": "mean",
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
FAMILIES = {"Bert": BERT, "DebertaV2": DEBERTA, "ModernBert": MODERNBERT}


def random_model(kind, settings, head):
    """Theirs, with every parameter random: biases and norms too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}{head}")(config)
    if kind == "T5":
        # The released models of version 1.1 have a head of their own; a config cannot ask for one.
        model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.3 * noise) if parameter.ndim == 1 else parameter.copy_(0.2 * noise)
    return model.eval()


def text(seed=0):
    """Tokens [2, LENGTH] with padding at the end of the second row."""
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (2, LENGTH))
    return np.where(REAL, tokens, 0)


def run(config, params, batch):
    """(logits, mean loss of the weighted targets, its gradients)."""

    @jax.jit
    def both(params):
        def loss(params):
            sums, _ = models.apply(config, {"params": params}, batch, output="cross_entropy")
            return sums.total / sums.weight

        logits, _ = models.apply(config, {"params": params}, batch)
        return logits, *jax.value_and_grad(loss)(params)

    return both(params)


def exported_again(tmp_path, model):
    """Our export of a folder: the same tensors bit for bit, loaded strictly by transformers."""
    theirs = open_folder(tmp_path / "theirs")
    config, variables = on_one_device(tmp_path / "theirs")
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(variables["params"]).items()}
    export(
        tmp_path / "ours",
        config,
        leaves.__getitem__,
        dtype=np.dtype(np.float32),
        family=theirs.family.name,
        extra={"pad_token_id": 0},
        largest_shard=20_000,
    )
    ours = open_folder(tmp_path / "ours")
    assert not differences(theirs.model, ours.model)
    assert theirs.config["architectures"] == ours.config["architectures"]
    prefix = theirs.family.optional_prefix
    for name in theirs.files:
        there = name if name in ours.files else prefix + name
        np.testing.assert_array_equal(theirs.view(name), ours.view(there), err_msg=name)
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    return again.eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_masked_language_models_there_and_back(kind, tmp_path):
    """Hidden states, logits, loss and gradients of padded rows; then our export."""
    model = random_model(kind, FAMILIES[kind], "ForMaskedLM")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours, variables = on_one_device(tmp_path / "theirs")
    tokens, labels = text(), text(1)
    chosen = REAL & (np.random.default_rng(2).random(REAL.shape) < 0.4)
    batch = {
        "inputs": tokens.astype(np.int32),
        "targets": labels.astype(np.int32),
        "loss_weights": chosen.astype(np.float32),
        "segment_ids": REAL.astype(np.int32),
    }
    options = {"attention_mask": torch.tensor(REAL.astype(np.int64))}
    if kind == "Bert":
        types = np.random.default_rng(3).integers(0, 2, tokens.shape)
        options["token_type_ids"] = torch.tensor(types)
        batch["token_types"] = types.astype(np.int32)
    out = model(
        torch.tensor(tokens),
        labels=torch.tensor(np.where(chosen, labels, -100)),
        output_hidden_states=True,
        **options,
    )
    out.loss.backward()

    logits, loss, gradients = run(ours, variables["params"], batch)
    hidden, _ = models.apply(ours, variables, batch, output="hidden")
    assert error(hidden[REAL], out.hidden_states[-1].detach()[REAL]) < 1e-4
    assert error(logits[REAL], out.logits.detach()[REAL]) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    again = exported_again(tmp_path, model)
    with torch.no_grad():
        found = again(torch.tensor(tokens), **options).logits
    assert error(found[REAL], out.logits.detach()[REAL]) < 1e-5
    gradients_as_folder(model, tmp_path / "gradients")
    _, expected = on_one_device(tmp_path / "gradients")
    check_gradients(gradients, expected["params"])


OUTPUTS = [
    *((kind, "ForSequenceClassification") for kind in FAMILIES),
    *((kind, "ForTokenClassification") for kind in ("Bert", "DebertaV2")),
    *((kind, "Model") for kind in FAMILIES),
]


@pytest.mark.parametrize("kind, head", OUTPUTS)
def test_other_heads_there_and_back(kind, head, tmp_path):
    """Classifiers' outputs, and the last hidden states of models without a head."""
    labels = {} if head == "Model" else {"num_labels": 3}
    model = random_model(kind, FAMILIES[kind] | labels, head)
    model.save_pretrained(tmp_path / "theirs")
    ours, variables = on_one_device(tmp_path / "theirs")
    tokens = text()
    options = {"attention_mask": torch.tensor(REAL.astype(np.int64))}
    out = model(torch.tensor(tokens), **options)
    batch = {"inputs": tokens.astype(np.int32), "segment_ids": REAL.astype(np.int32)}
    output = "hidden" if head == "Model" else "labels"
    found, _ = models.apply(ours, variables, batch, output=output)
    expected = (out.last_hidden_state if head == "Model" else out.logits).detach()
    if head != "ForSequenceClassification":
        found, expected = found[REAL], expected[REAL]
    assert error(found, expected) < 1e-4
    if (kind, head) == ("Bert", "Model"):
        pooled, _ = models.apply(ours, variables, batch, output="pooled")
        assert error(pooled, out.pooler_output.detach()) < 1e-4
    exported_again(tmp_path, model)


def test_t5_there_and_back(tmp_path):
    """Logits, loss and gradients with padding on both sides; then our export."""
    model = random_model("T5", T5, "ForConditionalGeneration")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    ours, variables = on_one_device(tmp_path / "theirs")
    source, labels = text(), text(1)[:, :15]
    options = {
        "attention_mask": torch.tensor(REAL.astype(np.int64)),
        "labels": torch.tensor(np.where(labels > 0, labels, -100)),
    }
    out = model(torch.tensor(source), **options)
    out.loss.backward()
    batch = {
        "encoder_inputs": source.astype(np.int32),
        "encoder_segment_ids": REAL.astype(np.int32),
        "inputs": np.pad(labels, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "targets": labels.astype(np.int32),
        "loss_weights": (labels > 0).astype(np.float32),
    }
    logits, loss, gradients = run(ours, variables["params"], batch)
    assert error(logits, out.logits.detach()) < 1e-4
    assert error(loss, out.loss.detach()) < 1e-5
    again = exported_again(tmp_path, model)
    with torch.no_grad():
        found = again(torch.tensor(source), **options).logits
    assert error(found, out.logits.detach()) < 1e-5
    gradients_as_folder(model, tmp_path / "gradients")
    _, expected = on_one_device(tmp_path / "gradients")
    check_gradients(gradients, expected["params"])


def test_t5_loads_scanned(tmp_path):
    """Both stacks in the form of accelerators: the same weights."""
    random_model("T5", T5, "ForConditionalGeneration").save_pretrained(tmp_path)
    config, variables = on_one_device(tmp_path)
    scanned = dataclasses.replace(config, scan_layers="on")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(scanned))
    found = load(open_folder(tmp_path), scanned, places, here)["params"]
    assert "layers" in found and "layers" in found["encoder"]
    expected = leaves_by_path(variables["params"])
    for path, leaf in leaves_by_path(models.restack(found, scanned, scan=False)).items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_t5_writes_what_transformers_writes(tmp_path):
    """Greedy generation from both, through our cache and theirs."""
    model = random_model("T5", T5, "ForConditionalGeneration")
    model.save_pretrained(tmp_path)
    ours, variables = on_one_device(tmp_path)
    source = text()
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(source),
            attention_mask=torch.tensor(REAL.astype(np.int64)),
            max_new_tokens=12,
            do_sample=False,
            num_beams=1,
        )
    sample = SampleConfig(temperature=0.0, max_new_tokens=12)
    generate = SourceGenerator(ours, sample, eos_id=model.config.eos_token_id)
    found = generate(variables, source, REAL.sum(1), jax.random.key(0))
    for row, expected in zip(found, theirs[:, 1:].tolist()):
        assert row == expected[: len(row)]
        assert len(row) == 12 or expected[len(row)] == model.config.eos_token_id


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("DebertaV2", {"share_att_key": False}, "share_att_key"),
        ("DebertaV2", {"pos_att_type": "c2p"}, "pos_att_type"),
        ("DebertaV2", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("T5", {"tie_word_embeddings": True}, "version 1.0"),
        ("T5", {"feed_forward_proj": "relu"}, "feed_forward_proj"),
    ],
)
def test_what_is_not_supported_is_named(kind, changes, message, tmp_path):
    settings = (FAMILIES | {"T5": T5})[kind] | changes
    head = "ForConditionalGeneration" if kind == "T5" else "ForMaskedLM"
    random_model(kind, settings, head).save_pretrained(tmp_path)
    folder = open_folder(tmp_path)
    with pytest.raises(InteropError, match=message):
        _ = folder.model


def test_modernbert_of_version_4(tmp_path):
    """Bases and layers under their older names."""
    random_model("ModernBert", MODERNBERT, "ForMaskedLM").save_pretrained(tmp_path)
    expected = open_folder(tmp_path).model
    values = json.loads((tmp_path / "config.json").read_text())
    parameters = values.pop("rope_parameters")
    values["global_rope_theta"] = parameters["full_attention"]["rope_theta"]
    values["local_rope_theta"] = parameters["sliding_attention"]["rope_theta"]
    values.pop("layer_types")
    values["global_attn_every_n_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert not differences(open_folder(tmp_path).model, expected)
