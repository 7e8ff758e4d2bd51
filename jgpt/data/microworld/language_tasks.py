"""Tasks about the language itself: readings, counters, forms, rewriting, gaps, sums."""

from __future__ import annotations

from jgpt.data.microworld.conjugation import PLAIN, POLITE, conjugate
from jgpt.data.microworld.counters import count, reading
from jgpt.data.microworld.frames import frame, frames, pick
from jgpt.data.microworld.instruction_words import FORMS, LISTED, READ_COUNTERS, VERBS, Task
from jgpt.data.microworld.things import THINGS
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

# --- words and forms --------------------------------------------------------------------------
_READING_ASKED = frames(
    "{~for_whom}、「{counted_word}」の読み方をひらがなで書いてください。",
    "{~person}が書いた「{counted_word}」は何と読みますか。",
)
_COUNT_ASKED = frames(
    "{~for_whom}、{one:member}の数が{n:number}のときの数え方を漢字で書いてください。",
    "{~person}が持っている{one:member}の数が{n:number}のとき、何と数えますか。",
)
_FORM_ASKED = frames(
    "{~for_whom}、「{verb_phrase}」を{form_name}に直してください。",
    "{~written_by}「{verb_phrase}」の{form_name}を答えてください。",
)
_LENGTH_ASKED = frames(
    "{~for_whom}、「{one:member}」の文字の数を数えてください。",
    "{~written_by}「{one:member}」は何文字ですか。",
)
_SUM_ASKED = frames(
    "{~for_whom}、{calculation}を計算してください。",
    "{~person}が{~public_place}で出した問題です。{calculation}はいくつですか。",
)


def _reading(writer: Writer) -> Task:
    number, counter = writer.number(1, 10), writer.pick(READ_COUNTERS)
    answer = reading(number, counter)
    return Task(
        writer.say(_READING_ASKED, counted_word=count(number, counter)), f"{answer}です。", answer
    )


def _counter(writer: Writer) -> Task:
    thing, number = pick(THINGS, writer.random), writer.number(1, 10)
    answer = count(number, thing.counter)
    return Task(writer.say(_COUNT_ASKED, one=thing.name, n=number), f"{answer}です。", answer)


def _form(writer: Writer) -> Task:
    verb, name = writer.pick(VERBS), writer.pick(tuple(FORMS))
    form = FORMS[name]
    answer = conjugate(verb, form or "nonpast", PLAIN if form else POLITE)
    return Task(
        writer.say(_FORM_ASKED, verb_phrase=verb, form_name=name), f"「{answer}」です。", answer
    )


def _length(writer: Writer) -> Task:
    word = writer.pick(WORLD.members[writer.pick(LISTED)])
    return Task(writer.say(_LENGTH_ASKED, one=word), f"{len(word)}文字です。", f"{len(word)}文字")


def _sum(writer: Writer) -> Task:
    one, two = writer.number(2, 99), writer.number(2, 99)
    if one < two:
        one, two = two, one
    sign, value = writer.pick((("+", one + two), ("-", one - two), ("×", one * two)))
    asked = writer.say(_SUM_ASKED, calculation=f"{one}{sign}{two}")
    return Task(asked, f"{value}です。", str(value))


# --- rewriting -------------------------------------------------------------------------------
_REWRITE_ASKED = {
    (PLAIN, POLITE): frames(
        "{~written_by}次の文を丁寧な形に直してください。",
        "{~for_whom}、次の文を丁寧な言い方にしてください。",
    ),
    (POLITE, PLAIN): frames(
        "{~written_by}次の文を普通の形に直してください。",
        "{~for_whom}、次の文を普通の言い方にしてください。",
    ),
}
_TENSE_ASKED = {
    ("nonpast", "past"): frames(
        "{~written_by}次の文を過去の文に直してください。",
        "{~for_whom}、次の文を昨日のこととして書き直してください。",
    ),
    ("past", "past_negative"): frames(
        "{~written_by}次の文を否定の文に直してください。",
    ),
    ("nonpast", "negative"): frames(
        "{~for_whom}、次の文を否定の文に直してください。",
    ),
}
# Sentences whose last verb stands in a form to be chosen.
_PATTERNS = (
    "{a:person}は{place:public_place}の{near}で{b:person}と[話す|FORM]。",
    "{a:person}は{b:person}に{thing:fine_present}を[贈る|FORM]。",
    "{a:person}と{b:person}は{town}の{place:public_place}へ[行く|FORM]。",
    "{a:person}は{day:weekday}の{daypart}に{night_act.te}から[寝る|FORM]。",
    "{b:person}は{a:person}のために{dish}を[作る|FORM]。",
    "{a:person}は{place:public_place}で{lost:belongings}を[見つける|FORM]。",
    "{day:weekday}の{daypart}、{a:person}は{bought}[買う|FORM]。",
    "{a:person}は{b:person}から{town}の話を[聞く|FORM]。",
    "{b:person}の{gadget}は{town}の{landmark}の前で[壊れる|FORM]。",
    "{a:person}は{b:person}が{chore.base}のを[手伝う|FORM]。",
    "{season}の{daypart}、{town}では{wind}が[吹く|FORM]。",
    "{a:person}は{month}に{b:person}と{town}を[訪ねる|FORM]。",
    "{a:person}は{place:public_place}まで{minutes}[歩く|FORM]。",
    "{town}の{place:public_place}は{day:weekday}も{a:person}には[楽しい|FORM]。",
)
_SENTENCES = {
    form: frames(*(pattern.replace("FORM", form) for pattern in _PATTERNS))
    for form in ("nonpast", "past", "negative", "past_negative")
}


def _rewrite(writer: Writer) -> Task:
    number = int(writer.random() * len(_PATTERNS))
    if writer.random() < 0.5:
        source = PLAIN if writer.random() < 0.6 else POLITE
        target = 1 - source
        form = writer.pick(("nonpast", "past", "past_negative"))
        asked = writer.say(_REWRITE_ASKED[source, target])
        given, wanted = _SENTENCES[form][number], _SENTENCES[form][number]
    else:
        source = target = writer.register
        before, after = writer.pick(tuple(_TENSE_ASKED))
        asked = writer.say(_TENSE_ASKED[before, after])
        given, wanted = _SENTENCES[before][number], _SENTENCES[after][number]
    sentence = given.write(writer.cast, writer.random, source)
    answer = wanted.rewrite(writer.cast, target)
    return Task(f"{asked}\n{sentence}", answer, answer)


_GAPS = (
    ("{a:person}は{town}の{place:public_place}□{fine:fine_present}を[買う|past]。", "で"),
    ("{a:person}は{b:person}と{place:public_place}□[行く|past]。", "へ"),
    ("{day:weekday}の{daypart}、{a:person}は{b:person}□{fine:fine_present}を[渡す|past]。", "に"),
    ("{a:person}は{place:public_place}で{fine:fine_present}□[選ぶ|past]。", "を"),
    ("{town}の{place:public_place}には{b:person}□[いる|past]。", "が"),
    ("{a:person}は{place:public_place}から{landmark}□{minutes}[歩く|past]。", "まで"),
    ("{a:person}は{b:person}□一緒に{town}の{landmark}を[見る|past]。", "と"),
)
_GAP_FRAMES = tuple((frame(pattern), particle) for pattern, particle in _GAPS)
_GAP_ASKED = frames(
    "{~for_whom}、次の文の□に入る助詞を一つ書いてください。",
    "{~written_by}次の文の□には何が入りますか。",
)


def _gap(writer: Writer) -> Task:
    asked = writer.say(_GAP_ASKED)
    sentence, particle = writer.pick(_GAP_FRAMES)
    return Task(f"{asked}\n{writer.say(sentence)}", f"「{particle}」です。", particle)


LANGUAGE_TASKS = (_reading, _counter, _form, _length, _sum, _rewrite, _rewrite, _rewrite, _gap)
