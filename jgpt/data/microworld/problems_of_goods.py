"""Word problems about goods: prices, change, giving, sharing, packing."""

from __future__ import annotations

from jgpt.data.microworld.arithmetic_sheet import TOGETHER, Problem, Sheet
from jgpt.data.microworld.frames import frame, frames
from jgpt.data.microworld.things import Thing

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
    return told, [first, second, sheet.say(TOGETHER, sum=f"{total}+{more}={both}円")], f"{both}円"


_PAY = frames(
    "{a:person}は店の人に{paid:number}円[渡す|past]。",
    "{a:person}は{~look}財布から{paid:number}円[出す|past]。",
)
_CHANGE_ASKED = frames(
    "{a:person}が受け取るおつりは何円[だ|question]。",
    "{shop}の店員が{a:person}に返すおつりは何円[だ|question]。",
)
_CHANGE = frames(
    "{paid:number}円払ったので、おつりは{difference}[だ|nonpast]。",
    "おつりは{paid:number}円から引いて{difference}[だ|nonpast]。",
)


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
    "{a:person}の{thing}は今何{unit}[だ|question]。",
    "{a:person}に残っている{thing}は何{unit}[だ|question]。",
)
_LEFT = frames(
    "{b:person}にあげたので、{difference}に[なる|nonpast]。",
    "{thing}は{part:quantity}減って、{difference}[だ|nonpast]。",
)
_MORE = frames(
    "{b:person}からもらって、{sum}に[なる|nonpast]。",
    "{thing}は{more:quantity}増えて、{sum}[だ|nonpast]。",
)


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
_SHARE_ASKED = frames(
    "{a:person}から一人がもらう{thing}は何{unit}[だ|question]。",
    "{a:person}が分けた{thing}は一人何{unit}ずつ[だ|question]。",
)
_SHARED = frames(
    "{people:number}人で分けるので、{quotient}ずつ[だ|nonpast]。",
    "{thing}を{people:number}人に分けると、{quotient}ずつに[なる|nonpast]。",
)


def _share(sheet: Sheet) -> Problem:
    thing, each, number = sheet.goods(), sheet.number(2, 12), sheet.number(2, 9)
    counter, all_of_them = thing.counter, each * number
    sheet.cast.update(thing=thing.name, unit=counter, shop=thing.shop, people=number)
    told = [
        sheet.say(_SHARE, amount_of=f"{all_of_them}{counter}の{thing.name}"),
        sheet.say(_SHARE_ASKED),
    ]
    step = sheet.say(_SHARED, quotient=f"{all_of_them}÷{number}={each}{counter}")
    return told, [step], f"{each}{counter}"


_PACK = frames(
    "{a:person}は{amount_of}を{per:quantity}ずつ袋に[入れる|past]。",
    "{~town}の{shop}では、{a:person}が{amount_of}を{per:quantity}ずつ袋に[入れる|past]。",
)
_PACK_ASKED = frames("{per:quantity}入りの袋は何袋できて、{thing}は何{unit}[余る|question]。")
_PACKED = frames("{quotient}だから、{bags:number}袋できて{rest:quantity}[余る|nonpast]。")
frame("{bags:number}袋と{rest:quantity}です。")  # how the answer is given


def _pack(sheet: Sheet) -> Problem:
    thing, per = sheet.goods(), sheet.number(3, 9)
    bags, rest = sheet.number(2, 12), sheet.number(1, per - 1)
    counter, all_of_them = thing.counter, per * bags + rest
    sheet.cast.update(thing=thing.name, unit=counter, shop=thing.shop, per=f"{per}{counter}")
    told = [
        sheet.say(_PACK, amount_of=f"{all_of_them}{counter}の{thing.name}"),
        sheet.say(_PACK_ASKED),
    ]
    step = sheet.say(
        _PACKED,
        quotient=f"{all_of_them}÷{per}={bags}余り{rest}",
        bags=bags,
        rest=f"{rest}{counter}",
    )
    return told, [step], f"{bags}袋と{rest}{counter}"


_PRICES = frames(
    "{~town}の{shop}では、{unit_price}で、{unit_price2:unit_price}[だ|nonpast]。",
    "{a:person}が{shop}で値段を調べると、{unit_price}、{unit_price2:unit_price}[だ|past]。",
)
_PRICE_GAP_ASKED = frames("{thing}と{thing2:thing}の値段の差は何円[だ|question]。")
_PRICE_GAP = frames(
    "高いほうの{thing}から引いて、{difference}[だ|nonpast]。",
    "{thing}のほうが高く、差は{difference}[だ|nonpast]。",
)


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
    return (
        told,
        [sheet.say(_PRICE_GAP, difference=f"{dear.price}-{cheap.price}={gap}円")],
        f"{gap}円",
    )


GOODS_PROBLEMS = (
    *(_one_kind, _two_kinds, _two_kinds, _change, _change),
    *(_remaining, _remaining, _share, _pack, _price_gap),
)
