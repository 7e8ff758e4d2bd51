"""The people of the world: names, households, jobs, hobbies."""
# ruff: noqa: E501, SIM905  (tables and word lists stay on one line, to be read)

from __future__ import annotations

import random
from typing import NamedTuple

SURNAMES = tuple(
    """
    青木 秋山 池田 石川 上野 内田 遠藤 大野 岡本 小川 加藤 川口 菊池 北村 木下 工藤 小島 後藤 斎藤 坂本
    佐々木 島田 杉山 鈴木 高橋 田中 谷口 千葉 中川 永井 西村 野口 橋本 浜田 福田 藤原 星野 前田 松本 三浦
    """.split()
)
MALE_NAMES = tuple(
    """
    健太 大輔 翔太 拓也 直樹 和也 達也 亮介 雄一 浩二 太郎 次郎 三郎 正夫 義男 清志 茂雄 昭夫 邦彦 俊介
    康平 裕太 航平 悠斗 陽介 涼太 蒼太 春樹 夏彦 秋人 冬馬 海斗 陸斗 大地 勇気 隼人 一郎 誠司 進一 実男
    哲也 修平 克己 武志 豊彦 隆史 光男 信夫 幸一 良平 貴之 慎吾 純一 圭介 洋平 智也 恭平 和馬 龍之介 虎太郎
    孝之 勝利 広志 安男 弘明 文彦 久雄 忠志 耕作 源太 平八 吾郎 敬太 颯太 湊人 律希 樹生 朝陽 蓮司 奏多
    """.split()
)
FEMALE_NAMES = tuple(
    """
    美咲 花子 恵子 由美 陽子 直美 久美子 真由美 智子 幸子 千代 春子 夏美 秋江 冬美 さくら ひかり あかり みどり かおり
    結衣 彩花 遥香 七海 千夏 紗希 麻衣 奈々 優子 理沙 愛子 京子 和子 文子 節子 芳江 静江 道子 君子 富美
    明美 裕子 洋子 典子 香織 沙織 綾乃 桃子 梨花 杏奈 凛子 詩織 琴音 鈴香 小百合 百合子 菜々子 美穂 美雪 雪乃
    志保 佳奈 絵里 真理 早苗 若菜 つぐみ ふみか かえで こはる ひなた まどか のぞみ しおり ちひろ みなみ あおい めぐみ いずみ たまき
    """.split()
)

# job: (where the work is done, what the work is as a phrase, the work's tool)
JOBS = {
    "大工": ("工事の現場", "家を建てる", "金づち"),
    "漁師": ("港", "魚をとる", "網"),
    "農家": ("畑", "野菜を育てる", "くわ"),
    "医者": ("病院", "病気の人をみる", "聴診器"),
    "看護師": ("病院", "患者の世話をする", "体温計"),
    "教師": ("学校", "子供たちに算数を教える", "黒板"),
    "運転手": ("バスの営業所", "町を回るバスを運転する", "地図"),
    "駅員": ("駅", "乗客を案内する", "時刻表"),
    "郵便配達員": ("郵便局", "手紙を配る", "自転車"),
    "警察官": ("交番", "町の安全を守る", "懐中電灯"),
    "消防士": ("消防署", "火事を消す", "はしご"),
    "司書": ("図書館", "本を貸し出す", "カード"),
    "パン職人": ("パン屋", "焼きたてのパンを作る", "窯"),
    "菓子職人": ("菓子屋", "季節の菓子を作る", "型"),
    "花屋の店員": ("花屋", "花束を作る", "はさみ"),
    "本屋の店員": ("本屋", "新しい本を並べる", "はしご"),
    "魚屋の店員": ("魚屋", "魚をさばく", "包丁"),
    "料理人": ("食堂", "料理を作る", "包丁"),
    "美容師": ("美容院", "客の髪を切る", "はさみ"),
    "写真家": ("写真館", "家族の写真を撮る", "カメラ"),
    "画家": ("アトリエ", "町の風景を描く", "絵筆"),
    "作家": ("自分の書斎", "子供向けの物語を書く", "万年筆"),
    "音楽家": ("音楽堂", "バイオリンを弾く", "バイオリン"),
    "時計職人": ("時計屋", "古い時計を直す", "虫眼鏡"),
    "靴職人": ("靴屋", "革の靴を縫う", "針"),
    "陶芸家": ("工房", "茶碗や皿を焼く", "ろくろ"),
    "銀行員": ("銀行", "お金を数える", "電卓"),
    "記者": ("新聞社", "町の出来事を記事にする", "手帳"),
    "獣医": ("動物病院", "病気の動物をみる", "聴診器"),
    "飼育係": ("動物園", "動物にえさをやる", "バケツ"),
    "船長": ("港", "島へ渡る船を動かす", "羅針盤"),
    "植木職人": ("庭園", "庭の木を手入れする", "はさみ"),
}
RETIRED = "無職"
SCHOOL_LEVELS = ((6, "小学生"), (12, "中学生"), (15, "高校生"), (18, "大学生"))

# What people do for pleasure.
HOBBIES = tuple(
    """
    本を読む 絵を描く 歌を歌う ピアノを弾く 写真を撮る 花を育てる 山に登る 魚を釣る 料理を作る 将棋を指す
    日記を書く 手紙を書く 星を眺める 模型を作る 海で泳ぐ 自転車に乗る セーターを編む 切手を集める 鳥を観察する 俳句を詠む
    ケーキを焼く 映画を見る ラジオを聞く 囲碁を打つ 茶碗を焼く ギターを弾く 川沿いを走る 朝早く散歩する 古い町を歩く 昔話を調べる
    """.split()
)
FAVOURITE_FOODS = tuple(
    """
    カレーライス おにぎり うどん そば 天ぷら 焼き魚 卵焼き みそ汁 すし ラーメン おでん コロッケ オムライス
    ハンバーグ 茶碗蒸し 肉じゃが 焼きそば 団子 プリン 桃 りんご みかん チーズ 豆腐 栗ご飯
    """.split()
)
PET_NAMES = tuple(
    "タマ ポチ モモ クロ シロ ミケ コロ ハナ チビ ゴン リク ソラ マメ フク トラ ルナ".split()
)
PET_KINDS = ("猫", "犬", "うさぎ", "小鳥", "亀", "金魚")

# The words of the family, by the age order and the sex of the one who is spoken of.
PARENT = {"男": "父", "女": "母"}
GRANDPARENT = {"男": "祖父", "女": "祖母"}
SPOUSE = {"男": "夫", "女": "妻"}
CHILD = {"男": "息子", "女": "娘"}
ELDER = {"男": "兄", "女": "姉"}
YOUNGER = {"男": "弟", "女": "妹"}
RELATIONS = ("父", "母", "祖父", "祖母", "夫", "妻", "息子", "娘", "兄", "姉", "弟", "妹", "孫")


class Person(NamedTuple):
    """One person; ``household`` is the number of the family."""

    name: str
    surname: str
    sex: str
    age: int
    generation: int
    household: int
    town: str
    job: str
    hobby: str
    food: str
    birth_month: int

    @property
    def full_name(self) -> str:
        return self.surname + self.name

    @property
    def is_child(self) -> bool:
        return self.age < 19


class Pet(NamedTuple):
    """A pet of a household."""

    name: str
    animal: str
    household: int


def _school(age: int) -> str:
    level = "園児"
    for start, name in SCHOOL_LEVELS:
        if age >= start:
            level = name
    return level


def make_people(
    towns: tuple[str, ...], seed: int = 1
) -> tuple[tuple[Person, ...], tuple[Pet, ...]]:
    """Builds one household per surname, always the same for the same seed."""
    draw = random.Random(seed).random
    males, females = list(MALE_NAMES), list(FEMALE_NAMES)
    jobs = sorted(JOBS)
    people: list[Person] = []
    pets: list[Pet] = []

    def add(sex: str, age: int, generation: int, household: int, town: str) -> None:
        names = males if sex == "男" else females
        if age >= 66:
            job = RETIRED
        elif age <= 22:
            job = _school(age)
        else:
            job = jobs[int(draw() * len(jobs))]
        people.append(
            Person(
                name=names.pop(int(draw() * len(names))),
                surname=SURNAMES[household],
                sex=sex,
                age=age,
                generation=generation,
                household=household,
                town=town,
                job=job,
                hobby=HOBBIES[int(draw() * len(HOBBIES))],
                food=FAVOURITE_FOODS[int(draw() * len(FAVOURITE_FOODS))],
                birth_month=1 + int(draw() * 12),
            )
        )

    for household in range(len(SURNAMES)):
        town = towns[household % len(towns)]
        father_age = 31 + int(draw() * 18)
        if draw() < 0.35:
            add(
                "男" if draw() < 0.5 else "女",
                father_age + 24 + int(draw() * 8),
                0,
                household,
                town,
            )
        add("男", father_age, 1, household, town)
        add("女", father_age - 3 + int(draw() * 6), 1, household, town)
        child_age = max(6, father_age - 26)
        for _ in range(1 + int(draw() * 2)):
            add("男" if draw() < 0.5 else "女", child_age, 2, household, town)
            child_age -= 2 + int(draw() * 3)
            if child_age < 5:
                break
        if len(pets) < len(PET_NAMES) and draw() < 0.6:
            animal = PET_KINDS[int(draw() * len(PET_KINDS))]
            pets.append(Pet(PET_NAMES[len(pets)], animal, household))
    return tuple(people), tuple(pets)


def relation(person: Person, other: Person) -> str | None:
    """What ``other`` is to ``person`` within one household (兄: the elder brother), or None.

    The grandparent of a household is the father's parent; in-laws have no word here.
    """
    if person.household != other.household or person is other:
        return None
    middle = person if person.generation == 1 else other
    if {person.generation, other.generation} == {0, 1} and middle.sex == "女":
        return None
    if person.generation == other.generation:
        if person.generation == 1:
            return SPOUSE[other.sex]
        return (ELDER if other.age > person.age else YOUNGER)[other.sex]
    if other.generation < person.generation:
        step = person.generation - other.generation
        return (PARENT if step == 1 else GRANDPARENT)[other.sex]
    return CHILD[other.sex] if other.generation - person.generation == 1 else "孫"
