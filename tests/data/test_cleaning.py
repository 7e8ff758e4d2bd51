"""What each filter takes away, and what it must leave."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jgpt.config import CleaningConfig
from jgpt.data import text as filters
from jgpt.data.cleaning import CleaningReport, clean
from jgpt.data.document import Document
from jgpt.tokenizers.normalization import nfkc

RULE = "-" * 55


@pytest.mark.parametrize(
    "before, after",
    [
        ("ＪＲ１２３", "JR123"),
        ("ｶﾞｷﾞ ﾊﾟﾝ ｱｲｳ｡｢ﾃｽﾄ｣", "ガギ パン アイウ。「テスト」"),
        ("㍻元年、㈱山田の㌔", "平成元年、(株)山田のキロ"),
        ("か\u3099き\u3099", "がぎ"),
        ("no\u00a0break ﬁle", "no break file"),
    ],
)
def test_nfkc_unifies_widths_and_compatibility_characters(before, after):
    assert nfkc(before) == after


@pytest.mark.parametrize(
    "text", ["……", "〜と～", "　段落", "本当！？（はい）", "①と②", "10²と3½", "￥５"]
)
def test_nfkc_keeps_what_japanese_needs(text):
    kept = text.replace("５", "5")
    assert nfkc(text) == kept


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_nfkc_is_idempotent(text):
    once = nfkc(text)
    assert nfkc(once) == once


def test_control_characters_go_and_line_ends_stay():
    text = "\ufeff一\r\n二\r三\u2028四\x00\x07五\u200b六\u00ad七\t八\ufffd九\x85十\udcff"
    assert filters.strip_control(text) == "一\n二\n三\n四五六七 八九\n十"


@pytest.mark.parametrize(
    "before, after",
    [
        ("｜吾輩《わがはい》は猫《ねこ》である", "吾輩は猫である"),
        ("青い｜ＡＢＣ《エービーシー》だ", "青いＡＢＣだ"),
        ("※［＃「てへん＋劣」、第3水準1-84-77］かく", "かく"),
        ("※［＃「口＋世」、U+546D、58-9］く", "呭く"),
        ("［＃３字下げ］一［＃「一」は中見出し］", "一"),
        ("蝙※［＃「虫＋畐」、5-9］［＃「蝙※［＃「虫＋畐」、5-9］」に傍点］が", "蝙が"),
        ("雑誌《文藝》の記事、彼の《声》", "雑誌《文藝》の記事、彼の《声》"),
        ("本文。\n底本：「全集」講談社\n入力：某\n青空文庫作成ファイル：\n", "本文。\n"),
        ("底本：という言葉を説明する", "底本：という言葉を説明する"),
        (
            f"題\n{'-' * 55}\n【テキスト中に現れる記号について】\n《》：ルビ\n{'-' * 55}\n本文",
            "題\n本文",
        ),
    ],
)
def test_aozora_marks_go_and_quotations_stay(before, after):
    assert filters.strip_aozora(before) == after


def test_boilerplate_lines_go_and_sentences_about_them_stay():
    sentence = (
        "彼はプライバシーポリシーという言葉を初めて聞き、"
        + "長い文の中でそれを何度も口にした。" * 5
    )
    lines = ["本文です。", "Copyright © 2020 某社", "続きを読む", sentence, "次のページへ"]
    text = "\n".join(lines)
    assert filters.drop_boilerplate(text) == f"本文です。\n{sentence}"


def test_repeated_lines_go_and_short_replies_stay():
    line = "これはどのページにもある長い見出しです"
    assert (
        filters.drop_repeated_lines(f"{line}\nはい\n{line} \nはい\n末尾")
        == f"{line}\nはい\nはい\n末尾"
    )


def test_ratios_tell_languages_apart():
    assert filters.japanese_ratio("日本語の文、ABCも") == pytest.approx(6 / 9)
    assert filters.kana_ratio("日本語の文、ABCも") == pytest.approx(2 / 9)
    assert filters.kana_ratio("这是一个中文句子。") == 0
    assert filters.japanese_ratio("123、。") == 0


@settings(max_examples=100, deadline=None)
@given(st.text("あ。」\n！a", max_size=200), st.integers(1, 20))
def test_pieces_join_to_the_text_and_keep_the_limit(text, limit):
    pieces = filters.cut_at_sentences(text, limit)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_pieces_end_with_sentences():
    text = "「一つ目です。」二つ目の文です。三つ目はとても長い文で切れ目がありません"
    assert filters.cut_at_sentences(text, 16) == [
        "「一つ目です。」二つ目の文です。",
        "三つ目はとても長い文で切れ目があ",
        "りません",
    ]


CONFIG = CleaningConfig(
    drop_boilerplate=True,
    drop_repeated_lines=True,
    min_characters=4,
    max_characters=30,
    min_japanese_ratio=0.5,
    min_kana_ratio=0.1,
    exact_dedup=True,
    minhash_threshold=0.8,
)


def test_the_report_accounts_for_every_document_and_character():
    """Of a text that meets every filter: in = out + removed, and each filter counts its own."""
    long_text = "".join(f"{n}番目の駅で赤い電車を待つ人がいた。" for n in "一二三四五六")
    near = long_text.replace("赤い", "青い", 1)
    texts = {
        "kept": "朝、町を歩いた。\r\n犬｜吠《ほ》える。",
        "min_characters": "はい",
        "min_japanese_ratio": "an english text だ",
        "min_kana_ratio": "这是一个中文句子，没有假名。",
        "exact_dedup": "朝、町を歩いた。\n犬吠える。",
        "long": long_text,
        "minhash_threshold": near,
        "drop_boilerplate": "夕方、家へ帰った。\nCopyright 2020",
    }
    report = CleaningReport()
    documents = [Document(text, id=name) for name, text in texts.items()]
    cleaned = list(clean(documents, CONFIG, report))
    assert [d.id for d in cleaned] == [
        "kept",
        *(f"long#{n}" for n in range(6)),
        "drop_boilerplate",
    ]
    assert report.documents_in == len(texts)
    assert report.documents_out == len(cleaned)
    for name in ("min_characters", "min_japanese_ratio", "min_kana_ratio"):
        assert report.filters[name].documents == 1
        assert report.filters[name].characters == len(texts[name])
    assert report.filters["exact_dedup"].documents == 1
    assert report.filters["minhash_threshold"].documents == 1
    assert report.filters["drop_boilerplate"].changed == 1
    assert report.filters["strip_control"].changed == 1
    removed = sum(count.characters for count in report.filters.values())
    assert report.characters_in == report.characters_out + removed
    assert report.characters_out == sum(len(d.text) for d in cleaned)
    assert "minhash_threshold" in report.table()
    assert CleaningReport.from_dict(report.to_dict()) == report


def test_reports_of_several_sources_add_up():
    total = CleaningReport()
    for _ in range(2):
        report = CleaningReport()
        list(clean([Document("はい"), Document("今日は晴れた。")], CONFIG, report))
        total.add(report)
    assert total.documents_in == 4
    assert total.filters["min_characters"].documents == 2


def test_switched_off_filters_change_nothing():
    off = CleaningConfig(normalize="none", strip_control=False, strip_aozora=False)
    text = "ＡＢＣ\t《ルビ》…\u200b終"
    assert [d.text for d in clean([Document(text), Document("")], off)] == [text]


def test_indents_stay_and_blank_edges_go():
    cleaned = list(clean([Document("\n \n　けれど、\n　雨。\n\n ")], CONFIG))
    assert [document.text for document in cleaned] == ["　けれど、\n　雨。"]


def test_cleaning_is_idempotent():
    rng = random.Random(7)
    pool = "あいう漢字ＡＢ１２。、！？「」…～\u3000\n\t｜《》［＃］㌔ｶﾞ"
    texts = ["".join(rng.choices(pool, k=200)) for _ in range(30)]
    config = CleaningConfig()
    once = [d.text for d in clean(map(Document, texts), config)]
    assert [d.text for d in clean(map(Document, once), config)] == once
