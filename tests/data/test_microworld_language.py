"""The conjugation engine and the counters against forms written by hand."""
# ruff: noqa: E501  (tables of forms)

from __future__ import annotations

import pytest

from jgpt.data.microworld.conjugation import PLAIN, POLITE, Forms, conjugate
from jgpt.data.microworld.counters import count, kanji_number, reading
from jgpt.data.microworld.frames import Frame, define, parse

KNOWN_FORMS = """
書く te 書いて / 泳ぐ te 泳いで / 行く te 行って / 死ぬ te 死んで / 話す te 話して / 待つ te 待って / 買う te 買って
読む te 読んで / 遊ぶ te 遊んで / 走る te 走って / 食べる te 食べて / 来る te 来て / くる te きて / する te して
散歩する te 散歩して / 持っていく te 持っていって / ある te あって
書く ta 書いた / 泳ぐ ta 泳いだ / 行く ta 行った / 死ぬ ta 死んだ / 会う ta 会った / 飛ぶ ta 飛んだ / 見る ta 見た
読む nai 読まない / 買う nai 買わない / 待つ nai 待たない / 話す nai 話さない / 食べる nai 食べない / ある nai ない
来る nai 来ない / くる nai こない / する nai しない / 帰る nai 帰らない / 着る nai 着ない / 切る nai 切らない
読む nakatta 読まなかった / 見る naide 見ないで / 飲む nakute 飲まなくて
読む ba 読めば / 買う ba 買えば / 食べる ba 食べれば / する ba すれば / 来る ba 来れば / くる ba くれば / ない ba なければ
読む tara 読んだら / 行く tara 行ったら / 赤い tara 赤かったら / 静かだ tara 静かだったら / 飲む tari 飲んだり
歩く nagara 歩きながら / 話す nagara 話しながら / 食べる nagara 食べながら
行く volitional 行こう / 食べる volitional 食べよう / する volitional しよう / 来る volitional 来よう / くる volitional こよう
書く imperative 書け / 見る imperative 見ろ / する imperative しろ / 来る imperative 来い
読む can+nonpast 読める / 泳ぐ can+past 泳げた / 食べる can+nonpast 食べられる / 来る can+negative 来られない
する can+past できた / 会う can+past_negative 会えなかった
褒める passive+past 褒められた / 降る passive+te 降られて / 飛ばす passive+past 飛ばされた / 招待する passive+past 招待された
読む causative+past 読ませた / 食べる causative+nonpast 食べさせる / する causative+te させて
読む want+nonpast 読みたい / 行く want+past 行きたかった / する want+negative したくない
読む progressive+past 読んでいた / 着る progressive+negative 着ていない / 行く progressive+nonpast 行っている
寝坊する regret+past 寝坊してしまった / 助ける favour+past 助けてくれた / 読む must+nonpast 読まなければならない
読む begin+past 読み始めた / 飲む excess+past 飲みすぎた / 使う easy+nonpast 使いやすい
赤い past 赤かった / 赤い negative 赤くない / 赤い te 赤くて / 赤い adverb 赤く / いい past よかった / いい negative よくない
寒い become+past 寒くなった / 静かだ become+past 静かになった
静かだ past 静かだった / 静かだ negative 静かではない / 静かだ te 静かで / 静かだ attributive 静かな / 医者だ past 医者だった
"""
KNOWN_POLITE = """
読む nonpast 読みます / 読む past 読みました / 読む negative 読みません / 読む past_negative 読みませんでした
読む volitional 読みましょう / 読む want+past 読みたかったです / 読む progressive+nonpast 読んでいます
食べる past 食べました / 来る past 来ました / くる past きました / する past しました / ある negative ありません
赤い nonpast 赤いです / 赤い past 赤かったです / 赤い negative 赤くありません / いい past よかったです
静かだ nonpast 静かです / 静かだ past 静かでした / 静かだ negative 静かではありません
医者だ past_negative 医者ではありませんでした / 行く must+nonpast 行かなければなりません / 読む can+past 読めました
行く ask 行きますか / 行く invite 行きませんか / 待つ please 待ってください / 晴れる probably 晴れるでしょう
"""


def _cases(table: str, register: int) -> list[tuple[str, str, str, int]]:
    entries = (entry.split() for entry in table.replace("\n", " / ").split(" / ") if entry.strip())
    return [(word, form, expected, register) for word, form, expected in entries]


CASES = _cases(KNOWN_FORMS, PLAIN) + _cases(KNOWN_POLITE, POLITE)


def test_there_are_enough_known_forms():
    assert len(CASES) >= 100


@pytest.mark.parametrize(("word", "form", "expected", "register"), CASES)
def test_known_form(word, form, expected, register):
    assert conjugate(word, form, register) == expected


def test_phrases_conjugate_by_their_last_word():
    forms = Forms("図書館で本を借りる", POLITE)
    assert forms["past"] == "図書館で本を借りました"
    assert forms["te"] == "図書館で本を借りて"


def test_every_verb_of_the_world_has_its_class():
    """帰る and 着る look alike; a verb taken for the wrong class would give 帰て or 着って."""
    assert conjugate("家へ帰る", "te") == "家へ帰って"
    assert conjugate("服を着る", "te") == "服を着て"
    assert conjugate("部屋に入る", "te") == "部屋に入って"
    assert conjugate("庭にいる", "te") == "庭にいて"
    assert conjugate("病気の人をみる", "te") == "病気の人をみて"


@pytest.mark.parametrize(
    ("word", "form"), [("読む", "pluperfect"), ("本", "te"), ("赤い", "want+past")]
)
def test_unknown_words_and_forms_are_refused(word, form):
    with pytest.raises(ValueError, match=r"form|word"):
        conjugate(word, form)


def test_counters_in_kanji():
    assert [count(n, "冊") for n in (1, 2, 3, 10)] == ["一冊", "二冊", "三冊", "十冊"]
    assert [count(n, "つ") for n in (1, 2, 9, 10)] == ["一つ", "二つ", "九つ", "十"]
    assert [kanji_number(n) for n in (0, 10, 11, 20, 105, 110, 2000, 1234)] == (
        ["〇", "十", "十一", "二十", "百五", "百十", "二千", "千二百三十四"]
    )
    with pytest.raises(ValueError, match="つ"):
        count(11, "つ")


@pytest.mark.parametrize(
    ("number", "counter", "expected"),
    [
        *(
            (1, "本", "いっぽん"),
            (3, "本", "さんぼん"),
            (6, "本", "ろっぽん"),
            (8, "本", "はっぽん"),
        ),
        *(
            (2, "本", "にほん"),
            (10, "本", "じゅっぽん"),
            (1, "匹", "いっぴき"),
            (3, "匹", "さんびき"),
        ),
        *((1, "人", "ひとり"), (2, "人", "ふたり"), (4, "人", "よにん"), (1, "冊", "いっさつ")),
        *((6, "冊", "ろくさつ"), (6, "個", "ろっこ"), (3, "足", "さんぞく"), (1, "枚", "いちまい")),
        *((5, "つ", "いつつ"), (8, "つ", "やっつ"), (3, "羽", "さんわ"), (1, "袋", "ひとふくろ")),
        *(
            (8, "頭", "はっとう"),
            (6, "頭", "ろくとう"),
            (7, "杯", "ななはい"),
            (3, "杯", "さんばい"),
        ),
    ],
)
def test_counter_readings(number, counter, expected):
    assert reading(number, counter) == expected


def test_a_frame_is_written_in_both_registers():
    define("test_guest", ["健太", "美咲"])
    frame = Frame("{guest:test_guest}は本を[読む|past]。[うん/はい]。")
    assert frame.write({"guest": "健太"}, lambda: 0.0, PLAIN) == "健太は本を読んだ。うん。"
    assert frame.write({"guest": "健太"}, lambda: 0.0, POLITE) == "健太は本を読みました。はい。"
    assert frame.write({}, lambda: 0.9, PLAIN).startswith("美咲は")


@pytest.mark.parametrize(
    "source", ["{guest:test_guest}は[読む]。", "{未完は", "本を[読む|pluperfect]。"]
)
def test_a_broken_frame_is_refused(source):
    with pytest.raises(ValueError, match=r"frame|form"):
        parse(source)
