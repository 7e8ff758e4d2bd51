"""The scripts of the dialogues: who speaks, and what may be said at each turn."""
# ruff: noqa: E501  (a sentence frame stays on one line, to be read as a sentence)

from __future__ import annotations

from typing import NamedTuple

from jgpt.data.microworld import lexicon, phrases  # noqa: F401  (slot types used here)
from jgpt.data.microworld.frames import Frame, define, frames
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS, NAMES, ROLES
from jgpt.data.microworld.world import WORLD


class Turn(NamedTuple):
    """One line: the speaker (0 or 1), the ways to say it, and how often it is said at all."""

    speaker: int
    said: tuple[Frame, ...]
    chance: float


class Script(NamedTuple):
    """A kind of conversation: between whom, and its turns."""

    pair: str
    turns: tuple[Turn, ...]


def _script(pair: str, *turns: Turn) -> Script:
    return Script(pair, turns)


def _a(*said: str, chance: float = 1.0) -> Turn:
    return Turn(0, frames(*said), chance)


def _b(*said: str, chance: float = 1.0) -> Turn:
    return Turn(1, frames(*said), chance)


define("call", [*NAMES, *(f"{name}さん" for name in NAMES), *(f"{role}さん" for role in (*ROLES, "先生")), "お父さん", "お母さん", "おじいさん", "おばあさん", "お兄さん", "お姉さん"])
define("town_product", [town.product for town in WORLD.towns])
define("unit_price_kanji", patterns=[f"{{~by_{c}}}は一{c}{{~number}}円" for c in COUNTERS_OF_THINGS])
define("counted_number", patterns=[f"{{~count_{c}}}" for c in COUNTERS_OF_THINGS])
define("occasion", "誕生日 引っ越し祝い 遠足 旅行 お見舞い 祭り お祝い 合格祝い".split())
define("greeting_weather", patterns=["{~season}らしい日", "よく晴れた{~daypart}", "風の強い{~daypart}", "{~season}のように暖かい日", "静かな{~weekday}", "少し涼しい{~daypart}", "忙しい{~weekday}"])
define("symptom", predicates="頭が痛い 喉が痛い お腹が痛い 体がだるい 足が痛い 目がかゆい 背中が痛い 耳が痛い 歯が痛い 体が熱い")
define("since", "昨日の夜から 今朝から 三日前から 一週間前から 昨日の昼から 起きてから 二日前から 先週から".split())
define("advice", predicates="温かい物を飲む 早く寝る 水をたくさん飲む 部屋を暖かくする 無理をしないで休む 野菜をたくさん食べる 風呂に早く入る ゆっくり歩く")
define("turning", "右 左".split())
define("corner", "一つ目の角 二つ目の角 三つ目の角 次の交差点 橋の手前 信号のある角 大きな木のある角".split())
define("home_reason", predicates="宿題がある 仕事がある 風邪を引いている お客さんが来る 母の手伝いをする 練習がある 荷物が届く 妹の面倒を見る")
define("book_subject", "鳥 星 料理 昔話 海の生き物 電車 花 お菓子 山登り 歴史 動物 絵".split())
define("weather_tomorrow", predicates="晴れる 雨が降る 雪が降る 風が強くなる 曇る 暖かくなる 寒くなる 暑くなる 涼しくなる 雷が鳴る")
define("sky_cloud", "黒い雲 白い雲 薄い雲 大きな雲 灰色の雲".split())
define("weather_sign", patterns=[
    "{~direction}の空が[暗い|nonpast]", "{~direction}の空が[赤い|nonpast]", "{~direction}の空が[明るい|nonpast]",
    "{~direction}から{~wind}が[吹く|progressive+nonpast]", "{~landmark}の上に{~sky_cloud}が[見える|nonpast]",
    "{~pet_animal}が{~indoors}で丸くなって[いる|nonpast]", "{~landmark}の上をつばめが低く[飛ぶ|progressive+nonpast]",
])
define("weather_item", "傘 厚い上着 帽子 手袋 水筒 マフラー 長靴 薄い上着".split())
define("lesson", "算数 国語 理科 音楽 図工 社会 体育 英語".split())
define("colour_one", "赤いの 青いの 白いの 黒いの 黄色いの 茶色いの 緑の".split())
define("fare", "240 320 450 580 660 720 890 1150".split())
define("platform", "一 二 三 四".split())
define("instrument", "太鼓 笛 琴 三味線 木琴 ハーモニカ".split())
define("homework", predicates="日記を書く 漢字を覚える 計算をする 絵を描く 昔話を調べる 作文を書く 花を育てる 鳥を観察する")
define("meal_time", "朝ご飯 昼ご飯 夕ご飯 今日の夕ご飯 明日のお弁当 日曜日の昼ご飯".split())
define("taste", predicates="甘い 辛い 温かい 冷たい 薄い 濃い 酸っぱい 柔らかい")
define("found_when", "今朝 昨日の夕方に さっき 昨日 一時間前に 三十分前に 今日の昼に".split())
define("news", patterns=[
    "{~town}に新しい{~landmark}が[できる|past]", "{~person}さんが{~rank}に[なる|past]", "{~landmark}の前で{~stray}が[見つかる|past]",
    "{~person}さんが{~town}へ[引っ越す|nonpast]", "{~weekday}に{~public_place}で{~contest}が[ある|nonpast]", "{~person}さんの家に赤ちゃんが[生まれる|past]",
    "{~person}さんの{~pet_animal}が[いなくなる|past]",
])

SCRIPTS = (
    # buying
    _script("店員",
        _b("いらっしゃいませ、{a_call:call}、{~greeting_weather}ですね。", "いらっしゃいませ、今日は{fine:fine_thing}が{~town}から届きました。"),
        _a("{c_call:call}の{~occasion}のための{thing}を探しています。", "{day:weekday}に使う{thing}が欲しいのですが、{c_call:call}にこの店を教わりました。"),
        _b("こちらの{fine:fine_thing}はいかがですか、{a_call:call}。", "{unit_price:unit_price_kanji}で、{c:person}さんも昨日買っていきました。"),
        _a("{thing}はこの{shop}でしか買えないと{c_call:call}から聞きました。", "{~wrap_paper}で包んで、{c_call:call}の名前を書いてもらえますか。", chance=0.5),
        _b("{~wrap_paper}で包みますから、{minutes:minutes}ほどお待ちください。", "{a_call:call}、{~wrap_paper}と{~wrap_paper}ではどちらがいいですか。", chance=0.4),
        _a("では、{order:counted}ください。", "{order:counted}お願いします、{c_call:call}もきっと喜びます。"),
        _b("{unit_price:unit_price_kanji}で、{counted:counted_number}ですから{total:number}円になります。", "{order:counted}ですから、全部で{total:number}円です。"),
        _a("{paid:number}円でお願いします、{day:weekday}にもまた来ます。", "では、{~look}財布から{paid:number}円を出します。"),
        _b("{change:number}円のお返しです、{c:person}さんにもよろしくお伝えください。", "おつりは{change:number}円ですから、{day:weekday}にもまたいらしてください。")),
    # asking the way
    _script("friends",
        _a("{b_call:call}、{place:public_place}へ[行く|want+explain]けれど、道を[教える|please]。", "{b_call:call}、{mark:landmark}から{place:public_place}までは[遠い|ask]。"),
        _b("{place:public_place}なら、{mark:landmark}の{~near}に[ある|nonpast]よ。", "歩いて{minutes:minutes}くらいで、{mark:landmark}の{~near}に[ある|nonpast]よ。"),
        _a("{mark:landmark}の前を{~direction}へ行けば[いい|ask]。", "{place:public_place}へ行くには、{~landmark}の{~near}を[通る|ask]。"),
        _b("{corner:corner}を{turning:turning}に曲がると、{minutes:minutes}で{mark:landmark}が[見える|nonpast]よ。", "まず{mark:landmark}までまっすぐ行って、{corner:corner}を{turning:turning}に[曲がる|please]。"),
        _a("{mark:landmark}から{corner:corner}を{turning:turning}[だ|nonpast]ね、{b_call:call}。", "{corner:corner}を{turning:turning}に曲がれば{place:public_place}に[着く|nonpast]ね。"),
        _b("{place:public_place}の{~near}には{~place_quality}{~shop}も[ある|nonpast]から、見て[いく|please]。", "もし迷ったら、{mark:landmark}の{~near}にいる{c_call:call}に[聞く|please]。", chance=0.7)),
    # an invitation
    _script("friends",
        _a("{b_call:call}、{day:weekday}に{far_town:town}へ[行く|invite]。", "{b_call:call}、{day:weekday}に{c_call:call}と{place:public_place}へ[行く|invite]。"),
        _b("[ごめん/すみません]、{day:weekday}は{~home_reason.base}から、{other_day:weekday}なら[行く|can+nonpast]よ。", "{day:weekday}は{~home_reason.base}けれど、{other_day:weekday}は[空いている|nonpast]よ。"),
        _a("それなら{other_day:weekday}に{c_call:call}も[誘う|volitional]。", "{other_day:weekday}なら{c_call:call}も一緒に[来る|can+nonpast]よ。"),
        _b("待ち合わせは{mark:landmark}の{~near}で[いい|ask]。", "{other_day:weekday}の{~daypart}に{mark:landmark}の前で[会う|can+ask]。"),
        _a("{clock:day_clock}に{treat:fine_food}を持って{mark:landmark}へ[行く|nonpast]よ。", "{clock:day_clock}に{mark:landmark}の{~near}で[待つ|progressive+nonpast]よ。"),
        _b("{treat:fine_food}なら{c_call:call}もきっと[喜ぶ|nonpast]ね。", "{~wind}が吹くそう[だ|nonpast]から、{item:weather_item}を[持っていく|nonpast]よ。")),
    # the doctor
    _script("医者",
        _b("{a_call:call}、{~greeting_weather}なのに顔色が悪いですね。", "{a_call:call}、{since:since}具合が悪いと{c:person}さんから聞きました。"),
        _a("{since:since}{symptom.te:symptom}、{duty_off}を休んでいます。", "{since:since}{symptom.base:symptom}ので、{~night_act.base}こともできません。"),
        _b("{meal_time:meal_time}に{treat:fine_food}は食べられましたか。", "{since:since}、熱を測って{~medicine}を飲みましたか。"),
        _a("{~warm_dish}を食べて、{~hot_drink}を少しだけ飲みました。", "{since:since}{~hot_drink}しか飲んでいません。"),
        _b("それでは{~medicine}を出しますから、{meal_time:meal_time}の後に飲んでください。", "{~medicine}を飲んで、{~advice.te}ください。"),
        _a("{day:weekday}に{contest:contest}があるのですが、{place:public_place}へ行ってもいいですか。", "{recovery_days:recovery_days}には{~night_act.te}もいいですか。"),
        _b("{recovery_days:recovery_days}までは休んで、{~advice.te}ください。", "いいえ、{a_call:call}、{day:weekday}までは{~advice.base}ことが大切です。")),
    # lost and found
    _script("警察官",
        _a("すみません、{when:found_when}{place:public_place}で{~look}{lost:belongings}を落としました。", "{when:found_when}、{mark:landmark}の{~near}で{lost:belongings}をなくしてしまいました。"),
        _b("{lost:belongings}のことは、{mark:landmark}の{~near}の人にも聞きましたか。", "{mark:landmark}へ電話しますから、{lost:belongings}の色と形を教えてください。"),
        _a("{~look}{lost:belongings}で、{c_call:call}からもらった大切な物です。", "{~colour}布の袋に入っていて、{~surname}という名前が書いてあります。"),
        _b("{when:found_when}、{c:person}さんが{~spot}で拾って届けてくれました。", "{~colour}袋の{lost:belongings}なら、{when:found_when}{mark:landmark}から届きました。"),
        _a("よかったです、{day:weekday}に{c:person}さんにお礼を言いに行きます。", "{lost:belongings}のことは{c_call:call}も{since:since}心配していました。"),
        _b("{a_call:call}、これからは{place:public_place}では{lost:belongings}に気をつけてくださいね。", "{a_call:call}、次は{~look}袋に名前も書いておいてください。", chance=0.6)),
    # the library
    _script("司書",
        _a("{day:weekday}までに読みたいのですが、{subject:book_subject}についての{~goods_本}はありますか。", "{c_call:call}に聞いたのですが、{subject:book_subject}の{~goods_本}はありますか。"),
        _b("{subject:book_subject}の{~goods_本}なら、{~direction}の窓のそばの棚にあります。", "その{~goods_本}は{c:person}さんが借りていて、{day:weekday}に戻ります。"),
        _a("では、{subject:book_subject}の{~goods_本}も見せてください。", "{day:weekday}に返しますから、{number_of_books:count_冊}まとめて借りてもいいですか。"),
        _b("{a_call:call}なら、{number_of_books:count_冊}まで{~many_days}借りられますよ。", "{c:person}さんが面白いと言っていましたから、こちらの{~fine_本}もどうぞ。"),
        _a("{~room}に置いて、{day:weekday}の{~daypart}に読みます。", "{~duration}ここで読んでから、{number_of_books:count_冊}借りて帰ります。"),
        _b("{day:weekday}は{~hour}に閉まりますから、早めに返してください。", "{a_call:call}、{day:weekday}には{subject:book_subject}の話の会もありますよ。", chance=0.7)),
    # weather
    _script("friends",
        _a("{b_call:call}、{~weather_sign}から、明日は{sky.probably:weather_tomorrow}ね。", "{~weather_sign}から、明日は{sky.probably:weather_tomorrow}ね、{b_call:call}。"),
        _b("ラジオでは、{~daypart}から{sky.base:weather_tomorrow}と言って[いる|past]よ。", "そう[だ|nonpast]ね、{c_call:call}も{sky.base:weather_tomorrow}と言って[いる|past]よ。"),
        _a("それなら{item:weather_item}を持って{place:public_place}へ[行く|nonpast]よ。", "[困ったな/困りました]、{day:weekday}に{place:public_place}で{contest:contest}が[ある|explain]。"),
        _b("{~daypart}は{sky.base:weather_tomorrow}から、{item:weather_item}も忘れないで[いる|please]。", "{c_call:call}の家に{item:weather_item}が[ある|nonpast]から、借りて[いく|volitional]。"),
        _a("{b_call:call}は{~colour}{item:weather_item}を[持つ|progressive+ask]。", "{b_call:call}は新しい{item:weather_item}を{~shop}でもう[買う|ask_past]。"),
        _b("[うん/はい]、{~colour_one}を{~town}の服屋で[買う|past]よ。", "{~month}はいつも{~wind}が[吹く|nonpast]から、先に[買う|past]よ。")),
    # school and family
    _script("family",
        _b("{a_call:call}、{lesson:lesson}の宿題はもう[終わる|ask_past]。", "{a_call:call}、{meal_time:meal_time}の前に{lesson:lesson}の宿題を[する|please]。"),
        _a("{lesson:lesson}は終わったけれど、{homework.base:homework}宿題がまだ[残る|progressive+nonpast]。", "{homework.base:homework}のは{~span}[かかる|nonpast]から、まだ[だ|nonpast]よ。"),
        _b("それなら{meal_time:meal_time}の後で、{homework.base:homework}のを[手伝う|nonpast]よ。", "{~daypart}までに終わったら、{~bought_food}を[出す|nonpast]よ。"),
        _a("{b_call:call}、{mark:landmark}の{~near}で見た{treat:fine_food}も[食べる|want+nonpast]な。", "{treat:fine_food}があるなら、{minutes:minutes}で[終わらせる|nonpast]よ。"),
        _b("{treat:fine_food}は{c_call:call}がくれたから、{day:weekday}にお礼を[言う|please]。", "{homework.base:homework}のが終わったら、{~place_quality}{place:public_place}にも[行く|volitional]。"),
        _a("分かった、{~room}で{homework.te:homework}から[行く|nonpast]。", "{b_call:call}と一緒なら、{homework.base:homework}のも[楽しい|nonpast]よ。", chance=0.7)),
    # the kitchen
    _script("family",
        _a("{b_call:call}、{mark:landmark}まで匂いがしたけれど、{meal_time:meal_time}は何を[作る|ask]。", "{b_call:call}、{meal_time:meal_time}に{~dish}を[食べる|want+nonpast]な。"),
        _b("{~vegetable}と{~vegetable}があるから、{dish}を[作る|nonpast]よ。", "{c_call:call}から{~vegetable}をもらったから、{dish}に[する|nonpast]よ。"),
        _a("{dish}なら、{~vegetable}を切るのを[手伝う|nonpast]よ。", "{~vegetable}も入れると、{dish}はもっとおいしく[なる|nonpast]ね。"),
        _b("[ありがとう/ありがとうございます]、{~room}にある{~vegetable}を[洗う|please]。", "{minutes:minutes}煮るから、{~vegetable}を細かく[切る|please]。"),
        _a("少し{~taste.base}けれど、{c_call:call}の{dish}より[おいしい|nonpast]ね。", "{minutes:minutes}煮たら、{~vegetable}が[柔らかい|become+past]よ。"),
        _b("{~taste.base}なら、{~vegetable}と{~vegetable}を[足す|volitional]。", "{dish}ができたら、{c_call:call}の家にも[届ける|please]。")),
    # a telephone call
    _script("friends",
        _a("もしもし、{b_call:call}、{mark:landmark}の前で{minutes:minutes}も[待つ|progressive+nonpast]よ。", "もしもし、{b_call:call}、{clock:day_clock}の約束を[忘れる|ask_past]。"),
        _b("[ごめん/すみません]、{~train_trouble}で電車が{minutes:minutes}[遅れる|progressive+nonpast]。", "[ごめんね/すみません]、{mark:landmark}で{lost:belongings}を落として[探す|progressive+past]。"),
        _a("それなら{mark:landmark}の{~near}で{~wait_act.te}[待つ|nonpast]よ。", "{c_call:call}も探すそうだから、{~spot}も見て[みる|please]。"),
        _b("{minutes:minutes}後には{mark:landmark}に[着く|nonpast]から、{~hot_drink}でも飲んで[待つ|please]。", "[ありがとう/ありがとうございます]、{clock:day_clock}までには{mark:landmark}へ[行く|nonpast]よ。"),
        _a("{treat:fine_food}を買っておくから、急がなくて[いい|nonpast]よ。", "{c_call:call}も{clock:day_clock}に来るから、ゆっくり[来る|please]。")),
    # news
    _script("friends",
        _a("{b_call:call}、{~news}よ。", "{b_call:call}、{~news}って[知る|progressive+ask]。"),
        _b("それを{when:found_when}{c_call:call}に[聞く|ask_past]。", "{mark:landmark}の{~near}の人は何も言って[いる|past_negative]よ。"),
        _a("{when:found_when}、{mark:landmark}の{~near}で{c_call:call}から[聞く|past]よ。", "{day:weekday}の新聞で読んで、{c_call:call}も[驚く|progressive+past]よ。"),
        _b("{c_call:call}にも{day:weekday}に{mark:landmark}で会ったら[教える|nonpast]よ。", "それなら{day:weekday}に{~bought_present}を[持っていく|volitional]。"),
        _a("{~fine_present}なら、{c_call:call}も[喜ぶ|nonpast]ね。", "{clock:day_clock}に{mark:landmark}で待って[いる|nonpast]から、一緒に[行く|volitional]。")),
    # travelling
    _script("駅員",
        _a("{far_sight:sight}を見に行くのですが、{far_town:town}へ行く電車は何時に出ますか。", "すみません、{mark:landmark}の前で聞いたのですが、{far_town:town}までの切符は{fare}円ですか。"),
        _b("{clock:day_clock}の電車に乗れば、{minutes:minutes}で{far_town:town}に着きます。", "{far_town:town}へは{minutes:minutes}かかり、次は{clock:day_clock}発です。"),
        _a("{far_town:town}の名物は{far_product:town_product}だと{c_call:call}から聞きました。", "{clock:day_clock}に約束があるのですが、{~train_trouble}で遅れることはありませんか。"),
        _b("{a_call:call}、{far_town:town}では{far_sight:sight}も有名ですよ。", "今日は{minutes:minutes}くらい遅れるかもしれませんから、{waiting:room_of_station}でお待ちください。"),
        _a("では、{c_call:call}と行くので、{clock:day_clock}の切符を{tickets:count_枚}お願いします。", "それなら、{waiting:room_of_station}で{~wait_act.te}待ちます。"),
        _b("切符は一枚{fare}円ですから、{clock:day_clock}までに{platform}番線へどうぞ。", "{a_call:call}、{clock:day_clock}になったら、{platform}番線に来てください。")),
    # the festival
    _script("friends",
        _a("{b_call:call}、{festival_month:month}の{festival}にはもう[行く|ask_past]。", "{b_call:call}、今年の{festival}は{day:weekday}だと{c_call:call}が言って[いる|past]よ。"),
        _b("[うん/はい]、{c_call:call}と{stall_food:stall_food}を食べながら[見る|past]よ。", "{festival}なら、{mark:landmark}の前で太鼓の練習を[する|progressive+nonpast]よ。"),
        _a("{sight}の{~near}で{c_call:call}が{stall_food:stall_food}を売っているのを[見る|past]よ。", "{c_call:call}は{festival}で{~instrument}を[演奏する|nonpast]よ。"),
        _b("{c_call:call}が作る{stall_food:stall_food}のほうが[好きだ|nonpast]よ。", "{clock:day_clock}に{mark:landmark}へ行けば、一番前で[見る|can+nonpast]よ。"),
        _a("それなら{clock:day_clock}に{mark:landmark}の{~near}で[会う|volitional]。", "{item:weather_item}を持って、{day:weekday}は{c_call:call}も[誘う|volitional]。")),
    # hobbies
    _script("friends",
        _a("{b_call:call}は{day:weekday}の{~daypart}には何を[する|progressive+ask]。", "{b_call:call}、{when:found_when}{mark:landmark}で何を[する|progressive+ask_past]。"),
        _b("{c_call:call}に教わって、{mark:landmark}の{~near}で{act.te:hobby}[いる|nonpast]よ。", "{c_call:call}と{act.te:hobby}[いる|past]よ。"),
        _a("{act.base:hobby}のは{~hobby.base}のとは[違う|ask]。", "[いいね/いいですね]、{c_call:call}も{act.base:hobby}のが好きだと言って[いる|past]よ。"),
        _b("初めは難しいけれど、{act.base:hobby}のを{~many_days}も続ければ[上手だ|become+nonpast]よ。", "{~hobby.base}よりは{act.base:hobby}ほうが易しいと[思う|nonpast]よ。"),
        _a("それなら{day:weekday}に{act.base:hobby}のを[教える|please]。", "{~hobby.base}のに飽きたら、{act.te:hobby}[みる|nonpast]よ。"),
        _b("{day:weekday}の{~daypart}に{c_call:call}も呼ぶから、{mark:landmark}へ[来る|please]。", "{c_call:call}も{day:weekday}から[始める|nonpast]から、{mark:landmark}で一緒に[習う|volitional]。")),
    # at school
    _script("先生",
        _b("{a_call:call}、{day:weekday}の{lesson:lesson}で{subject:book_subject}について話してください。", "{a_call:call}の{subject:book_subject}についての作文は{~degree}よかったですよ。"),
        _a("はい、{c_call:call}と一緒に{subject:book_subject}のことを調べます。", "{mark:landmark}の{~near}で{c_call:call}から聞いた話を書きました。"),
        _b("{place:public_place}へ行けば、{subject:book_subject}の{~goods_本}がありますよ。", "{a_call:call}は{day:weekday}までに{subject:book_subject}の絵も描けますか。"),
        _a("{~daypart}に{c_call:call}と{place:public_place}へ行って、{~duration}調べてみます。", "{subject:book_subject}の絵なら、{~colour}絵の具で描いてみたいです。"),
        _b("{subject:book_subject}のことで困ったら、{c:person}さんにも聞いてみましょう。", "{day:weekday}の{lesson:lesson}の時間に{~room}で見せてくださいね。"),
        _a("先生は{subject:book_subject}の話では何が一番好きですか。", "{recovery_days:recovery_days}には{subject:book_subject}のことを{tickets:count_枚}書いて持ってきます。", chance=0.6)),
)
