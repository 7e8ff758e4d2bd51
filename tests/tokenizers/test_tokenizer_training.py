"""Training is reproducible and cached; what cannot be trained is one clear line."""

import dataclasses
import logging
import re

import pytest

from jgpt import tokenizers
from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers import store
from jgpt.tokenizers.wire import without_field
from tests.tokenizers.tokenizer_corpus import CONFIGS, sentences

TRAINED_KINDS = ("unigram", "bpe", "char", "word")


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", TRAINED_KINDS)
def test_two_trainings_write_the_same_bytes(name, corpus, trained, tmp_path):
    trained[name].save(tmp_path / "one")
    tokenizers.train(CONFIGS[name], iter(list(corpus)), None).save(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    return lambda: monkeypatch.setattr(store, "_train", refuse)


@pytest.mark.parametrize("name", TRAINED_KINDS)
def test_the_cache_is_found_again(name, corpus, trained, tmp_path, no_training):
    tokenizers.train(CONFIGS[name], corpus, str(tmp_path))
    no_training()
    again = tokenizers.train(CONFIGS[name], iter(corpus), str(tmp_path))
    assert again.fingerprint == trained[name].fingerprint
    assert len(list((tmp_path / "tokenizers").iterdir())) == 1


def test_the_cache_is_not_found_for_other_settings_or_text(corpus, tmp_path):
    base = CONFIGS["unigram"]
    changes = [
        {},
        {"kind": "bpe"},
        {"vocab_size": 390},
        {"character_coverage": 0.99},
        {"split_digits": False},
        {"split_scripts": False},
        {"normalization": "identity"},
    ]
    for change in changes:
        tokenizers.train(dataclasses.replace(base, **change), corpus, str(tmp_path))
    tokenizers.train(base, [*corpus, "もう一文。"], str(tmp_path))
    assert len(list((tmp_path / "tokenizers").iterdir())) == len(changes) + 1


def test_pieces_hold_punctuation_beside_letters_only_where_allowed(corpus, tmp_path):
    def mixed(split_scripts):
        config = dataclasses.replace(CONFIGS["unigram"], split_scripts=split_scripts)
        tokenizer = tokenizers.train(config, corpus, str(tmp_path))
        pieces = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
        return [piece for piece in pieces if re.search("[ぁ-ん][、。]|[、。][ぁ-ん]", piece)]

    assert not mixed(True)
    assert mixed(False)


def test_settings_that_do_not_matter_share_a_cache(corpus, tmp_path, no_training):
    first = tokenizers.train(CONFIGS["unigram"], corpus, str(tmp_path))
    no_training()
    other = dataclasses.replace(CONFIGS["unigram"], word_segmenter="mecab", train_megabytes=5.0)
    assert tokenizers.train(other, corpus, str(tmp_path)).fingerprint == first.fingerprint


def test_a_damaged_cache_is_trained_again_and_says_so(corpus, trained, tmp_path, caplog):
    tokenizers.train(CONFIGS["char"], corpus, str(tmp_path))
    model = next(tmp_path.rglob("tokenizer.model"))
    content = model.read_bytes()
    model.write_bytes(content[:-40])
    with caplog.at_level(logging.WARNING):
        again = tokenizers.train(CONFIGS["char"], corpus, str(tmp_path))
    assert again.fingerprint == trained["char"].fingerprint
    assert model.read_bytes() == content
    assert "trained again" in caplog.text


def test_an_interrupted_save_leaves_no_half_cache(corpus, trained, tmp_path, monkeypatch):
    def full_disk(self, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(trained["char"]), "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            tokenizers.train(CONFIGS["char"], corpus, str(tmp_path))
    assert not list((tmp_path / "tokenizers").iterdir())
    again = tokenizers.train(CONFIGS["char"], corpus, str(tmp_path))
    assert again.fingerprint == trained["char"].fingerprint


def test_only_the_start_of_the_text_is_read():
    def endless():
        while True:
            yield from sentences(100)

    lines = store.training_lines(endless(), 0.01)
    size = sum(len(line.encode()) + 1 for line in lines)
    assert 9_900 < size <= 10_001
    assert all(line in "\n".join(sentences(100)) for line in lines)


def test_training_text_is_cut_between_characters_and_into_lines():
    assert store.training_lines(["猫\n\n犬", " \n鳥"], 1) == ["猫", "犬", "鳥"]
    assert store.training_lines(["猫犬"], 4e-6) == ["猫"]


def test_build_loads_a_path_and_reads_no_text(trained, tmp_path):
    trained["unigram"].save(tmp_path)

    def no_text():
        raise AssertionError("read")

    loaded = tokenizers.build(TokenizerConfig(path=str(tmp_path)), no_text, None)
    assert loaded.fingerprint == trained["unigram"].fingerprint


def test_build_trains_without_a_path(corpus, trained):
    built = tokenizers.build(CONFIGS["unigram"], lambda: corpus, None)
    assert built.fingerprint == trained["unigram"].fingerprint


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_vocabulary_too_large_names_the_largest_that_works(kind, corpus):
    config = TokenizerConfig(kind=kind, vocab_size=50_000)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size is 50000, more") as caught:
        tokenizers.train(config, corpus, None)
    largest = int(str(caught.value).split("vocab_size to ")[1].split()[0])
    fitting = dataclasses.replace(config, vocab_size=largest)
    assert tokenizers.train(fitting, corpus, None).vocab_size == largest
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_a_vocabulary_too_small_names_the_smallest_that_works(kind, corpus):
    config = TokenizerConfig(kind=kind, vocab_size=100)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size is 100, less") as caught:
        tokenizers.train(config, corpus, None)
    smallest = int(str(caught.value).split("vocab_size to ")[1].split()[0])
    fitting = dataclasses.replace(config, vocab_size=smallest)
    assert tokenizers.train(fitting, corpus, None).vocab_size == smallest


@pytest.mark.parametrize("kind", TRAINED_KINDS)
@pytest.mark.parametrize("texts", [[], [""], ["\n \n"]])
def test_an_empty_corpus_is_refused(kind, texts):
    with pytest.raises(ConfigError, match="training text is empty"):
        tokenizers.train(TokenizerConfig(kind=kind), texts, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 10}, "tokenizer.vocab_size is 10"),
        ({"character_coverage": 99.95}, "tokenizer.character_coverage is 99.95"),
        ({"train_megabytes": 0.0}, "tokenizer.train_megabytes is 0.0"),
        ({"kind": "huggingface"}, "set tokenizer.path"),
    ],
)
def test_impossible_settings_are_named(change, message, corpus):
    with pytest.raises(ConfigError, match=message):
        tokenizers.train(dataclasses.replace(TokenizerConfig(), **change), corpus, None)


def test_byte_needs_no_text():
    assert tokenizers.train(TokenizerConfig(kind="byte"), [], None).vocab_size == 266


def test_a_field_is_taken_out_of_a_nested_message():
    # 1: varint 300; 3: {1: "a", 6: "path", 2: 200 bytes}; 5: fixed32; 4: fixed64
    inner = b"\x0a\x01a" + b"\x12\xc8\x01" + b"x" * 200
    with_path = inner[:3] + b"\x32\x04path" + inner[3:]
    outer = b"\x08\xac\x02", b"\x2d\x01\x02\x03\x04", b"\x21" + b"\x32" * 8

    def message(nested):
        return outer[0] + b"\x1a" + bytes([len(nested) & 0x7F | 0x80, 1]) + nested + b"".join(outer)

    assert without_field(message(with_path), (3, 6)) == message(inner)
    assert without_field(message(inner), (3, 6)) == message(inner)
