"""What a task is, and the slot types of tasks."""

from __future__ import annotations

from typing import NamedTuple

from jgpt.data.microworld import dialogue_words, question_words  # noqa: F401  (define slot types used here)
from jgpt.data.microworld.conjugation import PLAIN, POLITE, conjugate
from jgpt.data.microworld.counters import count, reading
from jgpt.data.microworld.frames import define, frames
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.people import HOBBIES
from jgpt.data.microworld.towns import PUBLIC_PLACES
from jgpt.data.microworld.world import WORLD


class Task(NamedTuple):
    """What is asked, what is responded, and the checkable answer if there is one."""

    asked: str
    response: str
    answer: str | None


LISTED = tuple(
    category
    for category, members in WORLD.members.items()
    if len(members) >= 5 and category != "人"
)
define("listed", LISTED)
define("how_many", "二つ 三つ 四つ 五つ")
define("member", [name for category, members in WORLD.members.items() for name in members])
define("list2", patterns=["{~member}、{~member}"])
define("list3", patterns=["{~member}、{~member}、{~member}"])
define("list4", patterns=["{~member}、{~member}、{~member}、{~member}"])
define("list5", patterns=["{~member}、{~member}、{~member}、{~member}、{~member}"])
READ_COUNTERS = (*COUNTERS_OF_THINGS, "羽", "頭", "人", "回")
define("reading", [reading(n, c) for c in READ_COUNTERS for n in range(1, 11)])
define("counted_word", [count(n, c) for c in READ_COUNTERS for n in range(1, 11)])
define("particle", "を に へ で が から まで と")
define(
    "calculation", patterns=["{~number}+{~number}", "{~number}-{~number}", "{~number}×{~number}"]
)
VERBS = tuple(dict.fromkeys([*HOBBIES, *(act for acts in PUBLIC_PLACES.values() for act in acts)]))
define("verb_phrase", VERBS)
# The forms asked for by name.
FORMS = {
    "て形": "te",
    "過去の形": "ta",
    "否定の形": "nai",
    "ます形": None,
    "ば形": "ba",
    "たい形": "want+nonpast",
}
define("form_name", FORMS)
define(
    "conjugated",
    dict.fromkeys(
        conjugate(verb, form or "nonpast", PLAIN if form else POLITE)
        for verb in VERBS
        for form in FORMS.values()
    ),
)
define(
    "for_whom",
    patterns=[
        "{~person}に教えたいので",
        "{~lesson}の宿題で使うので",
        "{~weekday}に{~person}と話すので",
        "{~month}の{~contest}で使うので",
        "{~person}から聞かれたので",
    ],
)
define(
    "written_by",
    patterns=[
        "{~person}が{~weekday}に書いた",
        "{~lesson}の時間に{~person}が書いた",
        "{~person}の日記にある",
        "{~person}への手紙に書く",
    ],
)

define("bad_weather", predicates="雨が降る 雪が降る 風が強くなる 寒くなる 暑くなる 雷が鳴る")
define("when_past", "昨日 先日 先週 この間 一昨日")
define("cut", "細かく 薄く 大きく 四つに 丸く 小さく")
define("seasoning", "塩 しょうゆ みそ 砂糖")
define("seasoning2", "酢 バター ごま油 こしょう だし")
frames(  # how answers are given
    "{answer:member}です。",
    "{answer:list2}です。",
    "{answer:list3}です。",
    "{answer:list4}です。",
    "{answer:list5}です。",
    "{answer:reading}です。",
    "{answer:counted_word}です。",
    "「{answer:particle}」です。",
    "「{answer:conjugated}」です。",
    "{answer:number}です。",
    "{answer:number}円です。",
    "{answer:number}文字です。",
    "{answer:listed}です。",
    "{answer:season}です。",
    "{answer:fact_object}です。",
)
