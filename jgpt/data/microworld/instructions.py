"""Instructions with responses: most can be checked, some are free (a note, a recipe, advice)."""

from __future__ import annotations

from collections.abc import Callable

from jgpt.data.microworld.conjugation import POLITE
from jgpt.data.microworld.counters import kanji_number
from jgpt.data.microworld.frames import Frame, Random, frame, frames, pick, slot_type
from jgpt.data.microworld.instruction_words import LISTED, Task
from jgpt.data.microworld.language_tasks import LANGUAGE_TASKS
from jgpt.data.microworld.nature import PLANTS, season_of
from jgpt.data.microworld.things import THINGS
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

# --- lists, order, classes --------------------------------------------------------------------
_LIST_ASKED = frame("{~for_whom}、{listed}を{how_many}挙げてください。")
_ORDER_ASKED = frames(
    "{~for_whom}、{list3}を値段の安い順に並べてください。",
    "{~for_whom}、{list3}を安い物から順に書いてください。",
)
_DEAR_ASKED = frames(
    "{~for_whom}、{list2}のうち高いほうを答えてください。",
    "{~person}が買うなら、{one:member}と{two:member}ではどちらが高いですか。",
)
_ODD_ASKED = frames(
    "{~for_whom}、{list4}の中から仲間でない物を選んでください。",
    "{list4}の中で、仲間外れはどれですか。",
)
_CLASS_ASKED = frames(
    "{~for_whom}、{one:member}が何の仲間か答えてください。",
    "{~person}が{~public_place}で見た{one:member}は何の仲間ですか。",
)


def _list_members(writer: Writer) -> Task:
    category = writer.pick(LISTED)
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


_THING_CATEGORIES = (
    "本",
    "文房具",
    "切り花",
    "パン",
    "菓子",
    "果物",
    "野菜",
    "服",
    "靴",
    "おもちゃ",
    "楽器",
    "哺乳類",
    "鳥",
    "昆虫",
    "町",
)


def _class(writer: Writer) -> Task:
    category = writer.pick(tuple(c for c in _THING_CATEGORIES if c not in ("町", "切り花")))
    asked = writer.say(_CLASS_ASKED, one=writer.pick(WORLD.members[category]))
    return Task(asked, f"{category}です。", category)


# --- the world -------------------------------------------------------------------------------
_FACT_ASKED = frames(
    "{~for_whom}、{subject:fact_subject}の{relation}を答えてください。",
    "{~person}が知りたがっている{subject:fact_subject}の{relation}は何ですか。",
)
_FACTS = tuple(
    fact
    for fact in WORLD.facts()
    if fact.relation
    not in ("母", "父", "兄", "姉", "弟", "妹", "息子", "娘", "祖父", "祖母", "孫", "種類")
)
_SEASON_ASKED = frames(
    "{~for_whom}、{plant:member}の花が咲く季節を答えてください。",
    "{~person}の庭の{plant:member}はどの季節に咲きますか。",
)


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
_NOTE_ASKED = frames(
    "{a:person}の代わりに、{b:person}へのお礼の手紙を短く書いてください。",
    "{b:person}に{lost:belongings}を届けてもらった{a:person}のお礼の手紙を書いてください。",
)
_NOTE = (
    frames(
        "{b:person}さん、{~when_past}は{lost:belongings}を届けてくださり、ありがとうございました。",
        "{b:person}さん、{~season}らしい日が続いていますが、お元気ですか。",
    ),
    frames(
        "{lost:belongings}は{~person}からもらった大切な物でした。",
        "{~landmark}で{lost:belongings}がないと気づいたときは、とても困りました。",
    ),
    frames(
        "{b:person}さんが{~spot}で見つけてくださったと{~person}さんから聞きました。",
        "おかげで、{~weekday}には{~public_place}へ行くことができました。",
    ),
    frames(
        "お礼に{~bought_present}を{~person}さんに預けました。",
        "今度は{~weekday}に{~town}の{~outdoor_place}でお会いしましょう。",
    ),
)
_COOK_ASKED = frames(
    "{~person}のために、{dish}の作り方を教えてください。",
    "{~weekday}に{~person}と{dish}を作るので、作り方を順に書いてください。",
)
_COOK = (
    frames(
        "まず、{veg1:vegetable}を洗って{~cut}切ります。",
        "初めに、{~shop_quality}八百屋で{veg1:vegetable}と{veg2:vegetable}を買います。",
    ),
    frames(
        "次に、{veg2:vegetable}と{veg1:vegetable}を鍋に入れて{~minutes}煮ます。",
        "それから、{veg2:vegetable}を{~cut}切って、{veg1:vegetable}に加えます。",
    ),
    frames(
        "火を弱くして、{~minutes}ほど待ってから{~seasoning}と{~seasoning2}で味をつけます。",
        "{~minutes}たったら、{~seasoning}を少し入れて混ぜます。",
    ),
    frames(
        "最後に、{~colour}皿に盛ると{dish}のできあがりです。",
        "できた{dish}は、{~hot_drink}と一緒に食べるとおいしいです。",
    ),
)
_ADVICE_ASKED = frames(
    "{~weekday}に{place:public_place}で{~hobby.base}予定ですが、{sky.base:bad_weather}そうなので、助言を書いてください。",
    "{a:person}は{~since}{symptom.base:symptom}そうなので、{b:person}の代わりに助言を書いてください。",
)
_WEATHER_ADVICE = (
    frames(
        "{sky.base:bad_weather}なら、{~weather_item}と{~weather_item}を持っていくといいです。",
        "{sky.base:bad_weather}前に、{place:public_place}の人に電話で聞いてみましょう。",
    ),
    frames(
        "{~day_clock}より前に家を出て、{~landmark}で様子を見てください。",
        "{place:public_place}の{~near}には{~shop}もあるので、そこで休めます。",
    ),
    frames(
        "無理なら、{~weekday}に{~hobby.base}ことにしてもいいでしょう。",
        "{~person}さんにも早めに知らせておくと安心です。",
    ),
)
_HEALTH_ADVICE = (
    frames(
        "{symptom.base:symptom}ときは、{~advice.base}といいです。",
        "{~since}続いているなら、{~weekday}に病院へ行きましょう。",
    ),
    frames(
        "{~warm_dish}を食べて、{~advice.te}ください。",
        "{~hot_drink}を飲んでから、{~advice.te}ください。",
    ),
    frames(
        "{~recovery_days}になってもよくならなければ、{~medicine}をもらうといいでしょう。",
        "{~contest}や{~hobby.base}ことは、{~recovery_days}まで休みましょう。",
    ),
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
    return Task(
        writer.say(_ADVICE_ASKED[about]),
        _paragraph(writer, (_WEATHER_ADVICE, _HEALTH_ADVICE)[about]),
        None,
    )


_TASKS: tuple[Callable[[Writer], Task], ...] = (
    *LANGUAGE_TASKS,
    *(
        _list_members,
        _list_members,
        _order,
        _dearer,
        _odd,
        _class,
        _fact,
        _fact,
        _season,
        _note,
        _note,
        _cook,
        _cook,
        _advice,
        _advice,
    ),
)


def make(random: Random) -> tuple[str, str | None, str | None]:
    """An instruction with its response; free responses have neither prompt nor answer."""
    writer = Writer(random)
    task = pick(_TASKS, random)(writer)
    prompt = f"【指示】{task.asked}\n【応答】"
    return prompt + task.response, prompt if task.answer else None, task.answer
