"""Unicode normalization for Japanese: NFKC, but a few characters stay as they were written.

One definition, `nfkc`. SentencePiece models carry it inside (`sentencepiece_rule` below), so that a
saved `.model` file does the same in any program; the word tokenizer calls it.
"""

import functools
import re
import unicodedata

KEPT = (
    "\u3000"  # ideographic space: opens paragraphs, stands between names
    "‥…"
    "！-／：-＠［-｀｛-～"  # full-width punctuation: Japanese text is set with it
    "￠-￦"
    "①-⑳⓪㊀-㊉"  # labels of lists; ① is not 1
    "⁰¹²³⁴-ⁿ₀-₎"  # 10² is not 102
    "¼-¾⅐-⅞"  # 3½ is not 31⁄2
)
"""What NFKC would spoil, as ranges of a regular expression: … would become three full stops."""

_OTHERS = re.compile(f"[^{KEPT}]+")
_HANGUL_SYLLABLES = range(0xAC00, 0xD7A4)
_LAST_CHANGED = 0x2FA1D
"""The last code point that any normalization form changes (CJK Compatibility Supplement)."""
_VOICING_MARKS = "\u3099\u309aﾞﾟ"


def nfkc(text: str) -> str:
    """NFKC of everything but `KEPT`; idempotent. Newlines and runs of spaces stay.

    Full-width letters and digits become ASCII, half-width katakana become full width (with their
    voicing marks), compatibility characters (㌔, ㈱, ﬁ, no-break space) become what they stand for.
    """
    if unicodedata.is_normalized("NFKC", text):
        return text
    return _OTHERS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


@functools.cache
def sentencepiece_rule() -> str:
    """`nfkc` as a SentencePiece rule file: code points in hexadecimal, a tab, their replacement.

    SentencePiece replaces the longest match from the left and does not look at the result again, so
    the rule lists single characters, canonical decompositions (か + combining ゛) and kana with
    half-width voicing marks. Two things of NFKC are not in it: conjoining Korean letters, and
    sequences of several combining marks in an unusual order.
    """
    sources = set()
    for code in range(1, _LAST_CHANGED + 1):
        character = chr(code)
        if 0xD800 <= code < 0xE000 or code in _HANGUL_SYLLABLES or not _OTHERS.match(character):
            continue
        sources.add(character)
        sources.add(unicodedata.normalize("NFD", character))
        pair = unicodedata.decomposition(character)
        if pair and not pair.startswith("<"):
            sources.add("".join(chr(int(part, 16)) for part in pair.split()))
    sources.update(kana + mark for kana in _kana() for mark in _VOICING_MARKS)
    changed = sorted(source for source in sources if nfkc(source) != source)
    return "".join(f"{_hexadecimal(s)}\t{_hexadecimal(nfkc(s))}\n" for s in changed)


def _kana() -> list[str]:
    return [chr(code) for code in (*range(0x3041, 0x3100), *range(0xFF66, 0xFF9E))]


def _hexadecimal(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
