"""Animals, plants, seasons, months and days."""
# ruff: noqa: E501, SIM905  (tables and word lists stay on one line, to be read)

from __future__ import annotations

from typing import NamedTuple


class Animal(NamedTuple):
    """An animal: its class, counter, number of legs, habitat, food, and what it is like and does."""

    name: str
    animal_class: str
    counter: str
    legs: int
    habitat: str
    food: str
    quality: str
    act: str


class Plant(NamedTuple):
    """A plant that flowers: its months, the colour of its flower, where it grows, a remark."""

    name: str
    month: int
    colour: str
    habitat: str
    kind: str


_ANIMALS = """
猫 哺乳類 匹 4 家 魚 身が軽い 日なたで眠る
犬 哺乳類 匹 4 家 肉 鼻がいい 人の足音を聞き分ける
馬 哺乳類 頭 4 牧場 草 足が速い 草原を走る
牛 哺乳類 頭 4 牧場 草 体が大きい 草をゆっくりかむ
羊 哺乳類 頭 4 牧場 草 毛が柔らかい 群れで歩く
豚 哺乳類 頭 4 牧場 芋 鼻が大きい 土を掘る
うさぎ 哺乳類 羽 4 野原 草 耳が長い 後ろ足で跳ぶ
きつね 哺乳類 匹 4 森 ねずみ 尾が太い 草むらを静かに歩く
たぬき 哺乳類 匹 4 森 木の実 体が丸い 木の根元に隠れる
熊 哺乳類 頭 4 森 木の実 力が強い 太い木に登る
鹿 哺乳類 頭 4 森 草 足が細い 群れで歩く
猿 哺乳類 匹 4 森 木の実 手が器用だ 木から木へ飛び移る
りす 哺乳類 匹 4 森 木の実 尾が大きい 木の実を土に埋める
ねずみ 哺乳類 匹 4 物置 穀物 体が小さい 壁の穴に隠れる
象 哺乳類 頭 4 草原 草 鼻が長い 鼻で水を浴びる
きりん 哺乳類 頭 4 草原 木の葉 首が長い 高い枝の葉を食べる
ライオン 哺乳類 頭 4 草原 肉 声が大きい 木陰で休む
いるか 哺乳類 頭 0 海 魚 頭がいい 波の上に跳び上がる
くじら 哺乳類 頭 0 海 小さなえび 体が大きい 長い間海に潜る
こうもり 哺乳類 匹 2 洞穴 虫 目が小さい 逆さにぶら下がる
すずめ 鳥 羽 2 町 穀物 体が小さい 屋根の上に集まる
つばめ 鳥 羽 2 町 虫 尾が長い 屋根の下に巣を作る
からす 鳥 羽 2 町 木の実 頭がいい 高い木に巣を作る
鳩 鳥 羽 2 公園 豆 胸が丸い 遠くから巣に戻る
ふくろう 鳥 羽 2 森 ねずみ 目が大きい 音を立てずに飛ぶ
白鳥 鳥 羽 2 湖 水草 羽が白い 水の上を静かに進む
かもめ 鳥 羽 2 海辺 魚 羽が白い 船の後を追う
鴨 鳥 羽 2 池 水草 首が短い 水の上で眠る
鶏 鳥 羽 2 庭 穀物 とさかが赤い 大きな声で鳴く
鷹 鳥 羽 2 山 魚 つめが鋭い 空の高い所から獲物を探す
ペンギン 鳥 羽 2 海辺 魚 足が短い 水の中を速く泳ぐ
鯉 魚 匹 0 池 水草 体が太い 人の近くに集まる
金魚 魚 匹 0 池 小さな虫 ひれが美しい 水の中をゆっくり泳ぐ
まぐろ 魚 匹 0 海 小さな魚 体が大きい 休まずに泳ぎ続ける
めだか 魚 匹 0 小川 小さな虫 体が小さい 群れで泳ぐ
うなぎ 魚 匹 0 川 えび 体が長い 石の間に隠れる
蝶 昆虫 匹 6 花畑 花の蜜 羽が美しい 花から花へ飛ぶ
みつばち 昆虫 匹 6 花畑 花の蜜 体が小さい 仲間に花の場所を教える
せみ 昆虫 匹 6 林 木の汁 声が大きい 何年も土の中で育つ
かぶとむし 昆虫 匹 6 林 木の汁 角が立派だ 木の幹に集まる
とんぼ 昆虫 匹 6 水辺 小さな虫 目が大きい 空中で急に止まる
あり 昆虫 匹 6 土の中 菓子のかけら 力が強い 一列に並んで食べ物を運ぶ
ほたる 昆虫 匹 6 水辺 小さな貝 光が美しい 水辺で光る
かえる 両生類 匹 4 田んぼ 虫 舌が長い 田んぼで鳴く
亀 爬虫類 匹 4 池 水草 甲羅が硬い 石の上で体を温める
とかげ 爬虫類 匹 4 草むら 虫 尾が長い 石の間に隠れる
"""
_PLANTS = """
梅 2 白い 庭 木 / すいせん 2 黄色い 海辺 草 / 桜 4 薄紅色の 川沿い 木 / たんぽぽ 4 黄色い 野原 草
チューリップ 4 赤い 花壇 草 / 菜の花 3 黄色い 畑 草 / すみれ 4 紫色の 野原 草 / 藤 5 紫色の 庭園 木
つつじ 5 赤い 公園 木 / バラ 5 赤い 花壇 木 / あじさい 6 青い 寺の庭 木 / ゆり 7 白い 山道 草
朝顔 7 青い 庭 草 / ひまわり 8 黄色い 畑 草 / 睡蓮 7 薄紅色の 池 草 / ききょう 8 紫色の 野原 草
コスモス 10 薄紅色の 野原 草 / 菊 10 黄色い 花壇 草 / ひがんばな 9 赤い 田んぼのそば 草
きんもくせい 10 だいだい色の 庭 木 / さざんか 12 赤い 庭 木 / つばき 1 赤い 庭 木
"""

SEASONS = ("春", "夏", "秋", "冬")
MONTHS = tuple(f"{number}月" for number in "一 二 三 四 五 六 七 八 九 十 十一 十二".split())
WEEKDAYS = tuple("月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日".split())
SEASON_QUALITY = {"春": "暖かい", "夏": "暑い", "秋": "涼しい", "冬": "寒い"}


def season_of(month: int) -> str:
    """The season of a month from 1 to 12: spring is March to May."""
    return SEASONS[(month - 3) % 12 // 3]


def make_animals() -> tuple[Animal, ...]:
    """All animals."""
    rows = [line.split() for line in _ANIMALS.strip().splitlines()]
    return tuple(Animal(*row[:3], int(row[3]), *row[4:]) for row in rows)


def make_plants() -> tuple[Plant, ...]:
    """All plants."""
    rows = [entry.split() for entry in _PLANTS.strip().replace("\n", " / ").split(" / ")]
    return tuple(Plant(row[0], int(row[1]), *row[2:]) for row in rows)


ANIMALS = make_animals()
PLANTS = make_plants()
