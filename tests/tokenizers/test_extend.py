"""Extended tokenizers: no id changes, every added piece is reached, text comes back."""

import json

import pytest
import sentencepiece

from jgpt import tokenizers
from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers import extend, sentencepiece_model
from tests.tokenizers.test_tokenizer_folders import write_config
from tests.tokenizers.test_tokenizer_huggingface import gpt2_like, llama_like, unigram
from tests.tokenizers.tokenizer_corpus import sentences

UNIGRAM = sentencepiece_model.UNIGRAM
SEEN = sentences(200, seed=9)
OTHER = ["The cat sat, 42.", "  два  ", "héllo\n\n", "한국어"]


def train(folder, name, texts, **settings):
    with open(folder / name, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            byte_fallback=True,
            minloglevel=2,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            **settings,
        )


def sentencepiece_bpe(folder):
    """Hardly any Japanese, and an added token beyond its pieces with a hole before it."""
    texts = ["the cat sat on the mat at night", "東京は雪"] * 5
    train(folder, "tokenizer.model", texts, model_type="bpe", vocab_size=300)
    write_config(
        folder,
        eos_token="</s>",
        added_tokens_decoder={"302": {"content": "<|user|>", "special": True}},
    )


def sentencepiece_unigram(folder):
    settings = {"model_type": "unigram", "vocab_size": 370, "character_coverage": 1.0}
    train(folder, "spiece.model", sentences(50), **settings)


def scored_unigram(folder):
    """The other tests' family with characters as improbable as they are."""
    unigram(folder)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"] = [[name, -12.0] for name, _ in values["model"]["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")


def small_gpt2(folder):
    """Byte-level, with nothing but bytes, and an added token behind."""
    library = pytest.importorskip("tokenizers", reason="tokenizer.json needs the package")
    theirs = library.Tokenizer(library.models.BPE())
    theirs.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(["the cat sat on the mat " * 9], trainer)
    theirs.add_special_tokens(["<|im_start|>"])
    theirs.save(str(folder / "tokenizer.json"))


BASES = {
    "sentencepiece_bpe": sentencepiece_bpe,
    "sentencepiece_unigram": sentencepiece_unigram,
    "bytes": small_gpt2,
    "gpt2": gpt2_like,
    "llama": llama_like,
    "unigram": scored_unigram,
}


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def japanese(request):
    config = TokenizerConfig(kind=request.param, vocab_size=400)
    texts = [text.removesuffix(" in the end") for text in sentences(400, seed=3)]
    return tokenizers.train(config, texts, None)


def scores(new):
    pieces = sentencepiece_model.pieces(new.model)
    return {piece.text.replace("▁", " "): piece.score for piece in pieces}


@pytest.mark.parametrize("name", BASES)
def test_an_extended_tokenizer_keeps_its_ids_and_reaches_the_new_ones(name, japanese, tmp_path):
    if name.endswith("unigram") and sentencepiece_model.kind(japanese.model) != UNIGRAM:
        pytest.skip("a unigram model takes pieces with probabilities only")
    BASES[name](tmp_path)
    old = tokenizers.load(tmp_path)
    wanted = extend.wanted_pieces(old, japanese)
    assert wanted and all(len(extend.spelling(old, text)) > 1 for text in wanted)
    found = extend.extend(tmp_path, wanted, scores(japanese))
    new = found.tokenizer
    assert found.first == old.vocab_size
    assert new.vocab_size == old.vocab_size + len(found.added)
    assert new.special_tokens == old.special_tokens
    for token in range(old.vocab_size):
        assert new.token_bytes(token) == old.token_bytes(token)
    for token, text in enumerate(found.added, found.first):
        if "\ufffd" not in text:  # part of a character
            assert new.token_bytes(token) == text.encode()
    reached = [text for text in wanted if text not in found.left_out]
    assert len(reached) > 0.8 * len(wanted), found.left_out
    for text in reached:
        assert [new.token_bytes(i) for i in extend.spelling(new, text)] == [text.encode()]
    for text in [*SEEN, *OTHER]:
        assert new.decode(new.encode(text)) == old.decode(old.encode(text)) == text
    for text in OTHER:
        assert new.encode(text) == old.encode(text)
    before, after = (sum(map(len, t.encode_batch(SEEN))) for t in (old, new))
    assert after < before
    (tmp_path / found.file).write_bytes(found.content)
    again = tokenizers.load(tmp_path)
    assert again.encode_batch(SEEN) == new.encode_batch(SEEN)
    assert again.special_tokens == new.special_tokens


@pytest.mark.parametrize(
    "name, known, wanted", [("sentencepiece_bpe", " cat", "t東"), ("gpt2", "the", "e東")]
)
def test_old_merges_come_before_new_ones(name, known, wanted, tmp_path):
    """A new piece that begins with the end of a known one does not break that up."""
    BASES[name](tmp_path)
    old = tokenizers.load(tmp_path)
    assert len(extend.spelling(old, known)) == 1
    new = extend.extend(tmp_path, [wanted]).tokenizer
    assert len(extend.spelling(new, wanted)) == 1
    assert extend.spelling(new, f"{known}東")[0] == extend.spelling(old, known)[0]


def test_gpt2s_older_files_become_a_tokenizer_json(tmp_path):
    gpt2_like(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(lines, encoding="utf-8")
    found = extend.extend(tmp_path, ["東京"])
    assert found.file == "tokenizer.json" and found.left_out == []


def test_the_limit_takes_the_first_pieces(tmp_path, japanese):
    small_gpt2(tmp_path)
    old = tokenizers.load(tmp_path)
    assert extend.wanted_pieces(old, japanese, 7) == extend.wanted_pieces(old, japanese)[:7]


def test_pieces_that_the_rules_part_are_left_out(tmp_path):
    small_gpt2(tmp_path)
    found = extend.extend(tmp_path, ["猫は", "猫 は", "猫、犬"])
    assert found.left_out == ["猫 は", "猫、犬"]
    assert "猫は" in found.added


def test_what_cannot_be_extended_is_one_clear_line(tmp_path):
    unigram(tmp_path)
    with pytest.raises(ConfigError, match="is a unigram model"):
        extend.extend(tmp_path, ["猫"])
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    words = {"type": "WordLevel", "vocab": {"<unk>": 0, "</s>": 2}, "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"model": words}))
    with pytest.raises(ConfigError, match="words or word pieces cannot be extended"):
        extend.extend(tmp_path, ["猫"])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(ConfigError, match=r"vocab\.txt cannot be extended"):
        extend.extend(tmp_path, ["猫"])
