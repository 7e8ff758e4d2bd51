"""The towns of the world and the places in them."""

from __future__ import annotations

from typing import NamedTuple

from jgpt.data.microworld.things import SHOPS


class Town(NamedTuple):
    """A town: where it lies, how many people it has, what it is known for, its places."""

    name: str
    landscape: str
    direction: str
    population: int
    product: str
    festival: str
    festival_month: int
    sight: str
    places: tuple[str, ...]


# name landscape direction population product festival month sight
_TOWNS = """
桜町 川沿い 南 12000 団子 花祭り 4 長い桜並木
港町 海辺 東 24000 さば 船祭り 7 白い灯台
山下町 山のふもと 北 5000 そば 火祭り 1 古い寺
湖町 湖のほとり 西 8000 緑茶 灯籠祭り 8 静かな湖
石橋町 川沿い 東 15000 陶器 橋祭り 5 石の橋
風見町 丘の上 北 6000 りんご 風祭り 10 大きな風車
若葉町 平野 南 31000 米 田植え祭り 6 広い植物園
温泉町 谷間 西 4000 温泉まんじゅう 湯祭り 2 赤い屋根の温泉
星野町 高原 北 3000 牛乳 星祭り 7 丸い屋根の天文台
松原町 海辺 南 18000 塩 凧揚げ祭り 3 長い松林
鐘鳴町 平野 西 21000 和紙 鐘祭り 11 高い鐘の塔
竹川町 川沿い 北 9000 竹細工 流し船祭り 9 深い竹林
"""

# Places every town has, and what one can do at each (in dictionary form).
PUBLIC_PLACES = {
    "図書館": ("本を借りる", "新聞を読む", "調べ物をする", "宿題をする"),
    "公園": ("散歩する", "ベンチで休む", "池の鯉を眺める", "ボールで遊ぶ"),
    "駅": ("切符を買う", "友達を迎える", "電車を待つ", "時刻表を調べる"),
    "郵便局": ("手紙を出す", "切手を買う", "小包を送る"),
    "市場": ("野菜を選ぶ", "魚を見て回る", "店の人と話す"),
    "神社": ("お参りする", "おみくじを引く", "石段を上る"),
    "美術館": ("絵を見る", "古い壺を眺める", "絵はがきを選ぶ"),
    "喫茶店": ("コーヒーを飲む", "友達と話す", "ケーキを食べる", "雑誌を読む"),
    "食堂": ("昼ご飯を食べる", "うどんを食べる", "カレーライスを頼む"),
    "広場": ("音楽を聞く", "友達を待つ", "写真を撮る", "踊りを見る"),
    "植物園": ("花を見る", "珍しい木を調べる", "花の絵を描く"),
    "病院": ("薬をもらう", "友達を見舞う", "けがの手当てを受ける"),
    "プール": ("泳ぐ", "泳ぎの練習をする", "水の中を歩く"),
    "音楽堂": ("歌を聞く", "合唱の練習をする", "ピアノを弾く"),
}
OUTDOOR_PLACES = ("公園", "広場", "神社", "市場", "植物園")


def make_towns() -> tuple[Town, ...]:
    """All towns; every town has the public places and about two thirds of the shops."""
    towns = []
    for number, line in enumerate(_TOWNS.strip().splitlines()):
        name, landscape, direction, population, product, festival, month, sight = line.split()
        shops = tuple(shop for index, shop in enumerate(SHOPS) if (index + number) % 3)
        towns.append(
            Town(
                name,
                landscape,
                direction,
                int(population),
                product,
                festival,
                int(month),
                sight,
                (*PUBLIC_PLACES, *shops),
            )
        )
    return tuple(towns)


TOWNS = make_towns()
