"""Hidden tokens and hidden spans: how many, which, the same for the same key, nothing lost."""

import functools

import jax
import numpy as np
import pytest

from jgpt.config import ConfigError, from_config_dict
from jgpt.data.packing import Segment
from jgpt.data.transforms import rows_to_arrays
from jgpt.objectives import make_objective
from jgpt.objectives.mlm import mask_tokens
from jgpt.objectives.span_corruption import corrupt_spans, span_mask, target_length

PIECES, MASK, SENTINEL, BOS, EOS = 1000, 1000, 1099, 2, 3


def packed(rows=4, length=256, seed=0):
    """Rows of documents of many lengths, and what each document's text is."""
    generator = np.random.default_rng(seed)
    filled, texts = [], []
    for _ in range(rows):
        row, left = [], length - int(generator.integers(0, 30))
        while left > 4:
            size = int(min(left, generator.integers(2, 90)))
            body = generator.integers(10, PIECES, size - 1)
            row.append(Segment(np.array([BOS, *body, EOS], np.int32), 0))
            texts.append([*body.tolist(), EOS])
            left -= size
        filled.append(row)
    return rows_to_arrays(filled, length, 0), texts


@functools.cache
def mask(density=0.15):
    return jax.jit(functools.partial(mask_tokens, density=density, mask_id=MASK, vocab_size=PIECES))


@functools.cache
def corrupt(density=0.15, mean_span=3.0):
    options = {"first_sentinel": SENTINEL, "start_id": 0, "end_id": EOS}
    return jax.jit(
        functools.partial(corrupt_spans, density=density, mean_span=mean_span, **options)
    )


def test_masking_hides_the_stated_shares():
    """15 % chosen; of these 80 % masked, 10 % replaced, 10 % left (within 4 standard errors)."""
    batch, _ = packed(rows=128)
    masked = {k: np.asarray(v) for k, v in mask()(batch, jax.random.key(0)).items()}
    text, chosen = batch["inputs"], masked["loss_weights"] > 0
    hideable = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
    shares = {
        "chosen": (chosen[hideable], 0.15),
        "masked": (masked["inputs"][chosen] == MASK, 0.8),
        "left": (masked["inputs"][chosen] == text[chosen], 0.1 * (1 + 1 / PIECES)),
    }
    for name, (found, share) in shares.items():
        tolerance = 4 * np.sqrt(share * (1 - share) / found.size)
        assert found.mean() == pytest.approx(share, abs=tolerance), name
    replaced = chosen & (masked["inputs"] != MASK) & (masked["inputs"] != text)
    assert masked["inputs"][replaced].max() < PIECES
    assert len(np.unique(masked["inputs"][replaced])) > 0.3 * replaced.sum()


def test_masking_leaves_all_else_as_it_is():
    batch, _ = packed()
    masked = {k: np.asarray(v) for k, v in mask()(batch, jax.random.key(1)).items()}
    kept = masked["loss_weights"] == 0
    np.testing.assert_array_equal(masked["inputs"][kept], batch["inputs"][kept])
    np.testing.assert_array_equal(masked["targets"], batch["inputs"])
    assert not masked["loss_weights"][batch["segment_ids"] == 0].any()
    assert not masked["loss_weights"][batch["positions"] == 0].any()


@pytest.mark.parametrize("function", [mask, corrupt])
def test_the_key_alone_decides(function):
    batch, _ = packed()
    one, same, other = (function()(batch, jax.random.key(k))["inputs"] for k in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (np.asarray(one) != np.asarray(other)).any()


@pytest.mark.parametrize("length", [2, 3, 7, 40, 100, 128])
@pytest.mark.parametrize("density, mean_span", [(0.15, 3.0), (0.5, 3.0), (0.3, 1.0)])
def test_spans_have_the_number_and_mean_length_asked_for(length, density, mean_span):
    hide = functools.partial(span_mask, size=128, density=density, mean_span=mean_span)
    keys = jax.random.split(jax.random.key(0), 50)
    hidden = np.asarray(jax.vmap(lambda key: hide(key, length))(keys))
    assert not hidden[:, length:].any()
    assert not hidden[:, 0].any()
    number = min(max(round(length * density), 1), length - 1)
    np.testing.assert_array_equal(hidden.sum(1), number)
    spans = (np.diff(hidden.astype(int), axis=1, prepend=0) == 1).sum(1)
    np.testing.assert_array_equal(spans, min(max(round(number / mean_span), 1), length - number))
    if length >= 40:
        assert len(np.unique(hidden, axis=0)) > 1


def put_together(source, target):
    """The text of one document from its source and its target."""
    spans, number = {}, None
    for token in target:
        if token > PIECES:
            number = SENTINEL - token
            spans[number] = []
        elif number is not None and token != EOS:
            spans[number].append(token)
    assert target[-1] == EOS
    assert list(spans) == list(range(len(spans))), "sentinels count up in order"
    text = []
    for token in source:
        text += spans.pop(SENTINEL - token) if token > PIECES else [token]
    assert not spans
    return text


@pytest.mark.parametrize("density, mean_span", [(0.15, 3.0), (0.4, 5.0), (0.2, 1.0)])
def test_source_and_target_together_are_the_text(density, mean_span):
    batch, texts = packed(seed=int(10 * density))
    found = corrupt(density, mean_span)(batch, jax.random.key(0))
    found = {k: np.asarray(v) for k, v in found.items()}
    assert not found["cut"].any()
    rebuilt = []
    for row in range(len(batch["inputs"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            source = found["encoder_inputs"][row][found["encoder_segment_ids"][row] == segment]
            target = found["targets"][row][found["segment_ids"][row] == segment]
            rebuilt.append(put_together(source.tolist(), target.tolist()))
    assert rebuilt == texts
    hidden = (batch["segment_ids"] > 0).sum() - (
        (found["encoder_segment_ids"] > 0) & (found["encoder_inputs"] <= PIECES)
    ).sum()
    real = (batch["segment_ids"] > 0).sum()
    assert density - 0.04 < hidden / real <= density + 0.01


def test_the_decoder_reads_its_targets_one_later():
    batch, _ = packed()
    found = {k: np.asarray(v) for k, v in corrupt()(batch, jax.random.key(2)).items()}
    first = found["positions"] == 0
    real = found["segment_ids"] > 0
    assert (found["inputs"][first & real] == 0).all()
    before = np.roll(found["targets"], 1, axis=1)
    np.testing.assert_array_equal(found["inputs"][~first & real], before[~first & real])
    np.testing.assert_array_equal(found["loss_weights"], real)


def test_what_finds_no_room_is_counted():
    """Documents of two tokens need more ends than there is room for."""
    row = [Segment(np.array([BOS, 20, EOS], np.int32), 0)] * 32
    batch = rows_to_arrays([row], 64, 0)
    found = corrupt()(batch, jax.random.key(0))
    width = target_length(64, 0.15, 3.0)
    written = (np.asarray(found["encoder_inputs"]) > PIECES).sum() * 2 + 32
    assert found["targets"].shape == (1, width)
    assert int(found["cut"][0]) == written - width > 0
    assert (np.asarray(found["segment_ids"]) > 0).all()


@pytest.mark.parametrize(
    "section, message",
    [
        ({"objective": {"name": "mlm"}}, "model.attention"),
        ({"objective": {"name": "span_corruption"}}, "model.encoder_layers"),
        ({"objective": {"noise_density": 1.5}}, "objective.noise_density"),
        ({"objective": {"mean_span": 0.5}}, "objective.mean_span"),
        ({"model": {"attention": "bidirectional"}}, "pretrain.*mlm"),
        ({"model": {"encoder_layers": 2}}, "pretrain.*span_corruption"),
        (
            {"model": {"attention": "bidirectional"}, "objective": {"name": "mlm"}},
            "sample.final_samples",
        ),
    ],
)
def test_models_and_objectives_that_do_not_fit_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(section)


@pytest.mark.parametrize(
    ("sentinels", "context", "message"),
    [(5, 1, r"objective\.num_sentinels"), (100, 2, r"mesh\.context \(2\).*set it to 1")],
)
def test_rows_that_cannot_be_made_are_refused(sentinels, context, message):
    config = from_config_dict(
        {
            "model": {"encoder_layers": 1},
            "objective": {"name": "span_corruption", "num_sentinels": sentinels},
            "mesh": {"context": context},
            "train": {"sample_every": 0},
            "sample": {"final_samples": 0},
        }
    )
    with pytest.raises(ConfigError, match=message):
        make_objective(config)
