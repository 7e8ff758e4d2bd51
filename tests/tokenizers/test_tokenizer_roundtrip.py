"""Text comes back from ids, and only ordinary text can be written with text."""

import json
import pickle
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from jgpt import tokenizers
from jgpt.config import ConfigError, TokenizerConfig
from jgpt.tokenizers.base import SPECIAL_TOKENS, safe_truncate
from jgpt.tokenizers.normalization import KEPT, nfkc
from tests.tokenizers.tokenizer_corpus import LOSSLESS, LOSSY

PIECES = [
    *"東京は雪。、「」猫あアｱｶﾞ゛゜ーＡａ１①㌔…‥～！？ 　\n\t\r▁▅\0\ufeff\ufffd\u00a0\u3099\u200d",
    "𠮷野家", "葛\U000e0100城", "👨\u200d👩\u200d👧\u200d👦", "🇯🇵", "か\u3099", "が", "e\u0301",
    "한국", "\n\n", "  ", "<0x41>", "<0xE3>",
    *SPECIAL_TOKENS, "<|endoftext|>", "⁇", " ⁇ ", "<|us", "er|>",
]  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(max_size=20),
)
examples = hypothesis.settings(max_examples=150, deadline=None)


@pytest.mark.parametrize("name", LOSSLESS)
@hypothesis.given(text=TEXTS)
@examples
def test_decoding_gives_the_normalized_text(trained, name, text):
    tokenizer = trained[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.normalize(text)


@pytest.mark.parametrize("name", ["identity", "byte"])
@hypothesis.given(text=TEXTS)
@examples
def test_without_normalization_the_text_itself_comes_back(trained, name, text):
    assert trained[name].decode(trained[name].encode(text)) == text


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
@hypothesis.given(text=TEXTS)
@examples
def test_text_never_makes_a_special_token(trained, name, text):
    tokenizer = trained[name]
    special = set(tokenizer.special_tokens.values())
    allowed = {tokenizer.unk_id} if tokenizer.emits_unk else set()
    assert not set(tokenizer.encode(text)) & (special - allowed)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
@hypothesis.given(texts=st.lists(TEXTS, max_size=4))
@examples
def test_a_batch_is_its_texts_one_by_one(trained, name, texts):
    tokenizer = trained[name]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", LOSSY)
@hypothesis.given(text=TEXTS)
@examples
def test_unknown_parts_are_left_out_and_nothing_else_changes(trained, name, text):
    tokenizer = trained[name]
    shown = tokenizer.decode(tokenizer.encode(text))
    rest = iter(tokenizer.normalize(text))
    assert all(character in rest for character in shown)  # a subsequence
    if tokenizer.unk_id not in tokenizer.encode(text):
        assert shown == tokenizer.normalize(text)


def test_unknown_text_becomes_unk_only_where_the_tokenizer_says_so(trained):
    for name in LOSSY:
        assert trained[name].emits_unk
        assert trained[name].unk_id in trained[name].encode("鱻")
        assert trained[name].decode(trained[name].encode("鱻")) == ""
        assert trained[name].decode([trained[name].unk_id], skip_special=False) == "<unk>"
    assert not any(trained[name].emits_unk for name in LOSSLESS)


def test_whitespace_survives_normalization(trained):
    text = "　一行目  です。\n\n　二行目～…！\t \n"
    for name in LOSSLESS:
        assert trained[name].decode(trained[name].encode(text)) == text


def test_a_newline_is_one_token_of_its_own(trained):
    for name in ("unigram", "bpe", "char"):
        ids = trained[name].encode("猫。\n\n犬")
        assert [trained[name].token_bytes(token) for token in ids].count(b"\n") == 2


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_spaces_survive_a_corpus_that_has_none(kind, corpus):
    config = TokenizerConfig(kind=kind, vocab_size=380)
    tokenizer = tokenizers.train(config, [text.replace(" ", "") for text in corpus], None)
    assert tokenizer.decode(tokenizer.encode(" 猫 ▁ 犬  ")) == " 猫 ▁ 犬  "
    assert b" " in [tokenizer.token_bytes(token) for token in tokenizer.encode(" ")]


def test_digits_are_split(trained):
    assert len(trained["unigram"].encode("123")) == 3


def test_lone_surrogates_are_left_out(trained):
    for tokenizer in trained.values():
        assert tokenizer.encode("猫\ud83d") == tokenizer.encode("猫")
        assert tokenizer.normalize("猫\ud83d") == "猫"


def test_special_tokens_have_fixed_ids_and_no_bytes(trained):
    for tokenizer in trained.values():
        assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
        assert list(tokenizer.special_tokens.values()) == list(range(len(SPECIAL_TOKENS)))
        assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
        assert all(tokenizer.token_bytes(token) == b"" for token in range(len(SPECIAL_TOKENS)))


def test_special_tokens_are_shown_on_request_only(trained):
    for name in LOSSLESS:
        tokenizer = trained[name]
        ids = [tokenizer.bos_id, *tokenizer.encode("猫"), tokenizer.special_tokens["<|end|>"]]
        assert tokenizer.decode(ids) == "猫"
        assert tokenizer.decode(ids, skip_special=False) == "<s>猫<|end|>"


def test_ids_outside_the_vocabulary_are_refused(trained):
    for token in (-1, trained["byte"].vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary of 266"):
            trained["byte"].decode([token])


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_saved_tokenizer_is_the_same(trained, name, tmp_path):
    tokenizer = trained[name]
    tokenizer.save(tmp_path / "saved")
    loaded = tokenizers.load(tmp_path / "saved")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_tokens == tokenizer.special_tokens
    text = "猫は 東京で𠮷ｶﾞ\n１"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.normalize(text) == tokenizer.normalize(text)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_worker_processes_can_be_given_a_tokenizer(trained, name):
    tokenizer = trained[name]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("猫は東京で") == tokenizer.encode("猫は東京で")


def test_fingerprints_tell_tokenizers_apart(trained):
    assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == len(trained)


def test_a_model_file_alone_behaves_like_the_folder(trained, tmp_path, monkeypatch):
    trained["unigram"].save(tmp_path)
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    loaded = tokenizers.load("$SOMEWHERE/tokenizer.model")
    assert loaded.fingerprint == trained["unigram"].fingerprint


def test_a_damaged_folder_is_found(trained, tmp_path):
    trained["word"].save(tmp_path)
    words = (tmp_path / "vocabulary.json").read_text(encoding="utf-8")
    assert "夜" in words
    (tmp_path / "vocabulary.json").write_text(words.replace("夜", "朝", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match="fingerprint differs"):
        tokenizers.load(tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(ConfigError, match="damaged"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize("change", [{"kind": "morse"}, {"files": []}, {"settings": None}])
def test_damaged_metadata_is_one_clear_line(trained, change, tmp_path):
    trained["word"].save(tmp_path)
    path = tmp_path / "jgpt_tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match="damaged"):
        tokenizers.load(tmp_path)


def test_a_missing_or_foreign_file_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer at .*nowhere"):
        tokenizers.load(tmp_path / "nowhere")
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        tokenizers.load(tmp_path / "broken.model")


def test_existing_models_with_a_dummy_prefix_decode_without_it(corpus, tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "theirs"),
        vocab_size=150,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "theirs.model"))
    ours = tokenizers.load(tmp_path / "theirs.model")
    assert ours.strips_leading_space
    assert (ours.unk_id, ours.bos_id, ours.eos_id) == (0, 1, 2)
    assert ours.pad_id == ours.eos_id  # their default has no padding
    for text in corpus[:50]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == ours.normalize(text)
        stream = ours.streamer()
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize("name", LOSSLESS)
@hypothesis.given(text=TEXTS, data=st.data())
@examples
def test_truncation_ends_between_characters_and_drops_no_more(trained, name, text, data):
    tokenizer = trained[name]
    ids = tokenizer.encode(text)
    cut = ids[: data.draw(st.integers(0, len(ids)))]
    kept = safe_truncate(cut, tokenizer)
    assert kept == cut[: len(kept)]
    assert _is_utf8(b"".join(map(tokenizer.token_bytes, kept)))
    for longer in range(len(kept) + 1, len(cut) + 1):
        assert not _is_utf8(b"".join(map(tokenizer.token_bytes, cut[:longer])))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def test_the_rule_inside_the_model_is_nfkc_for_every_character(trained):
    characters = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    characters.remove("|")
    normalized = trained["unigram"].normalize("|".join(characters)).split("|")
    wrong = [c for c, n in zip(characters, normalized, strict=True) if n != nfkc(c)]
    assert not wrong


@hypothesis.given(
    text=st.text(
        st.one_of(
            st.characters(min_codepoint=0x3000, max_codepoint=0x30FF),
            st.characters(min_codepoint=0xFF00, max_codepoint=0xFF9F),  # then Korean letters
            st.characters(min_codepoint=0x4E00, max_codepoint=0x4E80),
            st.sampled_from("aＡ\u00e9　\n…①"),
            st.sampled_from("かカｶハﾊうｳヷゞ\u3099\u309aﾞﾟ゛"),
        ),
        max_size=30,
    )
)
@hypothesis.settings(max_examples=400, deadline=None)
def test_the_rule_inside_the_model_is_nfkc_for_japanese_text(trained, text):
    hypothesis.assume(not any(0x302A <= ord(character) <= 0x302F for character in text))
    assert trained["unigram"].normalize(text) == nfkc(text)


def test_nfkc_keeps_what_japanese_text_needs():
    kept = "　…‥～！？（）：；「」、。①²½"
    assert nfkc(kept) == kept
    assert nfkc("ｶﾞ１２ＡＢ㌔か\u3099") == "ガ12ABキロが"
    assert unicodedata.normalize("NFKC", "　…") != "　…"
    assert "\u3000" in KEPT
