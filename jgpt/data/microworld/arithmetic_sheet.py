"""What word problems are written with: slot types, prices, and the frames all share."""

from __future__ import annotations

from jgpt.data.microworld import phrases  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.frames import define, frame, frames, pick
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.things import Thing
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

define(
    "unit",
    [
        *COUNTERS_OF_THINGS,
        "羽",
        "頭",
        "円",
        "人",
        "袋",
        "歳",
        "メートル",
        "ページ",
        "日",
        "分",
        "列",
        "点",
    ],
)
define(
    "priced",
    patterns=[f"1{c}{{~number}}円の{{~by_{c}}}を{{~number}}{c}" for c in COUNTERS_OF_THINGS],
)
define("amount", patterns=[f"{{~by_{c}}}を{{~number}}{c}" for c in COUNTERS_OF_THINGS])
define("amount_of", patterns=[f"{{~number}}{c}の{{~by_{c}}}" for c in COUNTERS_OF_THINGS])
define("quantity", patterns=["{~number}{~unit}"])
define("unit_price", patterns=[f"{{~by_{c}}}は1{c}{{~number}}円" for c in COUNTERS_OF_THINGS])
define(
    "sum", patterns=["{~number}+{~number}={~quantity}", "{~number}+{~number}+{~number}={~quantity}"]
)
define("difference", patterns=["{~number}-{~number}={~quantity}"])
define("product", patterns=["{~number}×{~number}={~quantity}"])
define(
    "quotient",
    patterns=["{~number}÷{~number}={~quantity}", "{~number}÷{~number}={~number}余り{~number}"],
)
define("named_animal", [animal.name for animal in WORLD.animals if animal.legs])
define(
    "legged",
    patterns=[
        "{~named_animal}が{~number}匹",
        "{~named_animal}が{~number}羽",
        "{~named_animal}が{~number}頭",
    ],
)
define("legs", patterns=["{~named_animal}の足は{~number}本"])
define("kin_age", patterns=["{~kin}は{~number}歳"])
define(
    "time_of_day",
    patterns=[
        "午前{~number}時{~number}分",
        "午後{~number}時{~number}分",
        "午前{~number}時",
        "午後{~number}時",
    ],
)
define("vehicle", "バス 電車 船 市電")
define("task", "宿題 仕事 手伝い 練習 片付け 掃除")

TOGETHER = frames(
    "合わせると{sum}[だ|nonpast]。",
    "全部で{sum}に[なる|nonpast]。",
    "二つを足して{sum}[だ|nonpast]。",
)
frame("{answer:quantity}です。")  # how answers are given

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
DEAR = tuple(thing for thing in WORLD.things if thing.price >= 900)
_AFFORDABLE = {
    shop: tuple(thing for thing in goods if thing.price <= 3000)
    for shop, goods in WORLD.goods.items()
}
_SHOPS_WITH_TWO = tuple(
    shop for shop, goods in _AFFORDABLE.items() if len({thing.price for thing in goods}) > 1
)
