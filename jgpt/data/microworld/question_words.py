"""Slot types of the passages that questions are asked about, and the ways to answer."""
# ruff: noqa: E501, SIM905  (tables, word lists and frames stay on one line, to be read)

from __future__ import annotations

from jgpt.data.microworld import phrases  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.frames import define, frames
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.nature import ANIMALS, WEEKDAYS
from jgpt.data.microworld.things import SHOPS
from jgpt.data.microworld.towns import PUBLIC_PLACES

define(
    "site",
    patterns=[
        "{~town}の{~landmark}",
        "{~town}の{~shop_quality}{~shop}",
        "{~town}の{~place_quality}{~landmark}",
        "{~landmark}の{~near}",
        "{~place_quality}{~landmark}",
    ],
)
define(
    "moment",
    patterns=[
        "{~weekday}の{~daypart}",
        "{~month}の{~part_of_month}",
        "{~day_clock}",
        "昨日の{~daypart}",
    ],
)
define("stop", patterns=["{~town}の{~public_place}", "{~place_quality}{~public_place}"])
define("place_act", predicates=[act for acts in PUBLIC_PLACES.values() for act in acts])
define(
    "spot_act",
    predicates=[f"{place}で{act}" for place, acts in PUBLIC_PLACES.items() for act in acts],
)
define(
    "wild_site",
    patterns=["{~town}の{~wild_place}", "{~wild_place}の{~near}", "{~place_quality}{~wild_place}"],
)
define("count_any", patterns=[f"{{~count_{c}}}" for c in (*COUNTERS_OF_THINGS, "羽", "頭")])
define("keepsake", "ボール 手紙 鍵 地図 写真 本 傘 箱 切符 時計 笛 かご 帽子 絵はがき")
define(
    "token",
    patterns=["{~colour}{~keepsake}", "古い{~keepsake}", "小さな{~keepsake}", "大切な{~keepsake}"],
)
_TROUBLES = "財布を忘れる 道に迷う 友達に会う 鍵を落とす 転ぶ 傘をなくす 古い友達を見かける 面白い話を聞く".split()
define(
    "cause",
    predicates=[
        *(f"{place}で{trouble}" for place in (*PUBLIC_PLACES, *SHOPS) for trouble in _TROUBLES),
        *(
            f"{day}の約束を{change}"
            for day in WEEKDAYS
            for change in ("思い出す", "忘れる", "断る")
        ),
        *"雨が降る 電車に乗り遅れる 頭が痛くなる 雪が積もる 明かりが消える お腹がすく 風が強くなる".split(),
    ],
)
for _counter in ("匹", "羽", "頭"):
    define(f"animal_{_counter}", [animal.name for animal in ANIMALS if animal.counter == _counter])
define("herd", patterns=[f"{{~animal_{c}}}が{{~count_{c}}}" for c in ("匹", "羽", "頭")])
define("animal", [animal.name for animal in ANIMALS])

frames(  # how answers are given
    "{answer:person}です。",
    "{answer:site}です。",
    "{answer:wild_site}です。",
    "{answer:moment}です。",
    "{answer:count_any}です。",
    "{answer:fine_thing}です。",
    "{answer:token}です。",
    "{answer.ta:cause}からです。",
    "{answer:public_place}です。",
    "{answer:stop}です。",
    "{answer:weekday}です。",
    "{answer:town}です。",
    "{answer:occupation}です。",
    "{answer:food}です。",
    "{answer.base:hobby}ことです。",
    "{answer.base:place_act}ことです。",
    "{answer:number}歳です。",
)
