"""Instructions with responses: most can be checked, some are free (a note, a recipe, advice)."""
# ruff: noqa: E501  (a sentence frame stays on one line, to be read as a sentence)

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jgpt.data.microworld import dialogue_scripts, phrases, questions  # noqa: F401  (define slot types used here)
from jgpt.data.microworld.conjugation import PLAIN, POLITE, conjugate
from jgpt.data.microworld.counters import count, kanji_number, reading
from jgpt.data.microworld.frames import Frame, Random, define, frame, frames, pick, slot_type
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.nature import PLANTS, season_of
from jgpt.data.microworld.people import HOBBIES
from jgpt.data.microworld.things import THINGS
from jgpt.data.microworld.towns import PUBLIC_PLACES
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer


class Task(NamedTuple):
    """What is asked, what is responded, and the checkable answer if there is one."""

    asked: str
    response: str
    answer: str | None


# --- slot types ---------------------------------------------------------------------------
_LISTED = tuple(category for category, members in WORLD.members.items() if len(members) >= 5)
define("listed", _LISTED)
define("how_many", "二つ 三つ 四つ 五つ".split())
define("member", [name for category, members in WORLD.members.items() for name in members])
define("list2", patterns=["{~member}、{~member}"])
define("list3", patterns=["{~member}、{~member}、{~member}"])
define("list4", patterns=["{~member}、{~member}、{~member}、{~member}"])
define("list5", patterns=["{~member}、{~member}、{~member}、{~member}、{~member}"])
_READ_COUNTERS = (*COUNTERS_OF_THINGS, "羽", "頭", "人", "回")
define("reading", [reading(n, c) for c in _READ_COUNTERS for n in range(1, 11)])
define("counted_word", [count(n, c) for c in _READ_COUNTERS for n in range(1, 11)])
define("particle", "を に へ で が から まで と".split())
define("calculation", patterns=["{~number}+{~number}", "{~number}-{~number}", "{~number}×{~number}"])
_VERBS = tuple(dict.fromkeys([*HOBBIES, *(act for acts in PUBLIC_PLACES.values() for act in acts)]))
define("verb_phrase", _VERBS)
# The forms asked for by name.
_FORMS = {"て形": "te", "過去の形": "ta", "否定の形": "nai", "ます形": None, "ば形": "ba", "たい形": "want+nonpast"}
define("form_name", _FORMS)
define("conjugated", dict.fromkeys(
    conjugate(verb, form or "nonpast", PLAIN if form else POLITE) for verb in _VERBS for form in _FORMS.values()
))
define("for_whom", patterns=["{~person}に教えたいので", "{~lesson}の宿題で使うので", "{~weekday}に{~person}と話すので", "{~month}の{~contest}で使うので", "{~person}から聞かれたので"])
define("written_by", patterns=["{~person}が{~weekday}に書いた", "{~lesson}の時間に{~person}が書いた", "{~person}の日記にある", "{~person}への手紙に書く"])

define("bad_weather", predicates="雨が降る 雪が降る 風が強くなる 寒くなる 暑くなる 雷が鳴る")
define("when_past", "昨日 先日 先週 この間 一昨日".split())
define("cut", "細かく 薄く 大きく 四つに 丸く 小さく".split())
define("seasoning", "塩 しょうゆ みそ 砂糖".split())
define("seasoning2", "酢 バター ごま油 こしょう だし".split())
_RESPOND = frames("{answer:member}です。", "{answer:list2}です。", "{answer:list3}です。", "{answer:list4}です。", "{answer:list5}です。", "{answer:reading}です。", "{answer:counted_word}です。", "「{answer:particle}」です。", "「{answer:conjugated}」です。", "{answer:number}です。", "{answer:number}円です。", "{answer:number}文字です。", "{answer:listed}です。", "{answer:season}です。", "{answer:fact_object}です。")


# --- lists, order, classes --------------------------------------------------------------------
_LIST_ASKED = frame("{~for_whom}、{listed}を{how_many}挙げてください。")
_ORDER_ASKED = frames("{~for_whom}、{list3}を値段の安い順に並べてください。", "{~for_whom}、{list3}を安い物から順に書いてください。")
_DEAR_ASKED = frames("{~for_whom}、{list2}のうち高いほうを答えてください。", "{~person}が買うなら、{one:member}と{two:member}ではどちらが高いですか。")
_ODD_ASKED = frames("{~for_whom}、{list4}の中から仲間でない物を選んでください。", "{list4}の中で、仲間外れはどれですか。")
_CLASS_ASKED = frames("{~for_whom}、{one:member}が何の仲間か答えてください。", "{~person}が{~public_place}で見た{one:member}は何の仲間ですか。")


def _list_members(writer: Writer) -> Task:
    category = writer.pick(_LISTED)
    number = writer.number(2, min(5, len(WORLD.members[category]) - 1))
    chosen = writer.shuffled(list(WORLD.members[category]))[:number]
    asked = writer.say(_LIST_ASKED, listed=category, how_many=kanji_number(number) + "つ")
    answer = "、".join(chosen)
    return Task(asked, f"{answer}です。", answer)


def _order(writer: Writer) -> Task:
    chosen: dict[int, str] = {}
    while len(chosen) < 3:
        thing = pick(THINGS, writer.random)
        chosen.setdefault(thing.price, thing.name)
    asked = writer.say(_ORDER_ASKED, list3="、".join(writer.shuffled(list(chosen.values()))))
    answer = "、".join(name for _, name in sorted(chosen.items()))
    return Task(asked, f"{answer}です。", answer)


def _dearer(writer: Writer) -> Task:
    one, two = pick(THINGS, writer.random), pick(THINGS, writer.random)
    while one.price == two.price:
        two = pick(THINGS, writer.random)
    asked = writer.say(_DEAR_ASKED, one=one.name, two=two.name, list2=f"{one.name}、{two.name}")
    answer = max((one, two), key=lambda thing: thing.price).name
    return Task(asked, f"{answer}です。", answer)


def _odd(writer: Writer) -> Task:
    category, other = writer.shuffled(list(_THING_CATEGORIES))[:2]
    members = writer.shuffled(list(WORLD.members[category]))[:3]
    odd = writer.pick(WORLD.members[other])
    asked = writer.say(_ODD_ASKED, list4="、".join(writer.shuffled([*members, odd])))
    return Task(asked, f"{odd}です。", odd)


_THING_CATEGORIES = ("本", "文房具", "切り花", "パン", "菓子", "果物", "野菜", "服", "靴", "おもちゃ", "楽器", "哺乳類", "鳥", "昆虫", "町")


def _class(writer: Writer) -> Task:
    category = writer.pick(tuple(c for c in _THING_CATEGORIES if c not in ("町", "切り花")))
    asked = writer.say(_CLASS_ASKED, one=writer.pick(WORLD.members[category]))
    return Task(asked, f"{category}です。", category)


# --- words and forms --------------------------------------------------------------------------
_READING_ASKED = frames("{~for_whom}、「{counted_word}」の読み方をひらがなで書いてください。", "{~person}が書いた「{counted_word}」は何と読みますか。")
_COUNT_ASKED = frames("{~for_whom}、{one:member}の数が{n:number}のときの数え方を漢字で書いてください。", "{~person}が持っている{one:member}の数が{n:number}のとき、何と数えますか。")
_FORM_ASKED = frames("{~for_whom}、「{verb_phrase}」を{form_name}に直してください。", "{~written_by}「{verb_phrase}」の{form_name}を答えてください。")
_LENGTH_ASKED = frames("{~for_whom}、「{one:member}」の文字の数を数えてください。", "{~written_by}「{one:member}」は何文字ですか。")
_SUM_ASKED = frames("{~for_whom}、{calculation}を計算してください。", "{~person}が{~public_place}で出した問題です。{calculation}はいくつですか。")


def _reading(writer: Writer) -> Task:
    number, counter = writer.number(1, 10), writer.pick(_READ_COUNTERS)
    answer = reading(number, counter)
    return Task(writer.say(_READING_ASKED, counted_word=count(number, counter)), f"{answer}です。", answer)


def _counter(writer: Writer) -> Task:
    thing, number = pick(THINGS, writer.random), writer.number(1, 10)
    answer = count(number, thing.counter)
    return Task(writer.say(_COUNT_ASKED, one=thing.name, n=number), f"{answer}です。", answer)


def _form(writer: Writer) -> Task:
    verb, name = writer.pick(_VERBS), writer.pick(tuple(_FORMS))
    form = _FORMS[name]
    answer = conjugate(verb, form or "nonpast", PLAIN if form else POLITE)
    return Task(writer.say(_FORM_ASKED, verb_phrase=verb, form_name=name), f"「{answer}」です。", answer)


def _length(writer: Writer) -> Task:
    word = writer.pick(WORLD.members[writer.pick(_LISTED)])
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
    (PLAIN, POLITE): frames("{~written_by}次の文を丁寧な形に直してください。", "{~for_whom}、次の文を丁寧な言い方にしてください。"),
    (POLITE, PLAIN): frames("{~written_by}次の文を普通の形に直してください。", "{~for_whom}、次の文を普通の言い方にしてください。"),
}
_TENSE_ASKED = {
    ("nonpast", "past"): frames("{~written_by}次の文を過去の文に直してください。", "{~for_whom}、次の文を昨日のこととして書き直してください。"),
    ("past", "past_negative"): frames("{~written_by}次の文を否定の文に直してください。",),
    ("nonpast", "negative"): frames("{~for_whom}、次の文を否定の文に直してください。",),
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
_GAP_ASKED = frames("{~for_whom}、次の文の□に入る助詞を一つ書いてください。", "{~written_by}次の文の□には何が入りますか。")


def _gap(writer: Writer) -> Task:
    asked = writer.say(_GAP_ASKED)
    sentence, particle = writer.pick(_GAP_FRAMES)
    return Task(f"{asked}\n{writer.say(sentence)}", f"「{particle}」です。", particle)


# --- the world -------------------------------------------------------------------------------
_FACT_ASKED = frames("{~for_whom}、{subject:fact_subject}の{relation}を答えてください。", "{~person}が知りたがっている{subject:fact_subject}の{relation}は何ですか。")
_FACTS = tuple(
    fact for fact in WORLD.facts() if fact.relation not in ("母", "父", "兄", "姉", "弟", "妹", "息子", "娘", "祖父", "祖母", "孫", "種類")
)
_SEASON_ASKED = frames("{~for_whom}、{plant:member}の花が咲く季節を答えてください。", "{~person}の庭の{plant:member}はどの季節に咲きますか。")


def _fact(writer: Writer) -> Task:
    fact = pick(_FACTS, writer.random)
    asked = writer.say(_FACT_ASKED, subject=fact.subject, relation=fact.relation)
    answer = fact.object + ("こと" if fact.relation in ("趣味", "仕事") else "")
    return Task(asked, f"{answer}です。", answer)


def _season(writer: Writer) -> Task:
    plant = pick(PLANTS, writer.random)
    answer = season_of(plant.month)
    return Task(writer.say(_SEASON_ASKED, plant=plant.name), f"{answer}です。", answer)


# --- free responses ----------------------------------------------------------------------------
_NOTE_ASKED = frames("{a:person}の代わりに、{b:person}へのお礼の手紙を短く書いてください。", "{b:person}に{lost:belongings}を届けてもらった{a:person}のお礼の手紙を書いてください。")
_NOTE = (
    frames("{b:person}さん、{~when_past}は{lost:belongings}を届けてくださり、ありがとうございました。", "{b:person}さん、{~season}らしい日が続いていますが、お元気ですか。"),
    frames("{lost:belongings}は{~person}からもらった大切な物でした。", "{~landmark}で{lost:belongings}がないと気づいたときは、とても困りました。"),
    frames("{b:person}さんが{~spot}で見つけてくださったと{~person}さんから聞きました。", "おかげで、{~weekday}には{~public_place}へ行くことができました。"),
    frames("お礼に{~bought_present}を{~person}さんに預けました。", "今度は{~weekday}に{~town}の{~outdoor_place}でお会いしましょう。"),
)
_COOK_ASKED = frames("{~person}のために、{dish}の作り方を教えてください。", "{~weekday}に{~person}と{dish}を作るので、作り方を順に書いてください。")
_COOK = (
    frames("まず、{veg1:vegetable}を洗って{~cut}切ります。", "初めに、{~shop_quality}八百屋で{veg1:vegetable}と{veg2:vegetable}を買います。"),
    frames("次に、{veg2:vegetable}と{veg1:vegetable}を鍋に入れて{~minutes}煮ます。", "それから、{veg2:vegetable}を{~cut}切って、{veg1:vegetable}に加えます。"),
    frames("火を弱くして、{~minutes}ほど待ってから{~seasoning}と{~seasoning2}で味をつけます。", "{~minutes}たったら、{~seasoning}を少し入れて混ぜます。"),
    frames("最後に、{~colour}皿に盛ると{dish}のできあがりです。", "できた{dish}は、{~hot_drink}と一緒に食べるとおいしいです。"),
)
_ADVICE_ASKED = frames("{~weekday}に{place:public_place}で{~hobby.base}予定ですが、{sky.base:bad_weather}そうなので、助言を書いてください。", "{a:person}は{~since}{symptom.base:symptom}そうなので、{b:person}の代わりに助言を書いてください。")
_WEATHER_ADVICE = (
    frames("{sky.base:bad_weather}なら、{~weather_item}と{~weather_item}を持っていくといいです。", "{sky.base:bad_weather}前に、{place:public_place}の人に電話で聞いてみましょう。"),
    frames("{~day_clock}より前に家を出て、{~landmark}で様子を見てください。", "{place:public_place}の{~near}には{~shop}もあるので、そこで休めます。"),
    frames("無理なら、{~weekday}に{~hobby.base}ことにしてもいいでしょう。", "{~person}さんにも早めに知らせておくと安心です。"),
)
_HEALTH_ADVICE = (
    frames("{symptom.base:symptom}ときは、{~advice.base}といいです。", "{~since}続いているなら、{~weekday}に病院へ行きましょう。"),
    frames("{~warm_dish}を食べて、{~advice.te}ください。", "{~hot_drink}を飲んでから、{~advice.te}ください。"),
    frames("{~recovery_days}になってもよくならなければ、{~medicine}をもらうといいでしょう。", "{~contest}や{~hobby.base}ことは、{~recovery_days}まで休みましょう。"),
)


def _paragraph(writer: Writer, steps: tuple[tuple[Frame, ...], ...]) -> str:
    return "".join(writer.say(step) for step in steps)


def _note(writer: Writer) -> Task:
    return Task(writer.say(_NOTE_ASKED), _paragraph(writer, _NOTE), None)


def _cook(writer: Writer) -> Task:
    one, two = writer.shuffled(list(slot_type("vegetable").words))[:2]
    return Task(writer.say(_COOK_ASKED, veg1=one, veg2=two), _paragraph(writer, _COOK), None)


def _advice(writer: Writer) -> Task:
    about = writer.number(0, 1)
    writer.register = POLITE
    return Task(writer.say(_ADVICE_ASKED[about]), _paragraph(writer, (_WEATHER_ADVICE, _HEALTH_ADVICE)[about]), None)


_TASKS: tuple[Callable[[Writer], Task], ...] = (
    *(_list_members, _list_members, _order, _dearer, _odd, _class, _reading, _counter, _form, _length, _sum),
    *(_rewrite, _rewrite, _rewrite, _gap, _fact, _fact, _season, _note, _note, _cook, _cook, _advice, _advice),
)


def make(random: Random) -> tuple[str, str | None, str | None]:
    """An instruction with its response; free responses have neither prompt nor answer."""
    writer = Writer(random)
    task = pick(_TASKS, random)(writer)
    prompt = f"【指示】{task.asked}\n【応答】"
    return prompt + task.response, prompt if task.answer else None, task.answer
