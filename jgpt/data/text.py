"""Pure functions that clean Japanese text; `cleaning.clean` runs them over documents and counts.

Normalization is the tokenizers' (`jgpt.tokenizers.normalization.nfkc`): one definition, so that
cleaned text and prompts agree.
"""

import re

_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # invisible, no width
    "\ufe00-\ufe0f\U000e0100-\U000e01ef"  # variation selectors
    "\ufff9-\uffff\ufdd0-\ufdef\ud800-\udfff]"  # U+FFFD of earlier decoding errors, non-characters
)

_KANJI = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff々〆〇ヶ仝"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_RUBY_MARKED = re.compile("｜([^｜《》\n]+)《[^《》\n]+》")
_RUBY = re.compile(f"(?<=[{_KANJI}])《[{_KANA}・　 ]+》")
_GAIJI = re.compile("※［＃[^［］\n]*?U\\+([0-9A-Fa-f]{4,6})[^［］\n]*］")
_ANNOTATION = re.compile("※?［＃(?:[^［］\n]|［[^［］\n]*］)*］")
_AOZORA_KEY = re.compile("^-{20,}\n【テキスト中に現れる記号について】\n.*?^-{20,}\n", re.M | re.S)
_AOZORA_COLOPHON = re.compile("^底本：.*?青空文庫.*\\Z", re.M | re.S)

_BOILERPLATE = re.compile(
    r"copyright|all rights reserved|©|無断転載|著作権|プライバシーポリシー|利用規約|特定商取引"
    r"|cookie|クッキーを|javascriptを有効|ページの?(?:先頭|トップ)へ|トップページへ|ホームへ戻る|一覧へ戻る"
    r"|^(?:次|前)の?(?:ページ|記事)へ?$|続きを読む|もっと見る|シェアする|ツイートする|いいね[！!]?$"
    r"|ログイン|会員登録|お問い合わせはこちら|サイトマップ|関連記事|スポンサーリンク|^広告$|パンくず",
    re.IGNORECASE,
)
_BOILERPLATE_LENGTH = 80
_REPEATED_LENGTH = 10

_LEADING_BLANK_LINES = re.compile(r"\A\s*\n")
_LETTERS = re.compile(r"[^\W\d_]")
_JAPANESE_LETTERS = re.compile(f"[{_KANJI}{_KANA}]")
_KANA_LETTERS = re.compile(f"[{_KANA}]")
_SENTENCE_END = re.compile('[。！？!?．]+[」』）)】〉》”’"]*\n*|\n+')


def strip_control(text: str) -> str:
    """Line ends become LF, tabs a blank; control, zero-width and non-characters go."""
    return _CONTROL.sub("", _LINE_ENDS.sub("\n", text).replace("\t", " "))


def strip_aozora(text: str) -> str:
    """Aozora Bunko's marks: ruby, annotations, the key to them, and the colophon.

    `｜漢字《かんじ》` and `漢字《かんじ》` become 漢字 (an unmarked base must be kanji, and its
    reading kana, so that 《 》 as quotation marks stay); `［＃...］` goes, unless it names a
    character outside JIS by its code point, `※［＃「...」、U+5DE2、...］`, which takes its place.
    """
    if "《" in text:
        text = _RUBY.sub("", _RUBY_MARKED.sub(r"\1", text))
    if "［＃" in text:
        text = _ANNOTATION.sub("", _GAIJI.sub(_gaiji_character, text))
    if "底本：" in text or "【テキスト中に現れる" in text:
        text = _AOZORA_COLOPHON.sub("", _AOZORA_KEY.sub("", text))
    return text


def _gaiji_character(note: re.Match) -> str:
    code = int(note[1], 16)
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else ""


def strip_blank(text: str) -> str:
    """Without blank lines before the text and white space after it; the first indent stays."""
    return _LEADING_BLANK_LINES.sub("", text).rstrip()


def drop_boilerplate(text: str) -> str:
    """Without short lines of navigation, copyright, cookies and sharing buttons."""
    return "\n".join(
        line
        for line in text.split("\n")
        if len(line) > _BOILERPLATE_LENGTH or not _BOILERPLATE.search(line.strip())
    )


def drop_repeated_lines(text: str) -> str:
    """Each line of 10 characters or more once; shorter ones (a reply, a heading) may come back."""
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        key = line.strip()
        if len(key) >= _REPEATED_LENGTH:
            if key in seen:
                continue
            seen.add(key)
        kept.append(line)
    return "\n".join(kept)


def japanese_ratio(text: str) -> float:
    """Share of kana and kanji among letters, in [0, 1]; 0 where there is no letter."""
    return _ratio(_JAPANESE_LETTERS, text)


def kana_ratio(text: str) -> float:
    """Share of kana among letters; near 0 in Chinese, about a half in Japanese prose."""
    return _ratio(_KANA_LETTERS, text)


def _ratio(pattern: re.Pattern, text: str) -> float:
    letters = len(_LETTERS.findall(text))
    return min(1.0, len(pattern.findall(text)) / letters) if letters else 0.0


def cut_at_sentences(text: str, max_characters: int) -> list[str]:
    """Pieces of at most `max_characters`, joined equal to `text`, cut after sentences where
    possible.

    A sentence longer than that is cut where it must be.
    """
    pieces = []
    start = 0
    while len(text) - start > max_characters:
        end = 0
        for match in _SENTENCE_END.finditer(text, start, start + max_characters):
            end = match.end()
        end = end if end > start else start + max_characters
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]
