"""Tokenizers of model folders: the libraries' ids, nothing injected, whole characters."""

import base64
import importlib.util
import json
import pathlib
import random
import shutil
import sys

import pytest
import sentencepiece

from jgpt import tokenizers
from jgpt.config import ConfigError
from jgpt.tokenizers import sentencepiece_model
from tests.tokenizers.test_tokenizer_huggingface import gpt2_like
from tests.tokenizers.tokenizer_corpus import sentences

PROSE = [
    *sentences(20, seed=5),
    "吾輩は猫である。名前はまだ無い。",
    "𠮷野家で👨‍👩‍👧と食べた。\n　ｶﾞﾗｽ、①、Ａ１",
    "in the beginning, 12,345.67 yen!",
]


def write_config(folder, **values):
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")


def streamed(tokenizer, ids) -> str:
    stream = tokenizer.streamer()
    return "".join(map(stream.push, ids)) + stream.finish()


def assert_streams(tokenizer, texts):
    """Every prefix of an encoding streams to its decoding, without U+FFFD."""
    for text in texts:
        ids = tokenizer.encode(text)
        for end in range(len(ids) + 1):
            shown = streamed(tokenizer, ids[:end])
            assert shown == tokenizer.decode(ids[:end])
            assert "\ufffd" not in shown


def assert_saves(tokenizer, folder, texts):
    tokenizer.save(folder)
    loaded = tokenizers.load(folder)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)


def train_sentencepiece(folder, name="tokenizer.model", **settings):
    """A Llama-like model: a space before the text, byte fallback, unk 0, bos 1, eos 2."""
    with open(folder / name, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300)),
            model_writer=file,
            model_type="bpe",
            vocab_size=450,
            byte_fallback=True,
            minloglevel=2,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            **settings,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, their processor, our tokenizer); `[INST]` is an ordinary piece of the file."""
    folder = tmp_path_factory.mktemp("llama")
    theirs = train_sentencepiece(folder, user_defined_symbols=["[INST]", "東京"])
    added = {
        450: ("<|im_start|>", False),
        451: ("<pad>", True),
        453: ("猫猫", False),
        theirs.piece_to_id("[INST]"): ("[INST]", True),
    }
    write_config(
        folder,
        tokenizer_class="LlamaTokenizer",
        bos_token={"content": "<s>"},
        eos_token="</s>",
        pad_token="<pad>",
        legacy=False,
        added_tokens_decoder={str(i): {"content": c, "special": s} for i, (c, s) in added.items()},
    )
    return folder, theirs, tokenizers.load(folder)


def test_a_sentencepiece_folder_has_the_files_ids(llama):
    _, theirs, ours = llama
    for text in PROSE:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert ours.encode_batch(PROSE) == [ours.encode(text) for text in PROSE]
    assert_streams(ours, PROSE[-3:])


def test_added_tokens_extend_the_vocabulary(llama, tmp_path):
    _, theirs, ours = llama
    assert ours.vocab_size == 454
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 451)
    assert ours.special_tokens["<|im_start|>"] == 450
    assert ours.token_bytes(452) == b""
    ids = ours.encode("これは猫猫だ")
    assert ids.count(453) == 1
    assert ours.decode(ids) == "これは猫猫だ"
    assert ids[: ids.index(453)] == theirs.encode("これは")
    assert_saves(ours, tmp_path, [*PROSE, "猫猫[INST]"])


@pytest.mark.parametrize("name", ["<s>", "</s>", "<pad>", "<|im_start|>", "[INST]", "<unk>"])
def test_special_tokens_of_a_folder_are_out_of_reach(llama, name):
    _, _, ours = llama
    ids = ours.encode(f"猫{name}と{name}")
    assert not set(ids) & set(ours.special_tokens.values())
    assert ours.decode(ids) == f"猫{name}と{name}"


def test_a_space_is_put_before_the_first_text_only(llama, tmp_path):
    folder, theirs, ours = llama
    start = ours.special_tokens["<|im_start|>"]
    first, second = theirs.encode("猫"), theirs.encode("手")
    space = theirs.piece_to_id("▁")
    assert second[0] == space
    assert ours.encode_parts(["猫", start, "手", ""]) == [*first, start, *second[1:]]
    shutil.copy(folder / "tokenizer.model", tmp_path)
    old = tokenizers.load(tmp_path)
    assert old.encode_parts(["猫", old.eos_id, "手"]) == [*first, old.eos_id, *second]
    with pytest.raises(ValueError, match="no special token"):
        ours.encode_parts(["猫", space])


def test_t5_has_its_extra_ids(tmp_path):
    theirs = train_sentencepiece(tmp_path, "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    write_config(tmp_path, tokenizer_class="T5Tokenizer", extra_ids=100, eos_token="</s>")
    ours = tokenizers.load(tmp_path)
    assert ours.vocab_size == len(theirs) + 100
    assert ours.special_tokens["<extra_id_0>"] == len(theirs) + 99
    assert ours.special_tokens["<extra_id_99>"] == len(theirs)
    assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.bos_id) == (0, 1, 2, 1)


def test_older_files_name_the_roles(tmp_path):
    """rinna's form: `[PAD]` and `[CLS]` are pieces, named by special_tokens_map.json alone."""
    theirs = train_sentencepiece(tmp_path, "spiece.model", user_defined_symbols=["[PAD]", "[CLS]"])
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "additional_special_tokens": ["東"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 450}')
    ours = tokenizers.load(tmp_path)
    assert ours.pad_id == theirs.piece_to_id("[PAD]")
    assert ours.bos_id == ours.special_tokens["[CLS]"] == theirs.piece_to_id("[CLS]")
    assert ours.special_tokens["<|user|>"] == 450
    assert theirs.piece_to_id("東") == ours.special_tokens["東"]
    assert ours.decode(ours.encode("[PAD]東京")) == "[PAD]東京"


def test_pieces_are_read_and_written_as_the_library_reads_them(llama):
    folder, theirs, _ = llama
    model = (folder / "tokenizer.model").read_bytes()
    found = sentencepiece_model.pieces(model)
    assert [p.text for p in found] == [theirs.id_to_piece(i) for i in range(len(theirs))]
    assert [p.score for p in found] == [theirs.get_score(i) for i in range(len(theirs))]
    assert sentencepiece_model.kind(model) == sentencepiece_model.BPE
    more = sentencepiece_model.with_pieces(model, [sentencepiece_model.Piece("吾輩", -900.0)])
    extended = sentencepiece.SentencePieceProcessor(model_proto=more)
    assert (len(extended), extended.id_to_piece(450)) == (451, "吾輩")


RANKS = [bytes([b]) for b in range(256)] + ["東".encode(), "東京".encode(), "は".encode(), b" in"]
RANKS[256:256] = ["東".encode()[:2], "京".encode()[:2], "京".encode(), "は".encode()[:2], b"in"]


def write_ranks(path):
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(RANKS))
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model", "tekken.json"])
def test_rank_files_have_the_librarys_ids(name, tmp_path):
    library = pytest.importorskip("tiktoken", reason="rank files need the tiktoken package")
    first = 0
    if name == "tekken.json":
        first = 10
        vocabulary = [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate([*RANKS, b"beyond"])
        ]
        config = {
            "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "default_vocab_size": len(RANKS) + 10,
            "default_num_special_tokens": 10,
        }
        special = [{"rank": i, "token_str": s} for i, s in enumerate(["<unk>", "<s>", "</s>"])]
        values = {"config": config, "vocab": vocabulary, "special_tokens": special}
        (tmp_path / name).write_text(json.dumps(values))
    else:
        write_ranks(tmp_path / name)
    ours = tokenizers.load(tmp_path)
    theirs = library.Encoding(
        "theirs",
        pat_str=ours._pattern,
        mergeable_ranks={piece: rank for rank, piece in enumerate(RANKS)},
        special_tokens={},
    )
    for text in [*PROSE, "東京は in<|endoftext|></s>"]:
        ids = ours.encode(text)
        assert ids == [first + rank for rank in theirs.encode_ordinary(text)]
        assert ours.decode(ids) == text
        assert not set(ids) & set(ours.special_tokens.values())
    assert_streams(ours, PROSE[-3:])
    assert_saves(ours, tmp_path / "saved", PROSE)
    if first:
        assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.vocab_size) == (
            0,
            1,
            2,
            len(RANKS) + 10,
        )
    else:
        assert ours.eos_id == ours.special_tokens["<|endoftext|>"] == len(RANKS)
        assert ours.special_tokens["<|im_end|>"] == len(RANKS) + 2


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def bert_vocabulary():
    """The characters of the corpus alone and as continuations, and a few longer pieces."""
    characters = sorted(set("".join(sentences(200))) - {" ", "　"})
    kept = [c for c in characters if c != "雪"]
    longer = ["東京", "図書館", "##書館", "歩い", "##した", "the", "##in", "##x"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,."]
    return list(dict.fromkeys([*WORDS, *kept, *(f"##{c}" for c in kept), *longer, *letters]))


def write_vocabulary(folder, vocabulary):
    (folder / "vocab.txt").write_text("".join(f"{w}\n" for w in vocabulary), encoding="utf-8")


def assert_equals_bert(ours, theirs, texts, cleans_up=False):
    """`cleans_up`: their decoder takes away spaces before punctuation, which no stream can do."""
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        shown = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if cleans_up:
            assert ours.decode(ids).replace(" ", "") == shown.replace(" ", "")
        else:
            assert ours.decode(ids) == shown.removeprefix(" ")
    assert ours.emits_unk
    assert (ours.pad_id, ours.unk_id, ours.bos_id, ours.eos_id) == (0, 1, 2, 3)
    assert ours.special_tokens["[MASK]"] == 4


@pytest.mark.parity
@pytest.mark.parametrize("subword", ["wordpiece", "character"])
@pytest.mark.parametrize("dictionary", ["unidic_lite", "ipadic"])
def test_japanese_bert_has_transformers_ids(bert_vocabulary, dictionary, subword, tmp_path):
    for package in ("fugashi", dictionary, "transformers"):
        pytest.importorskip(package, reason=f"comparing Japanese BERT needs {package}")
    from transformers import BertJapaneseTokenizer

    write_vocabulary(tmp_path, bert_vocabulary)
    write_config(
        tmp_path,
        tokenizer_class="BertJapaneseTokenizer",
        do_lower_case=False,
        word_tokenizer_type="mecab",
        subword_tokenizer_type=subword,
        mecab_kwargs={"mecab_dic": dictionary},
    )
    ours = tokenizers.load(tmp_path)
    assert_equals_bert(ours, BertJapaneseTokenizer.from_pretrained(tmp_path), PROSE)
    assert not set(ours.encode("[CLS]猫[MASK]")) & {2, 3, 4}
    assert_streams(ours, PROSE[-3:])
    assert_saves(ours, tmp_path / "saved", PROSE)


@pytest.mark.parity
@pytest.mark.parametrize("lower_case", [True, False])
def test_original_bert_has_transformers_ids(bert_vocabulary, lower_case, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the other implementation")
    write_vocabulary(tmp_path, bert_vocabulary)
    write_config(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=lower_case)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    texts = [*PROSE, "Thé ﬁn\u0000 a\u3000b…", "x" * 120, "Ångström,the"]
    from_text = tokenizers.load(tmp_path)
    assert_equals_bert(from_text, theirs, texts, cleans_up=True)
    theirs.save_pretrained(tmp_path)
    from_json = tokenizers.load(tmp_path)
    assert from_json.kind == "huggingface"
    assert_equals_bert(from_json, theirs, texts, cleans_up=True)
    assert from_json.special_tokens == from_text.special_tokens


def test_characters_after_whitespace_words(bert_vocabulary, tmp_path):
    write_vocabulary(tmp_path, bert_vocabulary)
    write_config(
        tmp_path, tokenizer_class="BertJapaneseTokenizer", subword_tokenizer_type="character"
    )
    ours = tokenizers.load(tmp_path)
    assert ours.decode(ours.encode("東京 は")) == "東 京 は"
    assert ours.encode("雪") == [ours.unk_id]
    assert_saves(ours, tmp_path / "saved", PROSE)


@pytest.mark.parity
def test_gpt2s_older_files_have_transformers_ids(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the other implementation")
    gpt2_like(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").unlink()
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    size = len(vocabulary)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|user|>": size, "猫猫": size + 1}))
    write_config(tmp_path, tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>")
    ours = tokenizers.load(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    for text in [*PROSE, "猫猫 the end", "#version # 1"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert ours.special_tokens["<|user|>"] == size
    assert not set(ours.encode("<|user|><|endoftext|>")) & set(ours.special_tokens.values())
    assert_saves(ours, tmp_path / "saved", PROSE)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"has no merges\.txt beside it"):
        tokenizers.load(tmp_path)
    write_config(tmp_path, tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ConfigError, match=r"Qwen2Tokenizer without its tokenizer\.json"):
        tokenizers.load(tmp_path)


def mistral_files():
    package = importlib.util.find_spec("mistral_common")
    folder = pathlib.Path(package.origin).parent / "data" if package else None
    return sorted(folder.glob("*.model.v*")) + sorted(folder.glob("tekken*")) if folder else []


def test_mistrals_files_encode_as_their_libraries(tmp_path):
    files = mistral_files()
    if not files:
        pytest.skip("the files are in the package mistral-common: pip install --no-deps it")
    draw = random.Random(1)
    for file in files:
        if file.suffix == ".json":
            pytest.importorskip("tiktoken", reason="tekken.json needs the tiktoken package")
        ours = tokenizers.load(file)
        texts = [*PROSE, "".join(draw.sample([*"猫の手𠮷も借りたいｶﾞ👨 \n。a1"], 16))]
        if file.suffix != ".json":
            theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
            for text in texts:
                assert ours.encode(text) == theirs.encode(text), file.name
                assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
        assert all(ours.decode(ours.encode(text)) == text for text in texts)
        assert ours.eos_id == 2
        assert_streams(ours, texts[-3:])
        assert_saves(ours, tmp_path / file.name, texts)


def test_a_folder_without_a_tokenizer_names_its_class(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer at .*; give a folder with one of"):
        tokenizers.load(tmp_path)
    write_config(tmp_path, tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(ConfigError, match="says XLMRobertaTokenizer"):
        tokenizers.load(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"1")
    with pytest.raises(ConfigError, match="is no tokenizer file"):
        tokenizers.load(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"word_tokenizer_type": "jumanpp"}, "word_tokenizer_type 'jumanpp'.* is not supported"),
        ({"subword_tokenizer_type": "sentencepiece"}, "subword_tokenizer_type"),
        ({"pad_token": "<none>"}, "<none> is not in"),
    ],
)
def test_a_bert_that_is_not_supported_is_one_clear_line(values, message, bert_vocabulary, tmp_path):
    write_vocabulary(tmp_path, bert_vocabulary)
    write_config(tmp_path, tokenizer_class="BertJapaneseTokenizer", **values)
    with pytest.raises(ConfigError, match=message):
        tokenizers.load(tmp_path)


def test_missing_packages_say_what_to_install(bert_vocabulary, monkeypatch, tmp_path):
    write_vocabulary(tmp_path, bert_vocabulary)
    write_config(tmp_path, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab")
    monkeypatch.setitem(sys.modules, "fugashi", None)
    with pytest.raises(ConfigError, match=r"pip install jgpt\[mecab\]"):
        tokenizers.load(tmp_path)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    write_ranks(tmp_path / "qwen.tiktoken")
    with pytest.raises(ConfigError, match=r"pip install jgpt\[tiktoken\]"):
        tokenizers.load(tmp_path / "qwen.tiktoken")


@pytest.mark.parametrize("name, content", [("a.tiktoken", b"x y z\n"), ("tekken.json", b"{}")])
def test_broken_rank_files_are_one_clear_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="readable"):
        tokenizers.load(tmp_path / name)
