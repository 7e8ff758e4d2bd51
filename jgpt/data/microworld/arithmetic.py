"""Arithmetic word problems with worked steps, from the world's prices, ages and animals.

Numbers stand in digits here. A text has three lines: 【問題】, 【考え方】 and 【答え】.
"""
# ruff: noqa: E501  (a sentence frame stays on one line, to be read as a sentence)

from __future__ import annotations

from jgpt.data.microworld import people, phrases  # noqa: F401  (phrases defines slot types used here)
from jgpt.data.microworld.frames import Random, define, frame, frames, pick
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.things import Thing
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

# --- slot types ---------------------------------------------------------------------------
define("unit", [*COUNTERS_OF_THINGS, "羽", "頭", "円", "人", "袋", "歳", "メートル", "ページ", "日", "分", "列", "点"])
_GOODS_COUNTERS = tuple(dict.fromkeys(thing.counter for thing in WORLD.things))
define("priced", patterns=[f"1{c}{{~number}}円の{{~by_{c}}}を{{~number}}{c}" for c in _GOODS_COUNTERS])
define("amount", patterns=[f"{{~by_{c}}}を{{~number}}{c}" for c in _GOODS_COUNTERS])
define("amount_of", patterns=[f"{{~number}}{c}の{{~by_{c}}}" for c in _GOODS_COUNTERS])
define("quantity", patterns=["{~number}{~unit}"])
define("unit_price", patterns=[f"{{~by_{c}}}は1{c}{{~number}}円" for c in _GOODS_COUNTERS])
define("sum", patterns=["{~number}+{~number}={~quantity}", "{~number}+{~number}+{~number}={~quantity}"])
define("difference", patterns=["{~number}-{~number}={~quantity}"])
define("product", patterns=["{~number}×{~number}={~quantity}"])
define("quotient", patterns=["{~number}÷{~number}={~quantity}", "{~number}÷{~number}={~number}余り{~number}"])
define("named_animal", [animal.name for animal in WORLD.animals if animal.legs])
define("legged", patterns=["{~named_animal}が{~number}匹", "{~named_animal}が{~number}羽", "{~named_animal}が{~number}頭"])
define("legs", patterns=["{~named_animal}の足は{~number}本"])
define("kin_age", patterns=["{~kin}は{~number}歳"])
define("time_of_day", patterns=["午前{~number}時{~number}分", "午後{~number}時{~number}分", "午前{~number}時", "午後{~number}時"])
define("vehicle", "バス 電車 船 市電".split())
define("task", "宿題 仕事 手伝い 練習 片付け 掃除".split())

Problem = tuple[list[str], list[str], str]  # sentences, steps, answer


class Sheet(Writer):
    """What a problem is written with; it knows what goods cost."""

    def goods(self, shop: str | None = None) -> Thing:
        """A thing that costs at most 3000 yen, of the shop if one is given."""
        return pick(_AFFORDABLE[shop], self.random) if shop else pick(_ANY_AFFORDABLE, self.random)

    def two_goods(self) -> tuple[Thing, Thing]:
        """Two things of one shop with different prices."""
        shop = pick(_SHOPS_WITH_TWO, self.random)
        first = self.goods(shop)
        second = self.goods(shop)
        while second.price == first.price:
            second = self.goods(shop)
        return first, second


_ANY_AFFORDABLE = tuple(thing for thing in WORLD.things if thing.price <= 3000)
_DEAR = tuple(thing for thing in WORLD.things if thing.price >= 900)
_AFFORDABLE = {
    shop: tuple(thing for thing in goods if thing.price <= 3000)
    for shop, goods in WORLD.goods.items()
}
_SHOPS_WITH_TWO = tuple(
    shop for shop, goods in _AFFORDABLE.items() if len({thing.price for thing in goods}) > 1
)


# --- problems -----------------------------------------------------------------------------
_BUY = frames(
    "{~some_day}、{a:person}は{~town}の{shop}で{priced}[買う|past]。",
    "{a:person}は{~town}の{~shop_quality}{shop}へ行き、{priced}[買う|past]。",
    "{~person}に頼まれて、{a:person}は{shop}で{priced}[買う|past]。",
)
_BUY_TWO = frames(
    "{~some_day}、{a:person}は{shop}で{priced}、{priced2:priced}[買う|past]。",
    "{a:person}は{~town}の{shop}で、{priced}と{priced2:priced}[買う|past]。",
)
_HOW_MUCH = frames(
    "{a:person}が払う代金は全部で何円[だ|question]。",
    "{~shop_quality}{shop}で{a:person}が払うお金は何円[だ|question]。",
    "{a:person}が{shop}で使ったお金は合わせて何円[だ|question]。",
)
_EACH_PRICE = frames(
    "{unit_price}だから、代金は{product}[だ|nonpast]。",
    "{unit_price}で、代金は{product}に[なる|nonpast]。",
)
_TOGETHER = frames("合わせると{sum}[だ|nonpast]。", "全部で{sum}に[なる|nonpast]。", "二つを足して{sum}[だ|nonpast]。")
_ANSWER = frame("{answer:quantity}です。")


def _priced(thing: Thing, number: int) -> str:
    return f"1{thing.counter}{thing.price}円の{thing.name}を{number}{thing.counter}"


def _price_step(sheet: Sheet, thing: Thing, number: int) -> tuple[str, int]:
    total = thing.price * number
    unit = f"{thing.name}は1{thing.counter}{thing.price}円"
    step = sheet.say(_EACH_PRICE, unit_price=unit, product=f"{thing.price}×{number}={total}円")
    return step, total


def _one_kind(sheet: Sheet) -> Problem:
    thing, number = sheet.goods(), sheet.number(2, 9)
    told = [sheet.say(_BUY, shop=thing.shop, priced=_priced(thing, number)), sheet.say(_HOW_MUCH)]
    step, total = _price_step(sheet, thing, number)
    return told, [step], f"{total}円"


def _two_kinds(sheet: Sheet) -> Problem:
    thing, other = sheet.two_goods()
    n, m = sheet.number(2, 6), sheet.number(2, 6)
    told = [
        sheet.say(_BUY_TWO, shop=thing.shop, priced=_priced(thing, n), priced2=_priced(other, m)),
        sheet.say(_HOW_MUCH),
    ]
    first, total = _price_step(sheet, thing, n)
    second, more = _price_step(sheet, other, m)
    both = total + more
    return told, [first, second, sheet.say(_TOGETHER, sum=f"{total}+{more}={both}円")], f"{both}円"


_PAY = frames(
    "{a:person}は店の人に{paid:number}円[渡す|past]。",
    "{a:person}は{~look}財布から{paid:number}円[出す|past]。",
)
_CHANGE_ASKED = frames(
    "{a:person}が受け取るおつりは何円[だ|question]。", "{shop}の店員が{a:person}に返すおつりは何円[だ|question]。"
)
_CHANGE = frames("{paid:number}円払ったので、おつりは{difference}[だ|nonpast]。", "おつりは{paid:number}円から引いて{difference}[だ|nonpast]。")


def _change(sheet: Sheet) -> Problem:
    thing, number = sheet.goods(), sheet.number(2, 6)
    told = [sheet.say(_BUY, shop=thing.shop, priced=_priced(thing, number))]
    step, total = _price_step(sheet, thing, number)
    paid = next(note for note in (100, 500, 1000, 2000, 5000, 10000, 20000) if note > total)
    told += [sheet.say(_PAY, paid=paid), sheet.say(_CHANGE_ASKED)]
    left = paid - total
    return told, [step, sheet.say(_CHANGE, difference=f"{paid}-{total}={left}円")], f"{left}円"


_HAVE = frames(
    "{a:person}は{amount}[持つ|progressive+past]。",
    "{~some_day}、{a:person}は{~person}から{amount}[もらう|past]。",
    "{a:person}は{~town}の{shop}で{amount}[買う|past]。",
)
_GIVE = frames(
    "{a:person}はそのうち{part:quantity}を{b:person}に[あげる|past]。",
    "{~later}、{a:person}は{b:person}に{part:quantity}[渡す|past]。",
)
_GET = frames(
    "{~later}、{b:person}から{more:quantity}[もらう|past]。",
    "{~later}、{a:person}は{b:person}から{more:quantity}[もらう|past]。",
)
_LEFT_ASKED = frames(
    "{a:person}の{thing}は今何{unit}[だ|question]。", "{a:person}に残っている{thing}は何{unit}[だ|question]。"
)
_LEFT = frames("{b:person}にあげたので、{difference}に[なる|nonpast]。", "{thing}は{part:quantity}減って、{difference}[だ|nonpast]。")
_MORE = frames("{b:person}からもらって、{sum}に[なる|nonpast]。", "{thing}は{more:quantity}増えて、{sum}[だ|nonpast]。")


def _remaining(sheet: Sheet) -> Problem:
    thing, start = sheet.goods(), sheet.number(6, 40)
    counter, given = thing.counter, sheet.number(2, 5)
    sheet.cast.update(thing=thing.name, unit=counter, shop=thing.shop, part=f"{given}{counter}")
    told = [sheet.say(_HAVE, amount=f"{thing.name}を{start}{counter}"), sheet.say(_GIVE)]
    left = start - given
    steps = [sheet.say(_LEFT, difference=f"{start}-{given}={left}{counter}")]
    if sheet.random() < 0.6:
        gained = sheet.number(2, 12)
        told.append(sheet.say(_GET, more=f"{gained}{counter}"))
        steps.append(sheet.say(_MORE, sum=f"{left}+{gained}={left + gained}{counter}"))
        left += gained
    return [*told, sheet.say(_LEFT_ASKED)], steps, f"{left}{counter}"


_SHARE = frames(
    "{a:person}は{amount_of}を{people:number}人の友達に同じ数ずつ[分ける|past]。",
    "{~some_day}、{a:person}は{shop}で買った{amount_of}を{people:number}人で同じ数ずつ[分ける|past]。",
)
_SHARE_ASKED = frames("{a:person}から一人がもらう{thing}は何{unit}[だ|question]。", "{a:person}が分けた{thing}は一人何{unit}ずつ[だ|question]。")
_SHARED = frames("{people:number}人で分けるので、{quotient}ずつ[だ|nonpast]。", "{thing}を{people:number}人に分けると、{quotient}ずつに[なる|nonpast]。")


def _share(sheet: Sheet) -> Problem:
    thing, each, number = sheet.goods(), sheet.number(2, 12), sheet.number(2, 9)
    counter, all_of_them = thing.counter, each * number
    sheet.cast.update(thing=thing.name, unit=counter, shop=thing.shop, people=number)
    told = [sheet.say(_SHARE, amount_of=f"{all_of_them}{counter}の{thing.name}"), sheet.say(_SHARE_ASKED)]
    step = sheet.say(_SHARED, quotient=f"{all_of_them}÷{number}={each}{counter}")
    return told, [step], f"{each}{counter}"


_PACK = frames(
    "{a:person}は{amount_of}を{per:quantity}ずつ袋に[入れる|past]。",
    "{~town}の{shop}では、{a:person}が{amount_of}を{per:quantity}ずつ袋に[入れる|past]。",
)
_PACK_ASKED = frames("{per:quantity}入りの袋は何袋できて、{thing}は何{unit}[余る|question]。")
_PACKED = frames("{quotient}だから、{bags:number}袋できて{rest:quantity}[余る|nonpast]。")
_PACK_ANSWER = frame("{bags:number}袋と{rest:quantity}です。")


def _pack(sheet: Sheet) -> Problem:
    thing, per = sheet.goods(), sheet.number(3, 9)
    bags, rest = sheet.number(2, 12), sheet.number(1, per - 1)
    counter, all_of_them = thing.counter, per * bags + rest
    sheet.cast.update(thing=thing.name, unit=counter, shop=thing.shop, per=f"{per}{counter}")
    told = [sheet.say(_PACK, amount_of=f"{all_of_them}{counter}の{thing.name}"), sheet.say(_PACK_ASKED)]
    step = sheet.say(
        _PACKED, quotient=f"{all_of_them}÷{per}={bags}余り{rest}", bags=bags, rest=f"{rest}{counter}"
    )
    return told, [step], f"{bags}袋と{rest}{counter}"


_AGES = frames("{~town}に住む{a:person}は{age:number}歳で、{kin_age}[だ|nonpast]。", "{a:person}の{kin_age}で、{a:person}は{age:number}歳[だ|nonpast]。")
_AGE_GAP_ASKED = frames("{a:person}と{kin}の年の差は何歳[だ|question]。", "{kin}と{a:person}は何歳[違う|question]。")
_AGE_GAP = frames("{kin}と{a:person}の年の差は{difference}[だ|nonpast]。", "大きいほうの年から引いて、{difference}[だ|nonpast]。")
_AGE_LATER_ASKED = frames("{years:number}年後、{a:person}と{kin}の年を足すと何歳[だ|question]。",)
_AGE_LATER = frames("{years:number}年後、{a:person}は{sum}に[なる|nonpast]。")
_AGE_LATER_KIN = frames("{kin}は{sum}に[なる|nonpast]。", "そのとき{kin}は{sum}[だ|nonpast]。")


def _ages(sheet: Sheet) -> Problem:
    person, other, kin = pick(_RELATED, sheet.random)
    sheet.cast.update(a=person.name, kin=kin, age=person.age, kin_age=f"{kin}は{other.age}歳")
    told = [sheet.say(_AGES, town=person.town)]
    if sheet.random() < 0.5:
        low, high = sorted((person.age, other.age))
        told.append(sheet.say(_AGE_GAP_ASKED))
        return told, [sheet.say(_AGE_GAP, difference=f"{high}-{low}={high - low}歳")], f"{high - low}歳"
    years = sheet.number(2, 20)
    told.append(sheet.say(_AGE_LATER_ASKED, years=years))
    one, two = person.age + years, other.age + years
    steps = [
        sheet.say(_AGE_LATER, sum=f"{person.age}+{years}={one}歳"),
        sheet.say(_AGE_LATER_KIN, sum=f"{other.age}+{years}={two}歳"),
        sheet.say(_TOGETHER, sum=f"{one}+{two}={one + two}歳"),
    ]
    return told, steps, f"{one + two}歳"


_RELATED = tuple(
    (person, other, kin)
    for person in WORLD.people
    for other in WORLD.households[person.household]
    if (kin := people.relation(person, other)) and kin != "孫" and person.age != other.age
)
_WALK = frames(
    "{~some_day}、{a:person}は家から{~public_place}まで分速{speed:number}メートルで{time:number}分[歩く|past]。",
    "{a:person}は{~town}の{~landmark}から{~public_place}まで、分速{speed:number}メートルで{time:number}分[走る|past]。",
)
_WALK_ASKED = frames("{a:person}が進んだ道のりは何メートル[だ|question]。")
_WALKED = frames("1分に{speed:number}メートル進むので、{product}[だ|nonpast]。", "道のりは速さと時間を掛けて{product}[だ|nonpast]。")


def _walk(sheet: Sheet) -> Problem:
    speed, time = sheet.number(50, 160, 5), sheet.number(4, 45)
    told = [sheet.say(_WALK, speed=speed, time=time), sheet.say(_WALK_ASKED)]
    return told, [sheet.say(_WALKED, product=f"{speed}×{time}={speed * time}メートル")], f"{speed * time}メートル"


_SAVE = frames(
    "{a:person}は{thing}を買うために、毎週{weekly:number}円ずつ{weeks_n:number}週間お金を[ためる|past]。",
    "{~month}から{a:person}は毎週{weekly:number}円ずつ、{weeks_n:number}週間[貯金する|past]。",
)
_SAVED_FIRST = frames("初めに{start:number}円[持つ|progressive+past]。", "{a:person}の貯金箱には初めに{start:number}円[ある|past]。")
_SAVE_ASKED = frames("{a:person}のお金は全部で何円に[なる|question_past]。", "{weeks_n:number}週間後、{a:person}のお金は何円[だ|question]。")
_SAVED = frames("ためたお金は{product}[だ|nonpast]。", "{weeks_n:number}週間で{product}[たまる|nonpast]。")
_SAVED_ALL = frames("初めの{start:number}円を足して、{sum}[だ|nonpast]。")


def _save(sheet: Sheet) -> Problem:
    weekly, weeks, start = sheet.number(50, 600, 10), sheet.number(3, 20), sheet.number(100, 3000, 100)
    told = [
        sheet.say(_SAVE, weekly=weekly, weeks_n=weeks, thing=pick(_DEAR, sheet.random).name),
        sheet.say(_SAVED_FIRST, start=start),
        sheet.say(_SAVE_ASKED),
    ]
    earned = weekly * weeks
    steps = [
        sheet.say(_SAVED, product=f"{weekly}×{weeks}={earned}円"),
        sheet.say(_SAVED_ALL, sum=f"{earned}+{start}={earned + start}円"),
    ]
    return told, steps, f"{earned + start}円"


_READ = frames(
    "{a:person}は{pages:number}ページの{book:goods_本}を、1日に{daily:number}ページずつ[読む|nonpast]。",
    "{~town}の図書館で借りた{pages:number}ページの{book:goods_本}を、{a:person}は1日に{daily:number}ページずつ[読む|nonpast]。",
)
_READ_ASKED = frames("{a:person}が{book:goods_本}を読み終わるのは何日目[だ|question]。", "{a:person}が{book:goods_本}を全部読むのに何日[かかる|question]。")
_READ_DONE = frames("{pages:number}ページを{daily:number}ページずつ読むから、{quotient}[だ|nonpast]。")


def _read(sheet: Sheet) -> Problem:
    daily, days = sheet.number(4, 25), sheet.number(4, 20)
    book = pick(WORLD.goods["本屋"], sheet.random).name
    told = [sheet.say(_READ, pages=daily * days, daily=daily, book=book), sheet.say(_READ_ASKED)]
    return told, [sheet.say(_READ_DONE, quotient=f"{daily * days}÷{daily}={days}日")], f"{days}日"


_RIDE = frames("{~town}を出る{vehicle}に客が{on:number}人[乗る|progressive+past]。", "{~clock}の{vehicle}には、{a:person}を入れて{on:number}人の客が[いる|past]。")
_RIDE_CHANGE = frames("{~landmark}の前で{off:number}人が降り、{new:number}人が[乗る|past]。", "次の{~town}で{off:number}人が降りて、{new:number}人が[乗る|past]。")
_RIDE_ASKED = frames("{~town}へ向かう{vehicle}に今乗っている客は何人[だ|question]。", "{~landmark}の前を出た{vehicle}の客は何人に[なる|question_past]。")
_RIDE_OFF = frames("{off:number}人が降りて、{difference}に[なる|nonpast]。")
_RIDE_ON = frames("{new:number}人が乗って、{sum}に[なる|nonpast]。", "そこへ{new:number}人が乗ったので、{sum}[だ|nonpast]。")


def _ride(sheet: Sheet) -> Problem:
    start, new = sheet.number(10, 60), sheet.number(2, 25)
    off = sheet.number(2, 9)
    left = start - off
    told = [sheet.say(_RIDE, on=start), sheet.say(_RIDE_CHANGE, off=off, new=new), sheet.say(_RIDE_ASKED)]
    steps = [
        sheet.say(_RIDE_OFF, difference=f"{start}-{off}={left}人"),
        sheet.say(_RIDE_ON, sum=f"{left}+{new}={left + new}人"),
    ]
    return told, steps, f"{left + new}人"


_START = frames("{a:person}は{time_of_day}に家を出て、{~public_place}まで{minutes_n:number}分[歩く|past]。", "{a:person}は{time_of_day}から{task}を始め、{minutes_n:number}分[続ける|past]。")
_START_ASKED = frames("{a:person}が終えた時刻は何時何分[だ|question]。", "{a:person}が終わったのは何時何分[だ|question]。")
_CLOCK_STEP = frames("{hour_n:number}時{minute_n:number}分の{minutes_n:number}分後は、{minute_n:number}+{minutes_n:number}={total_n:number}分から[考える|nonpast]。")
_CLOCK_STEP_2 = frames("{total_n:number}分は{carry:number}時間{rest_n:number}分だから、{time2:time_of_day}[だ|nonpast]。")
_CLOCK_ANSWER = frame("{answer_time:time_of_day}です。")


def _clock(sheet: Sheet) -> Problem:
    half = pick(("午前", "午後"), sheet.random)
    hour, minute = sheet.number(1, 8), sheet.number(5, 55, 5)
    minutes = sheet.number(65 - minute, 175 - minute, 5)
    carry, rest = divmod(minute + minutes, 60)
    end = f"{half}{hour + carry}時" + (f"{rest}分" if rest else "")
    told = [sheet.say(_START, time_of_day=f"{half}{hour}時{minute}分", minutes_n=minutes), sheet.say(_START_ASKED)]
    steps = [
        sheet.say(_CLOCK_STEP, hour_n=hour, minute_n=minute, total_n=minute + minutes),
        sheet.say(_CLOCK_STEP_2, carry=carry, rest_n=rest, time2=end),
    ]
    return told, steps, end


_ROWS = frames("{a:person}は{~public_place}に椅子を1列に{each:number}脚ずつ、{rows:number}列[並べる|past]。", "{~town}の音楽堂で、{a:person}は椅子を{each:number}脚ずつ{rows:number}列に[並べる|past]。")
_ROWS_ASKED = frames("{a:person}が並べた椅子は全部で何脚[だ|question]。")
_ROWS_DONE = frames("{each:number}脚の列が{rows:number}列あるので、{product}[だ|nonpast]。")


def _rows(sheet: Sheet) -> Problem:
    each, rows = sheet.number(4, 25), sheet.number(3, 20)
    told = [sheet.say(_ROWS, each=each, rows=rows), sheet.say(_ROWS_ASKED)]
    return told, [sheet.say(_ROWS_DONE, product=f"{each}×{rows}={each * rows}脚")], f"{each * rows}脚"


_LEGS = frames("{a:person}は{~outdoor_place}の{~near}で、{legged}と{legged2:legged}いるのを[見る|past]。", "{~town}の動物園には{legged}、{legged2:legged}[いる|nonpast]。")
_LEGS_ASKED = frames("{animal:named_animal}と{animal2:named_animal}の足は全部で何本[だ|question]。")
_LEGS_STEP = frames("{legs}だから、{product}[だ|nonpast]。", "{legs}で、合わせて{product}に[なる|nonpast]。")
_LEGGED = tuple(animal for animal in WORLD.animals if animal.legs)


def _legs(sheet: Sheet) -> Problem:
    one, two = pick(_LEGGED, sheet.random), pick(_LEGGED, sheet.random)
    while two is one:
        two = pick(_LEGGED, sheet.random)
    n, m = sheet.number(2, 12), sheet.number(2, 12)
    told = [
        sheet.say(_LEGS, legged=f"{one.name}が{n}{one.counter}", legged2=f"{two.name}が{m}{two.counter}"),
        sheet.say(_LEGS_ASKED, animal=one.name, animal2=two.name),
    ]
    first, second = one.legs * n, two.legs * m
    steps = [
        sheet.say(_LEGS_STEP, legs=f"{one.name}の足は{one.legs}本", product=f"{one.legs}×{n}={first}本"),
        sheet.say(_LEGS_STEP, legs=f"{two.name}の足は{two.legs}本", product=f"{two.legs}×{m}={second}本"),
        sheet.say(_TOGETHER, sum=f"{first}+{second}={first + second}本"),
    ]
    return told, steps, f"{first + second}本"


_PRICES = frames("{~town}の{shop}では、{unit_price}で、{unit_price2:unit_price}[だ|nonpast]。", "{a:person}が{shop}で値段を調べると、{unit_price}、{unit_price2:unit_price}[だ|past]。")
_PRICE_GAP_ASKED = frames("{thing}と{thing2:thing}の値段の差は何円[だ|question]。")
_PRICE_GAP = frames("高いほうの{thing}から引いて、{difference}[だ|nonpast]。", "{thing}のほうが高く、差は{difference}[だ|nonpast]。")


def _price_gap(sheet: Sheet) -> Problem:
    one, two = sheet.two_goods()
    dear, cheap = (one, two) if one.price > two.price else (two, one)
    gap = dear.price - cheap.price
    told = [
        sheet.say(
            _PRICES,
            shop=one.shop,
            unit_price=f"{one.name}は1{one.counter}{one.price}円",
            unit_price2=f"{two.name}は1{two.counter}{two.price}円",
        ),
        sheet.say(_PRICE_GAP_ASKED, thing=dear.name, thing2=cheap.name),
    ]
    return told, [sheet.say(_PRICE_GAP, difference=f"{dear.price}-{cheap.price}={gap}円")], f"{gap}円"


_SCHEMES = (
    *(_one_kind, _two_kinds, _two_kinds, _change, _change, _remaining, _remaining, _share, _pack),
    *(_ages, _walk, _save, _read, _ride, _clock, _rows, _legs, _price_gap),
)


def make(random: Random) -> tuple[str, str, str]:
    """One problem: the prompt ends after 【考え方】, the rest is the steps and the answer."""
    sheet = Sheet(random)
    told, steps, answer = pick(_SCHEMES, random)(sheet)
    prompt = f"【問題】{''.join(told)}\n【考え方】"
    return f"{prompt}{''.join(steps)}\n【答え】{answer}です。", prompt, answer
