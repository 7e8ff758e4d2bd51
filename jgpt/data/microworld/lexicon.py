"""The slot types that all kinds of text share: people, places, times, things, manners."""
# ruff: noqa: SIM905  (tables and word lists stay on one line, to be read)

from __future__ import annotations

from jgpt.data.microworld import people, things
from jgpt.data.microworld.conjugation import conjugate
from jgpt.data.microworld.counters import count
from jgpt.data.microworld.frames import define
from jgpt.data.microworld.nature import MONTHS, SEASONS, WEEKDAYS
from jgpt.data.microworld.towns import OUTDOOR_PLACES, PUBLIC_PLACES
from jgpt.data.microworld.world import WORLD

# --- people -------------------------------------------------------------------------------
NAMES = tuple(person.name for person in WORLD.people)
define("person", NAMES)
define("surname", people.SURNAMES)
define("full_name", patterns=["{~surname}{~person}"])
define("hero", (*NAMES, "私", "僕"))
define("kin", [word for word in people.RELATIONS if word != "孫"])
define("pronoun", ["彼", "彼女"])
define("pet_animal", people.PET_KINDS)
define("pet_name", people.PET_NAMES)
define("job", people.JOBS)
define("occupation", dict.fromkeys(person.job for person in WORLD.people))
define("food", people.FAVOURITE_FOODS)
define("hobby", predicates=people.HOBBIES)

# --- places -------------------------------------------------------------------------------
TOWN_NAMES = tuple(town.name for town in WORLD.towns)
define("town", TOWN_NAMES)
define("public_place", PUBLIC_PLACES)
define("shop", things.SHOPS)
define("outdoor_place", OUTDOOR_PLACES)
define("landmark", [*PUBLIC_PLACES, *things.SHOPS, "橋", "交番", "学校", "バス停"])
define("near", "前 裏 隣 近く 向かい")
define("place_quality", "小さな 古い 新しい 静かな 活気のある 明るい 広い 有名な")
define("shop_quality", "小さな 古い 新しい 明るい いつもの なじみの 評判の")
define("direction", "東 西 南 北")

# --- times --------------------------------------------------------------------------------
define("season", SEASONS)
define("month", MONTHS)
define("weekday", WEEKDAYS)
define("daypart", "朝 昼 午後 夕方 夜")
define("hour", [f"{kanji}時" for kanji in "一 二 三 四 五 六 七 八 九 十 十一 十二".split()])
define("half", ["", "半"])
define("clock", patterns=["午前{~hour}{~half}", "午後{~hour}{~half}"])
define("part_of_month", "初め 半ば 終わり")
define(
    "morning",
    patterns=[
        "ある{~season}の朝",
        "{~weekday}の朝",
        "{~month}の{~part_of_month}の朝",
        "{~month}のある朝",
        "よく晴れた{~weekday}の朝",
        "{~season}の休みの日の朝",
    ],
)
define(
    "some_day",
    patterns=[
        "ある{~season}の日",
        "ある{~season}の{~daypart}",
        "{~weekday}の{~daypart}",
        "{~month}のある{~weekday}",
        "{~month}の{~part_of_month}",
        "{~season}の{~weekday}",
    ],
)
define("later", "しばらくして 少したって 昼過ぎに 夕方になって その日の午後 次の日 三日後に 週末に")
define("soon", "すぐに 急いで 慌てて まっすぐ 早足で その足で")
define("next_day", "次の日 次の日の朝 翌日の昼 二日後 三日後 次の週 次の日曜日")
define("evening", "その日の夕方 日が暮れるころ 夜になって その晩 寝る前に その夜遅く その日の夜")
define("minutes", [f"{number}分" for number in (5, 10, 15, 20, 30, 40, 45)])
define(
    "duration", "三十分ほど 一時間ほど 二時間ほど しばらく 長い間 半日ほど 一時間あまり 二十分ほど"
)

# --- manners, degrees, connectives ---------------------------------------------------------
define("manner", "ゆっくり 静かに 丁寧に 熱心に 楽しそうに 一人で 落ち着いて 少しずつ")
define("kindly", "優しく 親切に にっこり笑って 喜んで 明るい声で うれしそうに 快く")
define("degree", "とても 少し 本当に ずいぶん かなり")
define("so", "それで、 そこで、 そのため、 だから、")
define("feeling_good", predicates="うれしい 楽しい 幸せだ 満足だ 得意だ 誇らしい")
define("sky", "青い空 白い雲 薄い雲 灰色の雲 高い空 まぶしい日差し")
define("wind", "冷たい風 暖かい風 強い風 涼しい風 湿った風 乾いた風")
define("colour", "赤い 青い 白い 黒い 黄色い 緑の 茶色い")

# --- things -------------------------------------------------------------------------------
define("thing", (thing.name for thing in WORLD.things))
define("category", dict.fromkeys(thing.category for thing in WORLD.things))
define("number", digits=6)


def attributive(quality: str) -> str:
    """How a quality stands before a noun: 古い, 丈夫な, とれたての."""
    if quality.endswith(("の", "た")):
        return quality
    return conjugate(quality, "attributive")


# The words of QUALITIES as they stand before a noun.
FINE_WORDS = {
    category: tuple(attributive(quality) for quality in qualities.split())
    for category, qualities in things.QUALITIES.items()
}
COUNTERS_OF_THINGS = tuple(dict.fromkeys(thing.counter for thing in WORLD.things))


def _define_things() -> None:
    """Types for goods by counter and by category, alone and with a fitting adjective.

    ``by_本`` are the things counted with 本, ``count_本`` the counted numbers, ``counted`` is
    鉛筆を三本 with the right counter; ``fine_果物`` is 甘い桃, ``fine_thing`` any such pair.
    """
    for category, qualities in FINE_WORDS.items():
        define(f"quality_{category}", qualities)
        members = [thing for thing in WORLD.things if thing.category == category]
        define(f"goods_{category}", (thing.name for thing in members))
        define(f"fine_{category}", patterns=[f"{{~quality_{category}}}{{~goods_{category}}}"])
        for counter in dict.fromkeys(thing.counter for thing in members):
            names = [thing.name for thing in members if thing.counter == counter]
            define(f"goods_{category}_{counter}", names)
    for counter in (*COUNTERS_OF_THINGS, "羽", "頭"):
        define(f"count_{counter}", [count(number, counter) for number in range(1, 11)])
        define(f"few_{counter}", [count(number, counter) for number in range(1, 4)])
    for counter in COUNTERS_OF_THINGS:
        names = [thing.name for thing in WORLD.things if thing.counter == counter]
        define(f"by_{counter}", names)
    pairs = dict.fromkeys((thing.category, thing.counter) for thing in WORLD.things)
    define("counted", patterns=[f"{{~by_{c}}}を{{~count_{c}}}" for c in COUNTERS_OF_THINGS])
    define(
        "counted_fine",
        patterns=[
            f"{{~quality_{category}}}{{~goods_{category}_{counter}}}を{{~count_{counter}}}"
            for category, counter in pairs
        ],
    )
    define("fine_thing", patterns=[f"{{~fine_{category}}}" for category in things.QUALITIES])
    define(
        "fine_keepsake",
        patterns=[f"{{~fine_{c}}}" for c in ("おもちゃ", "時計", "楽器", "家具", "服", "文房具")],
    )
    define("fine_food", patterns=[f"{{~fine_{c}}}" for c in things.FOOD_CATEGORIES])
    define(
        "fine_present",
        patterns=[
            f"{{~fine_{c}}}" for c in ("本", "切り花", "菓子", "果物", "服", "おもちゃ", "飲み物")
        ],
    )


_define_things()


def _define_purchases() -> None:
    """``bought``: 花屋で赤いバラを三本, with things that the shop sells, counted as they are.

    ``bought_present`` leaves the number out (菓子屋で買った甘い団子), ``bought_food`` is food only.
    """
    groups = dict.fromkeys((thing.shop, thing.category, thing.counter) for thing in WORLD.things)
    presents = ("本", "切り花", "菓子", "果物", "服", "おもちゃ", "飲み物", "文房具", "パン")
    meals = ("菓子", "果物", "パン")

    def counted(categories: tuple[str, ...]) -> list[str]:
        return [
            f"{s}で{{~quality_{c}}}{{~goods_{c}_{counter}}}を{{~few_{counter}}}"
            for s, c, counter in groups
            if c in categories
        ]

    def bought(categories: tuple[str, ...]) -> list[str]:
        pairs = dict.fromkeys((shop, category) for shop, category, _ in groups)
        return [f"{s}で買った{{~fine_{c}}}" for s, c in pairs if c in categories]

    define("bought", patterns=counted(presents))
    define("bought_meal", patterns=counted(meals))
    define("bought_present", patterns=bought(presents))
    define("bought_food", patterns=bought(meals))


_define_purchases()

# --- speakers -----------------------------------------------------------------------------
ROLES = "店員 医者 駅員 司書 警察官".split()
define(
    "speaker",
    [
        *NAMES,
        *(f"{role}の{surname}" for role in ROLES for surname in people.SURNAMES),
        *(f"{surname}先生" for surname in people.SURNAMES),
        *(f"{kin}の{name}" for kin in ("父", "母", "祖父", "祖母", "兄", "姉") for name in NAMES),
    ],
)
