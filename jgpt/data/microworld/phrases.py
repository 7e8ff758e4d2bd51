"""Slot types of what happens to people: belongings, weather, food, troubles, feelings, words said."""
# ruff: noqa: E501  (a sentence frame stays on one line, to be read as a sentence)

from __future__ import annotations

from jgpt.data.microworld.frames import define
from jgpt.data.microworld.world import WORLD

# Phrases of elapsed time, from the same hour to later weeks; a story only moves forward.
STAGES = (
    ("少しして、", "しばらくして、", "十分ほどして、", "三十分ほどして、", "やがて、"),
    ("昼前に、", "昼になって、", "昼過ぎに、", "一時間後に、"),
    ("夕方になって、", "日が傾くころ、", "夕方近くに、"),
    ("その晩、", "夜になって、", "夕ご飯の後で、"),
    ("次の日、", "次の日の朝、", "翌日の昼、", "翌朝、"),
    ("二日後、", "三日後、", "次の週、", "週末に、", "十日後、"),
)
define("then", [phrase for stage in STAGES for phrase in stage])
define("topic", words=[""], patterns=["{~hero}は"])
define("link", ["", "それで、", "そこで、", "だから、", "そのため、"])
define(
    "companion",
    patterns=["{~person}", "友達の{~person}", "近所に住む{~person}", "同じ町の{~person}"],
)
define("morning_train", "七時 八時 九時 十時 十一時")
define("afternoon_train", "一時 二時 三時 四時 五時")
define("duty", ["学校", "仕事場", "集会所"])
define("duty_off", ["学校", "仕事", "集まり"])
define("relative", "おじ おば いとこ 昔の友達 昔の先生 幼なじみ")
define("clock_trouble", "止まっていた 鳴らなかった 遅れていた 壊れていた")
define(
    "night_act",
    predicates="本を読む 日記を書く 手紙を書く 星を眺める 模型を作る ラジオを聞く セーターを編む 絵を描く 切手を整理する 昔の写真を見る",
)
define("wild_place", "動物園 牧場 森 公園 川 池 野原 林 湖")
define("rain", "雨 大粒の雨 激しい雨 冷たい雨 細かい雨")
define("suddenly", "急に 突然 いきなり ぽつぽつと にわかに")
define("clothes", "上着 シャツ 靴 靴下 髪 かばん 帽子 ズボン")
define("belongings", "財布 鍵 手帳 帽子 かばん 切符 眼鏡 腕時計 手袋 水筒 傘 定期券")
define("look", "黒い 茶色い 青い 赤い 古い 新しい 小さな 大切な")
define(
    "spot", "ベンチの下 入り口の近く 植え込みの中 階段の下 道の端 机の下 水飲み場のそば 木の根元"
)
define("stray", "子猫 子犬 小鳥 うさぎ 黒い猫 白い犬 茶色い犬 三毛猫")
define(
    "stray_state",
    "震えている 弱っている 足にけがをした 迷子になった ひどく痩せた お腹をすかせた 雨に濡れた",
)
define(
    "stray_food",
    "温めた牛乳 小さく切った魚 細かく切ったりんご パンのかけら ゆでた野菜 柔らかいご飯 ゆでた豆",
)
define("wrap", "マフラー タオル 上着 毛布 ハンカチ 古いシャツ")
define(
    "gadget",
    "ラジオ カメラ 自転車 腕時計 柱時計 ギター 扇風機 懐中電灯 木琴 ハーモニカ ミシン オルゴール",
)
define("part", "ねじ 部品 電池 ばね 歯車 線 金具")
define("tool", "ねじ回し 金づち 接着剤 小さなはさみ 針金 やすり")
define("letter", "手紙 長い手紙 絵はがき 速達の手紙 短い手紙 招待状")
define(
    "vegetable",
    "大根 にんじん 玉ねぎ じゃがいも キャベツ なす きゅうり トマト かぼちゃ ねぎ とうもろこし",
)
define("plenty", "たくさん 箱いっぱい かごいっぱい 両手いっぱい 袋いっぱい 食べきれないほど")
define("illness", "風邪 高い熱 腹痛 頭痛 足のけが のどの痛み")
define(
    "dish",
    "カレーライス シチュー スープ 天ぷら サラダ 煮物 みそ汁 焼きそば コロッケ うどん 肉じゃが 炊き込みご飯",
)
define(
    "warm_dish",
    "温かいスープ 熱いみそ汁 湯気の立つうどん 温かいシチュー 卵のおかゆ 熱い甘酒 しょうが湯",
)
define("hot_drink", "熱いお茶 温かい牛乳 熱い紅茶 温かいココア 甘いコーヒー ゆず茶")
define("hat", patterns=["{~colour}帽子", "{~colour}麦わら帽子", "{~colour}毛糸の帽子"])
define("snow_depth", "十センチ 二十センチ 三十センチ 四十センチ 五十センチ 膝の高さまで")
define("garden_plant", "朝顔 ひまわり バラ ゆり コスモス きゅうり トマト なす あじさい 菊")
define("flower_colour", "赤い 白い 黄色い 紫色の 薄紅色の 青い")
define(
    "night",
    "ある夜 雨の降る夜 風の強い夜 静かな夜 冬のある夜 秋の長い夜 夏の暑い夜 雪の降る夜 月のない夜",
)
define("train_trouble", "大雪 強い風 車両の故障 大雨 信号の故障 倒れた木")
define("noise_place", "庭の隅 物置の中 屋根の上 縁の下 玄関の外 裏口のあたり 台所の窓の外")
define("noise", "小さな鳴き声 何かをひっかく音 かすかな物音 弱々しい声 何かが落ちる音")
define("light", "懐中電灯 ろうそく ランプ 提灯")
define("room", "居間の棚 台所の机 机の上 窓のそば 玄関 食卓の上 階段の下")
define("indoors", "居間 台所 縁側 窓のそば 暖炉の前 階段の下 廊下 日の当たる部屋")
define("old_tale", "子供のころの話 町の昔話 若いころの旅の話 海の話 星の話 祖先の話 祭りの話")
define(
    "handmade",
    "木の箱 花の絵 布の袋 毛糸の手袋 小さな椅子 紙の人形 果物のケーキ 写真の本 手編みのマフラー",
)
define(
    "gratitude",
    "本当にありがとう とても助かった こんなにうれしいことはない とてもうれしいよ おかげで楽しかった 何とお礼を言えばいいか",
)
define(
    "gift_thanks",
    "大切に使うよ ずっと欲しかったんだ とてもきれいだね 一生大事にする こんなにすてきな物は初めてだ ありがとう、うれしいよ",
)
define(
    "comfort",
    "また次があるよ 心配しなくていい 元気を出して 明日はきっといい日になる 誰にでもあることだよ ゆっくり休みなさい",
)
define(
    "praise",
    "よく頑張ったね とても立派だ すばらしいね みんなが喜んでいるよ 上手になったね 練習したかいがあったね",
)
define(
    "admiration",
    "いい物を買ったね とてもすてきだ よく頑張ったね 大切にしなさい よく似合うよ うらやましいな",
)
define(
    "reply",
    "それはよかったね いい一日だったね また聞かせて 優しい人だね 話してくれてありがとう それは知らなかった",
)
define(
    "care",
    "早くよくなってください 何か欲しい物はありますか ゆっくり休んでください 明日見舞いに行きます 薬は飲みましたか",
)
define(
    "chore",
    predicates="庭を掃く 荷物を運ぶ 畑を耕す 窓をふく 古い本を片付ける 壁を塗る 犬を洗う 薪を割る 台所を片付ける 垣根を直す 草を取る",
)
define("stall_food", "焼きとうもろこし たこ焼き りんごあめ わたあめ 焼きそば かき氷 団子")
define("festival", [town.festival for town in WORLD.towns])
define("sight", [town.sight for town in WORLD.towns])
define("write_manner", "詳しく 丁寧に ゆっくり 長々と 正直に 短く")
define(
    "owner_words",
    "ずっと探していたんだ 見つけてくれて本当にありがとう 無事でよかった どれだけ心配したことか 元気そうで安心した 助けてくれてありがとう",
)
define("shawl", "毛布 上着 マフラー 厚いタオル 膝掛け")
define("cold_wind", "冷たい風 強い風 北風 湿った風 夕方の風 川からの風")
define("gust", "強い風 突風 激しい風 つむじ風 山からの風 海からの風 冷たい北風")
define("study_room", "居間 自分の部屋 台所 縁側 二階 庭")
define("sleeping_place", "居間 縁側 窓のそば 暖炉の前 布団の中 日の当たる部屋 ソファーの上")
define("rank", "一位 二位 三位 四位 五位 六位")
define("medicine", "粉薬 白い薬 苦い薬 甘い飲み薬 のどの薬 熱を下げる薬")
define(
    "wait_act",
    predicates="本を読む 新聞を読む コーヒーを飲む 手紙を書く 雑誌を見る 窓の外を眺める ケーキを食べる",
)
define("good_day", "忘れられない 楽しい 長い 不思議な 心の温まる 思い出に残る")
define(
    "passer",
    "近所の人 通りかかった子供たち 郵便配達員 散歩中の老人 隣の家の人 学校帰りの子供たち 旅の人",
)
define("weeks", "二週間 三週間 一か月 二か月 夏休み 冬休み")
define(
    "scenery",
    patterns=[
        "{~sky}が{~direction}に広がり",
        "{~wind}が{~outdoor_place}を吹き抜け",
        "{~direction}の空が赤く染まり",
        "{~landmark}の屋根が光り",
        "{~outdoor_place}の木が揺れ",
        "{~landmark}に明かりがともり",
        "{~direction}の山に日が沈み",
    ],
)
# contest: what one practises for it
CONTESTS = {
    "将棋大会": "将棋を指す",
    "水泳大会": "海で泳ぐ",
    "合唱の会": "歌を歌う",
    "絵の展覧会": "絵を描く",
    "料理の会": "料理を作る",
    "マラソン大会": "川沿いを走る",
    "ピアノの発表会": "ピアノを弾く",
    "俳句の会": "俳句を詠む",
    "囲碁大会": "囲碁を打つ",
    "釣り大会": "魚を釣る",
    "菓子作りの会": "ケーキを焼く",
    "写真の展覧会": "写真を撮る",
}
define("contest", CONTESTS)
define("practice", predicates=CONTESTS.values())
define(
    "memory",
    patterns=[
        "その日の出来事",
        "{~person}の親切",
        "{~person}の言葉",
        "{~person}の笑顔",
        "{~person}と過ごした時間",
        "{~person}のこと",
        "{~kin}の話",
        "{~town}での出来事",
        "{~stray}のこと",
        "{~gadget}のこと",
        "{~contest}のこと",
        "{~thing}のこと",
        "{~belongings}のこと",
        "{~festival}のこと",
    ],
)
define("gently", "優しく ゆっくり 少しずつ そっと 丁寧に")
define("at_ease", "ゆっくり 一人で 静かに 足取り軽く 歌いながら 周りを見ながら")
define("with_care", "丁寧に 熱心に 落ち着いて 少しずつ 時間をかけて 一生懸命に")
define("in_detail", "詳しく ゆっくり 最後まで 順番に 何度も 少しずつ")
define("abruptly", "急に 突然 いきなり ふいに")
define("span", "三十分 一時間 二時間 三時間 半日 午後いっぱい 一晩 二日")
define("day_clock", patterns=["午前{~morning_train}{~half}", "午後{~afternoon_train}{~half}"])
define(
    "winter_morning",
    patterns=[
        "冬の{~weekday}の朝",
        "一月の{~part_of_month}の朝",
        "二月の{~part_of_month}の朝",
        "十二月のある{~weekday}の朝",
        "一月のある{~weekday}の朝",
        "二月のある{~weekday}の朝",
    ],
)
define(
    "summer_day",
    patterns=[
        "夏の{~weekday}の{~daypart}",
        "七月の{~part_of_month}",
        "八月の{~part_of_month}",
        "八月のある{~weekday}",
        "七月のある{~weekday}",
    ],
)
define("many_days", "五日 六日 一週間 八日 十日 二週間")
define("illness_of_cold", "高い熱 熱とせき ひどいせき 鼻水と熱 軽い熱 せきと鼻水")
define("recovery_days", "二日後 三日後 四日後 五日後 一週間後 次の日曜日")
define(
    "counted_food",
    patterns=[
        "{~goods_パン_個}を{~count_個}",
        "{~goods_パン_本}を{~count_本}",
        "{~goods_菓子_個}を{~count_個}",
        "{~goods_菓子_本}を{~count_本}",
        "{~goods_菓子_枚}を{~count_枚}",
        "{~goods_果物_個}を{~count_個}",
        "{~goods_果物_本}を{~count_本}",
    ],
)
define(
    "shop_present",
    patterns=[
        "本屋で{~fine_本}",
        "花屋で{~fine_切り花}",
        "菓子屋で{~fine_菓子}",
        "果物屋で{~fine_果物}",
        "服屋で{~fine_服}",
        "おもちゃ屋で{~fine_おもちゃ}",
        "お茶屋で{~fine_飲み物}",
        "雑貨屋で{~fine_日用品}",
        "文房具屋で{~fine_文房具}",
    ],
)
define("wrap_paper", "青い紙 赤い紙 花柄の布 金色の紙 薄い紙 きれいな布 白い布")
define(
    "clothing_look",
    "帽子をかぶった 傘を持った 着物を着た 眼鏡をかけた 赤い上着の 青いシャツの 白髪の",
)
define("room_of_station", "待合室 売店の前 ホームのベンチ 改札の近く 駅の食堂")
define("morning_hour", "朝の七時 朝の八時 朝の九時 朝の十時 昼前")
define("number_of_people", "十五 二十 二十四 三十 三十二 四十 五十 六十")
define(
    "introduced",
    patterns=[
        "{~person}",
        "{~town}の{~person}",
        "{~town}に住む{~person}",
        "{~town}に住む{~occupation}の{~person}",
        "{~occupation}の{~person}",
        "私",
        "僕",
    ],
)
define("called", patterns=["{~person}", "{~occupation}の{~person}", "私", "僕"])
define(
    "food_name",
    [thing.name for thing in WORLD.things if thing.shop in ("パン屋", "菓子屋", "果物屋")],
)
define("food_shop", "パン屋 菓子屋 果物屋")
define("span_short", "十分 二十分 三十分 一時間 四十分")
define("at_rest", "ゆっくり 静かに しばらく 一人で  じっと")
define("kind_manner", "丁寧に 何度も 電話で 手紙で その場で")
