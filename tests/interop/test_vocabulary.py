"""Vocabulary surgery on folders: rows of means, everything else bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
import sentencepiece

from jgpt import convert, tokenizers
from jgpt.config import ConfigError, TokenizerConfig
from jgpt.interop.description import InteropError
from jgpt.interop.folder import open_folder
from jgpt.interop.vocabulary import NewRows, extend_vocabulary, grown, tokens_per_character
from jgpt.interop.weights import sources
from jgpt.tokenizers import extend
from tests.interop import tiny_folders
from tests.interop.tiny_folders import edit_json, write

TEXT = ["東京の雪は白い。", "図書館で本を読んだ猫と犬。", "東京の図書館の本は古い。"] * 4


@pytest.fixture(scope="module")
def japanese():
    return tokenizers.train(TokenizerConfig(kind="bpe", vocab_size=310), TEXT, None)


def write_model(path, name, monkeypatch, rows=300, **options):
    """A tiny model whose SentencePiece tokenizer has 272 ids and no Japanese beyond bytes."""
    size = {"vocab_size": rows}
    monkeypatch.setitem(tiny_folders.CONFIGS, name, tiny_folders.CONFIGS[name] | size)
    values = write(path, name, **options)
    with open(path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 5),
            model_writer=file,
            model_type="bpe",
            vocab_size=272,
            byte_fallback=True,
            minloglevel=2,
        )
    return values


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_new_rows_are_means_and_the_rest_is_as_it_was(name, dtype, japanese, tmp_path, monkeypatch):
    """Tied (mistral, gpt2) and untied, in shards."""
    values = write_model(tmp_path / "old", name, monkeypatch, dtype=dtype, largest_shard=40_000)
    growth = extend_vocabulary(tmp_path / "old", tmp_path / "new", japanese, multiple=64)
    folder = open_folder(tmp_path / "new")
    assert growth.rows == (300, folder.model.vocab_size)
    assert folder.model.vocab_size % 64 == 0
    assert folder.model.vocab_size - growth.after.vocab_size < 64
    loaded = tokenizers.load(tmp_path / "new")
    assert loaded.encode_batch(TEXT) == growth.after.encode_batch(TEXT)
    found = sources(folder, folder.model)
    assert found.keys() == values.keys()
    for path, value in values.items():
        read = found[path].read((slice(None),) * value.ndim)
        assert read.dtype == value.dtype
        if path not in ("embedding/table", "head/kernel"):
            np.testing.assert_array_equal(read, value, err_msg=path)
            continue
        if path == "head/kernel":
            read, value = read.T, value.T
        first = growth.before.vocab_size
        np.testing.assert_array_equal(read[:first], value[:first])
        wide = value.astype(np.float64)
        for i, text in enumerate(growth.added):
            ids = extend.spelling(growth.before, text)
            expected = wide[ids].mean(axis=0)
            np.testing.assert_allclose(
                read[first + i].astype(np.float64), expected, rtol=0.005, atol=1e-6
            )
        padding = read[first + len(growth.added) :].astype(np.float64)
        np.testing.assert_allclose(
            padding, wide[:first].mean(0) + 0 * padding, rtol=0.01, atol=1e-6
        )
    rate = tokens_per_character(growth, TEXT)
    assert rate["after"] < 0.5 * rate["before"]


def test_padding_alone_changes_nothing_else(tmp_path, monkeypatch):
    values = write_model(tmp_path / "old", "llama", monkeypatch)
    (tmp_path / "old" / "chat_template.jinja").write_text("{{ messages }}")
    growth = extend_vocabulary(tmp_path / "old", tmp_path / "new", None, multiple=128)
    assert growth.rows == (300, 384) and growth.added == []
    folder = open_folder(tmp_path / "new")
    table = sources(folder, folder.model)["embedding/table"].read((slice(None), slice(None)))
    np.testing.assert_array_equal(table[:300], values["embedding/table"])
    for name in ("chat_template.jinja", "tokenizer.model"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()


def test_how_rows_begin():
    table = np.random.default_rng(0).normal(3, 2, (50, 400)).astype(np.float32)
    spellings = [[1, 2], [1, 2]]
    plain = grown(table, 48, spellings, 60, NewRows())
    np.testing.assert_allclose(plain[48], table[[1, 2]].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(plain[48], plain[49])
    noisy = grown(table, 48, spellings, 60, NewRows(noise=0.1))
    assert abs((noisy[48] - plain[48]).std() / (0.1 * table[:48].std()) - 1) < 0.1
    assert not np.array_equal(noisy[48], noisy[49])
    mean = grown(table, 48, spellings, 60, NewRows("mean"))
    np.testing.assert_allclose(mean[48], table[:48].mean(0), rtol=1e-5)
    drawn = grown(table, 48, spellings, 60, NewRows("random", seed=1))
    assert abs(drawn[48:].std() / table[:48].std() - 1) < 0.1
    assert not np.array_equal(drawn[48:], grown(table, 48, spellings, 60, NewRows("random"))[48:])
    with pytest.raises(InteropError, match="never made smaller"):
        grown(table, 48, spellings, 49, NewRows())
    with pytest.raises(InteropError, match="is not one of pieces, mean, random"):
        NewRows("zeros")
    with pytest.raises(InteropError, match="must not be negative"):
        NewRows(noise=-1)


def test_what_does_not_fit_is_one_clear_line_and_leaves_nothing(japanese, tmp_path, monkeypatch):
    write_model(tmp_path / "old", "llama", monkeypatch, rows=260)
    with pytest.raises(InteropError, match="the tokenizer has 272 ids, the model 260 rows"):
        extend_vocabulary(tmp_path / "old", tmp_path / "new", japanese)
    write_model(tmp_path / "fit", "llama", monkeypatch)
    with pytest.raises(InteropError, match="multiple is 0"):
        extend_vocabulary(tmp_path / "fit", tmp_path / "new", japanese, multiple=0)
    same = tokenizers.load(tmp_path / "fit")
    with pytest.raises(ConfigError, match="has no piece"):
        extend_vocabulary(tmp_path / "fit", tmp_path / "new", same)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "something").touch()
    with pytest.raises(InteropError, match="exists"):
        extend_vocabulary(tmp_path / "fit", tmp_path / "new", japanese)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_command_reports_tokens_per_character(japanese, tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "old", "llama", monkeypatch)
    edit_json(tmp_path / "old" / "config.json", custom="kept")
    japanese.save(tmp_path / "japanese")
    (tmp_path / "text").write_text("\n".join(TEXT), encoding="utf-8")
    arguments = [
        "extend_vocabulary",
        f"--folder={tmp_path / 'old'}",
        f"--target={tmp_path / 'new'}",
        f"--tokenizer={tmp_path / 'japanese'}",
        f"--text={tmp_path / 'text'}",
        "--noise=0.01",
        "--limit=5",
    ]
    assert convert.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "300 rows have become" in shown and "tokens per character" in shown
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["custom"] == "kept"
    assert config["vocab_size"] == open_folder(tmp_path / "new").model.vocab_size
    assert convert.main(arguments) == 2
    assert "exists" in capsys.readouterr().err
    arguments[-3] = f"--text={tmp_path / 'none'}"
    assert convert.main(arguments) == 2
