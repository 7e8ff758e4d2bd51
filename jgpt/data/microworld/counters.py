"""Numbers and counters: how they are written and how they are read.

In running prose small numbers stand in kanji (三冊); prices, ages and sums stand in digits (120円).
"""
# ruff: noqa: SIM905  (tables and word lists stay on one line, to be read)

from __future__ import annotations

_DIGITS = "〇一二三四五六七八九"
_READINGS = ("", "いち", "に", "さん", "よん", "ご", "ろく", "なな", "はち", "きゅう", "じゅう")

# Native numerals, and the two counters that borrow from them.
_TSU = "ひとつ ふたつ みっつ よっつ いつつ むっつ ななつ やっつ ここのつ とお".split()
_NIN = (
    "ひとり ふたり さんにん よにん ごにん ろくにん ななにん はちにん きゅうにん じゅうにん".split()
)

# counter: (reading, reading after 一六八十, reading after 三). The second says that the number
# itself is clipped (いっ, ろっ, はっ, じゅっ); None: no number changes.
_COUNTERS = {
    "本": ("ほん", "ぽん", "ぼん"),
    "匹": ("ひき", "ぴき", "びき"),
    "杯": ("はい", "ぱい", "ばい"),
    "冊": ("さつ", "さつ", "さつ"),
    "個": ("こ", "こ", "こ"),
    "足": ("そく", "そく", "ぞく"),
    "着": ("ちゃく", "ちゃく", "ちゃく"),
    "脚": ("きゃく", "きゃく", "きゃく"),
    "枚": ("まい", None, "まい"),
    "台": ("だい", None, "だい"),
    "羽": ("わ", None, "わ"),
    "頭": ("とう", "とう", "とう"),
    "箱": ("はこ", "ぱこ", "ばこ"),
    "袋": ("ふくろ", None, "ふくろ"),
    "組": ("くみ", None, "くみ"),
    "回": ("かい", "かい", "かい"),
}
# Which numbers are clipped: before か and は rows 一六八十; before さ and た rows 一八十.
_CLIPPED = {1: "いっ", 6: "ろっ", 8: "はっ", 10: "じゅっ"}
_NOT_CLIPPED_AFTER_SIX = frozenset("冊足着頭")
# 一袋 and 一組 are counted with the native numerals.
_NATIVE = {"袋": ("ひと", "ふた"), "組": ("ひと", "ふた"), "箱": ("ひと", "ふた")}

COUNTERS = (*_COUNTERS, "つ", "人")


def kanji_number(number: int) -> str:
    """Writes 0..9999 in kanji numerals (二十三).

    Raises:
      ValueError: the number is outside that range.
    """
    if not 0 <= number <= 9999:
        raise ValueError(f"number {number}: kanji numerals are written for 0 to 9999 only")
    if number == 0:
        return _DIGITS[0]
    written = ""
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            written += ("" if digit == 1 and name else _DIGITS[digit]) + name
    return written


def count(number: int, counter: str) -> str:
    """A counted number in kanji: 三冊, 二人, 四つ, 十.

    Raises:
      ValueError: a number above ten with つ, which has no such form.
    """
    if counter == "つ":
        if not 1 <= number <= 10:
            raise ValueError(f"number {number}: つ counts from 1 to 10")
        return "十" if number == 10 else _DIGITS[number] + "つ"
    return kanji_number(number) + counter


def reading(number: int, counter: str) -> str:
    """How a counted number from 1 to 10 is read: 三本 is さんぼん, 二人 is ふたり.

    Raises:
      ValueError: the counter is unknown or the number is not between 1 and 10.
    """
    if not 1 <= number <= 10:
        raise ValueError(f"number {number}: readings are known from 1 to 10")
    if counter == "つ":
        return _TSU[number - 1]
    if counter == "人":
        return _NIN[number - 1]
    if counter not in _COUNTERS:
        raise ValueError(f"counter {counter!r}: unknown; one of {COUNTERS}")
    plain, clipped, after_three = _COUNTERS[counter]
    if counter in _NATIVE and number <= 2:
        return _NATIVE[counter][number - 1] + plain
    if number == 3:
        return "さん" + after_three
    if clipped and number in _CLIPPED and not (number == 6 and counter in _NOT_CLIPPED_AFTER_SIX):
        return _CLIPPED[number] + clipped
    return _READINGS[number] + plain
