"""Slot types of what people talk about: illness, weather, school, news, journeys."""
# ruff: noqa: E501  (tables and sentence frames stay on one line, to be read)

from __future__ import annotations

from jgpt.data.microworld import phrases  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.frames import define
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS, NAMES, ROLES
from jgpt.data.microworld.world import WORLD

define(
    "call",
    [
        *NAMES,
        *(f"{name}さん" for name in NAMES),
        *(f"{role}さん" for role in (*ROLES, "先生")),
        "お父さん",
        "お母さん",
        "おじいさん",
        "おばあさん",
        "お兄さん",
        "お姉さん",
    ],
)
define("town_product", [town.product for town in WORLD.towns])
define(
    "unit_price_kanji", patterns=[f"{{~by_{c}}}は一{c}{{~number}}円" for c in COUNTERS_OF_THINGS]
)
define("counted_number", patterns=[f"{{~count_{c}}}" for c in COUNTERS_OF_THINGS])
define("occasion", "誕生日 引っ越し祝い 遠足 旅行 お見舞い 祭り お祝い 合格祝い")
define(
    "greeting_weather",
    patterns=[
        "{~season}らしい日",
        "よく晴れた{~daypart}",
        "風の強い{~daypart}",
        "{~season}のように暖かい日",
        "静かな{~weekday}",
        "少し涼しい{~daypart}",
        "忙しい{~weekday}",
    ],
)
define(
    "symptom",
    predicates="頭が痛い 喉が痛い お腹が痛い 体がだるい 足が痛い 目がかゆい 背中が痛い 耳が痛い 歯が痛い 体が熱い",
)
define(
    "since",
    "昨日の夜から 今朝から 三日前から 一週間前から 昨日の昼から 起きてから 二日前から 先週から",
)
define(
    "advice",
    predicates="温かい物を飲む 早く寝る 水をたくさん飲む 部屋を暖かくする 無理をしないで休む 野菜をたくさん食べる 風呂に早く入る ゆっくり歩く",
)
define("turning", "右 左")
define(
    "corner", "一つ目の角 二つ目の角 三つ目の角 次の交差点 橋の手前 信号のある角 大きな木のある角"
)
define(
    "home_reason",
    predicates="宿題がある 仕事がある 風邪を引いている お客さんが来る 母の手伝いをする 練習がある 荷物が届く 妹の面倒を見る",
)
define("book_kind", "本 図鑑 絵本 雑誌 写真集 資料 事典")
define("book_subject", "鳥 星 料理 昔話 海の生き物 電車 花 お菓子 山登り 歴史 動物 絵")
define(
    "weather_tomorrow",
    predicates="晴れる 雨が降る 雪が降る 風が強くなる 曇る 暖かくなる 寒くなる 暑くなる 涼しくなる 雷が鳴る",
)
define("sky_cloud", "黒い雲 白い雲 薄い雲 大きな雲 灰色の雲")
define(
    "weather_sign",
    patterns=[
        "{~direction}の空が[暗い|nonpast]",
        "{~direction}の空が[赤い|nonpast]",
        "{~direction}の空が[明るい|nonpast]",
        "{~direction}から{~wind}が[吹く|progressive+nonpast]",
        "{~landmark}の上に{~sky_cloud}が[見える|nonpast]",
        "{~pet_animal}が{~indoors}で丸くなって[いる|nonpast]",
        "{~landmark}の上をつばめが低く[飛ぶ|progressive+nonpast]",
    ],
)
define("weather_item", "傘 厚い上着 帽子 手袋 水筒 マフラー 長靴 薄い上着")
define("lesson", "算数 国語 理科 音楽 図工 社会 体育 英語")
define("colour_one", "赤いの 青いの 白いの 黒いの 黄色いの 茶色いの 緑の")
define("fare", "240 320 450 580 660 720 890 1150")
define("platform", "一 二 三 四")
define("instrument", "太鼓 笛 琴 三味線 木琴 ハーモニカ")
define(
    "homework",
    predicates="日記を書く 漢字を覚える 計算をする 絵を描く 昔話を調べる 作文を書く 花を育てる 鳥を観察する",
)
define("meal_time", "朝ご飯 昼ご飯 夕ご飯 今日の夕ご飯 明日のお弁当 日曜日の昼ご飯")
define("taste", predicates="甘い 辛い 温かい 冷たい 薄い 濃い 酸っぱい 柔らかい")
define("found_when", "今朝 昨日の夕方に さっき 昨日 一時間前に 三十分前に 今日の昼に")
define(
    "news",
    patterns=[
        "{~town}に新しい{~landmark}が[できる|past]",
        "{~person}さんが{~rank}に[なる|past]",
        "{~landmark}の前で{~stray}が[見つかる|past]",
        "{~person}さんが{~town}へ[引っ越す|nonpast]",
        "{~weekday}に{~public_place}で{~contest}が[ある|nonpast]",
        "{~person}さんの家に赤ちゃんが[生まれる|past]",
        "{~person}さんの{~pet_animal}が[いなくなる|past]",
    ],
)
