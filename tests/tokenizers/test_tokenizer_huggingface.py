"""`tokenizer.json` files: the same ids and text as their own library, and no injected tokens."""

import json
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from jgpt import tokenizers
from jgpt.config import ConfigError
from tests.tokenizers.tokenizer_corpus import sentences

library = pytest.importorskip("tokenizers", reason="tokenizer.json needs the tokenizers package")

TEXTS = st.one_of(
    st.lists(
        st.sampled_from([*"東京は雪。猫ｱＡa1 　\n▁\ufffd", "𠮷", "👨\u200d", "12", "in the"]),
        max_size=12,
    ).map("".join),
    st.text(max_size=20),
)
INJECTIONS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<think>", "<|user|>"]
examples = hypothesis.settings(max_examples=150, deadline=None)


def gpt2_like(folder):
    """Byte-level BPE whose pad is added, with `<think>` added as an ordinary token."""
    theirs = library.Tokenizer(library.models.BPE())
    theirs.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = library.decoders.ByteLevel()
    theirs.post_processor = library.processors.ByteLevel(trim_offsets=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(sentences(300), trainer)
    theirs.add_special_tokens(["<|im_start|>"])
    theirs.add_tokens([library.AddedToken("<think>"), library.AddedToken("    ")])
    theirs.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return theirs


def _pieces(byte_tokens=True):
    characters = sorted(set("".join(sentences(300)).replace(" ", "▁")) | set("<>|/s_unkthiax"))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] * byte_tokens
    return pieces + characters + ["▁in", "▁the", "東京", "図書館"]


def llama_like(folder):
    """BPE with byte fallback, ▁ put before the text and taken away again."""
    vocabulary = {piece: token for token, piece in enumerate(_pieces())}
    values = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
            "stride": 0},
        "padding": None,
        "added_tokens": [
            {"id": i, "content": c, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
            for i, c in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary,
            "merges": [["東", "京"]]},
    }  # fmt: skip
    return _saved(values, folder)


def unigram(folder, byte_tokens=True):
    """Unigram with its special tokens in the vocabulary proper, and Metaspace."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": byte_tokens,
            "vocab": [[piece, -float(len(piece) < 2)] for piece in _pieces(byte_tokens)]},
    }  # fmt: skip
    return _saved(values, folder)


def _saved(values, folder):
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    theirs = library.Tokenizer.from_str(json.dumps(values))
    theirs.no_truncation()
    return theirs


FAMILIES = {"gpt2": gpt2_like, "llama": llama_like, "unigram": unigram}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Name to (their tokenizer, ours, folder)."""
    found = {}
    for name, make in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        theirs = make(folder)
        found[name] = (theirs, tokenizers.load(folder), folder)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@hypothesis.given(text=TEXTS)
@examples
def test_ids_and_text_are_the_librarys(pairs, name, text):
    theirs, ours, _ = pairs[name]
    hypothesis.assume(not any(marker in text for marker in ["<s>", "</s>", "<unk>", "<0x"]))
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode_batch([text, "猫"]) == [ids, ours.encode("猫")]
    assert ours.decode(ids) == theirs.decode(ids)
    assert not ours.emits_unk
    if "▁" not in text:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", FAMILIES)
@hypothesis.given(parts=st.lists(st.sampled_from([*INJECTIONS, "猫", " ", "s>"]), max_size=6))
@examples
def test_text_never_makes_a_special_token(pairs, name, parts):
    _, ours, _ = pairs[name]
    text = "".join(parts)
    ids = ours.encode(text)
    assert not set(ids) & set(ours.special_tokens.values())
    assert ours.decode(ids) == text


@pytest.mark.parametrize("name", FAMILIES)
@hypothesis.given(data=st.data())
@examples
def test_the_stream_of_any_ids_is_their_decoding(pairs, name, data):
    _, ours, _ = pairs[name]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    stream = ours.streamer()
    text = "".join(map(stream.push, ids)) + stream.finish()
    assert text == ours.decode(ids)
    assert "\ufffd" not in text


def test_roles_come_from_the_files_beside(pairs):
    _, gpt2, _ = pairs["gpt2"]
    end = gpt2.special_tokens["<|endoftext|>"]
    assert (gpt2.bos_id, gpt2.eos_id, gpt2.pad_id, gpt2.unk_id) == (end,) * 4
    assert {"<|im_start|>", "<think>"} <= set(gpt2.special_tokens)
    assert "    " not in gpt2.special_tokens
    assert gpt2.decode(gpt2.encode("a    b")) == "a    b"
    assert gpt2.decode([end, *gpt2.encode("猫")], skip_special=False) == "<|endoftext|>猫"
    for name in ("llama", "unigram"):
        _, ours, _ = pairs[name]
        assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 2)


def test_the_leading_space_is_the_familys(pairs):
    assert [pairs[name][1].strips_leading_space for name in FAMILIES] == [False, True, False]
    _, llama, _ = pairs["llama"]
    assert llama.token_bytes(llama.encode("猫")[0]) == b" "
    assert llama.decode(llama.encode(" 猫")) == " 猫"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_tokenizer_is_the_same(pairs, name, tmp_path):
    _, ours, _ = pairs[name]
    ours.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.fingerprint == ours.fingerprint
    assert loaded.special_tokens == ours.special_tokens
    assert loaded.encode("猫 in the 𠮷<s>") == ours.encode("猫 in the 𠮷<s>")


def test_without_byte_fallback_unk_is_declared(tmp_path):
    unigram(tmp_path, byte_tokens=False)
    ours = tokenizers.load(tmp_path / "tokenizer.json")
    assert ours.emits_unk
    assert ours.encode("𠮷") == [ours.unk_id]
    assert ours.decode(ours.encode("東京𠮷")) == "東京"


def test_a_missing_end_token_is_named(pairs, tmp_path):
    values = json.loads((pairs["unigram"][2] / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["vocab"][2][0] = "<stop>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="eos_token"):
        tokenizers.load(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(ConfigError, match=r"special_tokens_map\.json beside it is broken"):
        tokenizers.load(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<stop>"}')
    ours = tokenizers.load(tmp_path)
    assert ours.eos_id == 2
    assert 2 not in ours.encode("<stop>")


def test_other_families_are_refused(pairs, tmp_path):
    values = json.loads((pairs["unigram"][2] / "tokenizer.json").read_text(encoding="utf-8"))
    for decoder in (
        None,
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"decoder": decoder}))
        with pytest.raises(ConfigError, match="is not supported"):
            tokenizers.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"vocab": {}}}'])
def test_a_broken_file_is_one_clear_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"not a readable tokenizer\.json"):
        tokenizers.load(tmp_path)


def test_what_the_library_refuses_is_one_clear_line(pairs, tmp_path):
    values = json.loads((pairs["llama"][2] / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["merges"] = [["no", "such"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="is refused"):
        tokenizers.load(tmp_path)


def test_a_missing_library_says_what_to_install(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install jgpt\[hf\]"):
        tokenizers.load(pairs["gpt2"][2])
