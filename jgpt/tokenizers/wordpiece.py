"""BERT's tokenizers from a `vocab.txt`: words first, then WordPiece (Schuster & Nakajima 2012).

For Japanese (`BertJapaneseTokenizer`: cl-tohoku, izumi-lab) the words are MeCab's or Sudachi's, and
the pieces WordPiece's or single characters; for the original BERT whitespace and punctuation part
the words. MeCab and its dictionary are an optional extra.
"""

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer
from jgpt.tokenizers.huggingface import word_piece_bytes

VOCABULARY_FILE = "vocab.txt"
JAPANESE_CLASS = "BertJapaneseTokenizer"
_PREFIX = "##"
_LONGEST_WORD = 100
"""Characters; longer words become one unknown token."""
_USUAL_NAMES = {PAD: "[PAD]", UNK: "[UNK]", BOS: "[CLS]", EOS: "[SEP]"}
_OTHER_SPECIAL = ("[MASK]",)


@dataclasses.dataclass(frozen=True)
class Words:
    """How text is cut into words; the fields of `tokenizer_config.json`.

    Attributes:
        segmenter: `basic`, `mecab` or `sudachi`.
        lower_case: words in lower case; `basic` strips accents too, unless `strip_accents` says
            otherwise.
        strip_accents: None for "where in lower case".
        split_kanji: `basic` makes every kanji a word.
        nfkc: NFKC before MeCab and Sudachi.
        dictionary: MeCab's: `ipadic`, `unidic_lite` or `unidic`; None for the system's.
        option: more of MeCab's command line.
        split_mode: Sudachi's: `A`, `B` or `C`.
    """

    segmenter: str = "basic"
    lower_case: bool = True
    strip_accents: bool | None = None
    split_kanji: bool = True
    nfkc: bool = True
    dictionary: str | None = "ipadic"
    option: str = ""
    split_mode: str = "A"


class WordPieceTokenizer(Tokenizer):
    """Pieces of words; decoding puts spaces between words, as BERT's does."""

    kind = "wordpiece"

    def __init__(
        self, vocabulary: Sequence[str], words: Words, subword: str, special: dict[str, int]
    ):
        """
        Args:
            vocabulary: the pieces; an id is a position.
            words: how text is cut into words.
            subword: `wordpiece` or `character`.
            special: name to id of the special tokens, with `<pad>`, `<unk>`, `<s>`, `</s>` among
                them.

        Raises:
            ConfigError: a package is missing, or `subword` or `words.segmenter` is unknown.
        """
        self._vocabulary = list(vocabulary)
        self._words = words
        self._subword = subword
        self._special = dict(special)
        hidden = set(special.values())
        self._ids = {name: i for i, name in enumerate(vocabulary) if i not in hidden}
        self._segment = _choice("word_tokenizer_type", words.segmenter, SEGMENTERS)(words)
        cut = _choice("subword_tokenizer_type", subword, {"wordpiece": _pieces, "character": list})
        self._cut = functools.partial(cut, vocabulary=self._ids) if cut is _pieces else cut
        self._nfkc_pieces = subword == "character"
        size = max([len(self._vocabulary), *(token + 1 for token in hidden)])
        token_bytes = [b""] * size
        for i, name in enumerate(self._vocabulary):
            token_bytes[i] = b"" if i in hidden else word_piece_bytes(_PREFIX, name)
        super().__init__(
            token_bytes=token_bytes,
            special_tokens=special,
            emits_unk=True,
            strips_leading_space=True,
            special_names={
                name: i
                for name, i in special.items()
                if name not in _USUAL_NAMES or vocabulary[i : i + 1] == [name]
            },
        )

    def _normalize(self, text: str) -> str:
        """Words and pieces are all that is kept of the text: there is no other definition."""
        return self.decode(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        ids = []
        for word in self._segment(text):
            if self._nfkc_pieces:
                word = unicodedata.normalize("NFKC", word)
            ids += [self._ids.get(piece, self.unk_id) for piece in self._cut(word)]
        return ids

    def _files(self) -> dict[str, bytes]:
        return {VOCABULARY_FILE: "".join(f"{name}\n" for name in self._vocabulary).encode()}

    def _settings(self) -> dict[str, Any]:
        return {
            "words": dataclasses.asdict(self._words),
            "subword": self._subword,
            "special": self._special,
        }

    @classmethod
    def from_saved(cls, files: dict[str, bytes], settings: dict[str, Any]) -> Tokenizer:
        words = Words(**settings["words"])
        return cls(_vocabulary(files[VOCABULARY_FILE]), **{**settings, "words": words})


def load(path: Path) -> WordPieceTokenizer:
    """Reads a `vocab.txt` and the `tokenizer_config.json` beside it.

    Raises:
        ConfigError: as `WordPieceTokenizer`, or a special token is not in the vocabulary.
    """
    settings = folder_settings.read(path.parent)
    vocabulary = _vocabulary(path.read_bytes())
    ids = {name: i for i, name in enumerate(vocabulary)}
    special = {token.content: token.id for token in settings.added if token.special}
    known = ids | special
    for role, usual in _USUAL_NAMES.items():
        name = settings.roles.get(role, usual)
        if name not in known:
            raise ConfigError(
                f"tokenizer.path: {name} is not in {str(path)!r}; name the token that stands in "
                "its place in the tokenizer_config.json beside it"
            )
        special[role] = special[name] = known[name]
    names = (*settings.special_names, *_OTHER_SPECIAL)
    special |= {name: known[name] for name in names if name in known}
    config = settings.config
    if settings.class_name != JAPANESE_CLASS:
        words = Words(
            lower_case=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            split_kanji=config.get("tokenize_chinese_chars", True),
        )
        return WordPieceTokenizer(vocabulary, words, "wordpiece", special)
    mecab, sudachi = (config.get(f"{name}_kwargs") or {} for name in ("mecab", "sudachi"))
    segmenter = config.get("word_tokenizer_type", "basic")
    words = Words(
        segmenter=segmenter,
        lower_case=config.get("do_lower_case", False),
        split_kanji=False,
        nfkc=(mecab if segmenter == "mecab" else sudachi).get("normalize_text", True),
        dictionary=mecab.get("mecab_dic", "ipadic"),
        option=mecab.get("mecab_option") or "",
        split_mode=sudachi.get("sudachi_split_mode", "A"),
    )
    subword = config.get("subword_tokenizer_type", "wordpiece")
    return WordPieceTokenizer(vocabulary, words, subword, special)


def _vocabulary(content: bytes) -> list[str]:
    return content.decode().removesuffix("\n").split("\n")


def _choice(field: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise ConfigError(
            f"tokenizer.path: {field} {name!r} of the tokenizer_config.json is not supported; "
            f"supported: {', '.join(table)}"
        )
    return table[name]


def _pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """The longest piece from the left, again and again; one unknown token if that fails."""
    found = []
    for part in word.split():
        pieces = _longest_first(part, vocabulary) if len(part) <= _LONGEST_WORD else None
        found += pieces if pieces is not None else [""]
    return found


def _longest_first(word: str, vocabulary: dict[str, int]) -> list[str] | None:
    pieces = []
    start = 0
    while start < len(word):
        prefix = _PREFIX if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return None
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def _mecab(words: Words) -> Callable[[str], Iterable[str]]:
    """MeCab's surfaces; whitespace between them is lost."""
    try:
        import fugashi

        option = f"{_dictionary_option(words.dictionary)} {words.option}".strip()
        tagger = fugashi.GenericTagger(option)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"this tokenizer needs MeCab with the dictionary {words.dictionary}: "
            "pip install jgpt[mecab]"
        ) from error
    return lambda text: _prepared((word.surface for word in tagger(_nfkc(text, words))), words)


def _dictionary_option(name: str | None) -> str:
    if name is None:
        return ""
    if name == "ipadic":
        import ipadic as dictionary
    elif name == "unidic_lite":
        import unidic_lite as dictionary
    elif name == "unidic":
        import unidic as dictionary
    else:
        raise ConfigError(
            f"tokenizer.path: mecab_dic {name!r} of the tokenizer_config.json is not supported; "
            "supported: ipadic, unidic_lite, unidic"
        )
    folder = dictionary.DICDIR
    return f'-d "{folder}" -r "{os.path.join(folder, "mecabrc")}"'


def _sudachi(words: Words) -> Callable[[str], Iterable[str]]:
    try:
        import sudachipy

        mode = getattr(sudachipy.SplitMode, words.split_mode)
        dictionary = sudachipy.Dictionary().create(mode=mode)
    except (ImportError, RuntimeError) as error:
        raise ConfigError("this tokenizer needs Sudachi: pip install jgpt[sudachi]") from error
    return lambda text: _prepared(
        (word.surface() for word in dictionary.tokenize(_nfkc(text, words))), words
    )


def _nfkc(text: str, words: Words) -> str:
    return unicodedata.normalize("NFKC", text) if words.nfkc else text


def _prepared(surfaces: Iterable[str], words: Words) -> Iterable[str]:
    return (surface.lower() for surface in surfaces) if words.lower_case else surfaces


def _basic(words: Words) -> Callable[[str], list[str]]:
    return functools.partial(_basic_words, words)


def _basic_words(words: Words, text: str) -> list[str]:
    """Devlin et al. 2018, `BasicTokenizer`: whitespace, punctuation and (optionally) kanji."""
    text = "".join(_cleaned(character, words.split_kanji) for character in text)
    found = []
    for word in unicodedata.normalize("NFC", text).split():
        if words.lower_case:
            word = word.lower()
        if words.lower_case if words.strip_accents is None else words.strip_accents:
            decomposed = unicodedata.normalize("NFD", word)
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        spaced = (f" {c} " if _is_punctuation(c) else c for c in word)
        found += "".join(spaced).split()
    return found


def _cleaned(character: str, split_kanji: bool) -> str:
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character in "\0\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    if split_kanji and any(ord(character) in block for block in _KANJI):
        return f" {character} "
    return character


def _is_punctuation(character: str) -> bool:
    ascii_sign = character.isascii() and character.isprintable() and not character.isalnum()
    return (ascii_sign and character != " ") or unicodedata.category(character).startswith("P")


_KANJI = (
    range(0x4E00, 0xA000),
    range(0x3400, 0x4DC0),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2B740),
    range(0x2B740, 0x2B820),
    range(0x2B820, 0x2CEB0),
    range(0xF900, 0xFB00),
    range(0x2F800, 0x2FA20),
)
SEGMENTERS: dict[str, Callable[[Words], Callable[[str], Iterable[str]]]] = {
    "basic": _basic,
    "mecab": _mecab,
    "sudachi": _sudachi,
}
