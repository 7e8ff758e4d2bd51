"""Which slot types are of one grammatical kind: what the recogniser takes for one another.

The generator draws from narrow types, so that what it tells makes sense (one drops a purse, one
cooks turnips). A sentence is well formed on coarser grounds: a person, a place, a time, food, a
thing, an activity in the form its frame asks for.
"""

from __future__ import annotations

from jgpt.data.microworld import phrases, question_words, things  # noqa: F401  (define types)
from jgpt.data.microworld.frames import define, slot_type
from jgpt.data.microworld.lexicon import FINE_WORDS
from jgpt.data.microworld.towns import PUBLIC_PLACES

# Phrases that only the recogniser builds: any place, thing or activity with what may go before it.
define("any_place", [*PUBLIC_PLACES, *things.SHOPS, *slot_type("landmark").words])
define(
    "place_phrase",
    patterns=[
        "{~any_place}",
        "{~any_place}の{~near}",
        "{~town}の{~any_place}",
        "{~town}の{~any_place}の{~near}",
        "{~place_quality}{~any_place}",
        "{~town}の{~place_quality}{~any_place}",
    ],
)
define("any_quality", [word for words in FINE_WORDS.values() for word in words])
define("any_object", [*slot_type("belongings").words, *slot_type("gadget").words])
define("object_phrase", patterns=["{~any_quality}{~any_object}", "{~colour}{~any_object}"])
# Types of one kind: any filler of one may stand where another is asked for.
_KINDS = (
    "person hero companion introduced called full_name kin relative passer call",
    "public_place town_place landmark shop food_shop outdoor_place site stop wild_site wild_place "
    "workplace habitat plant_place zoo place_phrase",
    "spot room indoors sleeping_place study_room noise_place room_of_station",
    "some_day morning winter_morning summer_day night moment",
    "next_day evening later",
    "weekday season month",
    "clock day_clock time_of_day",
    "duration at_rest",
    "span span_short minutes many_days weeks",
    "found_when since",
    "manner gently at_ease with_care in_detail write_manner kindly kind_manner soon",
    "suddenly abruptly",
    "wind gust cold_wind",
    "colour look petal flower_colour",
    "place_quality shop_quality",
    "hobby night_act place_act practice chore wait_act spot_act homework duty_act advice",
    "animal named_animal stray pet_animal bird",
    "plant garden_plant",
    "job occupation",
    "gratitude gift_thanks comfort praise admiration reply care owner_words",
    "food food_name fine_food dish warm_dish stall_food stray_food vegetable animal_food "
    "bought_food",
    "belongings gadget token weather_item tool wrap shawl handmade hat work_tool fine_keepsake "
    "instrument light object_phrase",
    "thing fine_thing fine_present bought_present town_product",
    "counted counted_fine counted_food",
    "bought bought_meal",
    "weather_tomorrow bad_weather",
    "unit_price_kanji unit_price",
)
# Kinds that include another: food and belongings are things, an activity can be a cause.
_INCLUDES = {"thing": ("food", "belongings"), "cause": ("hobby", "symptom", "bad_weather")}


def _wider() -> dict[str, tuple[str, ...]]:
    kinds = {kind.split()[0]: tuple(kind.split()) for kind in _KINDS}
    first_of = {name: first for first, names in kinds.items() for name in names}
    for first, included in _INCLUDES.items():
        own = kinds.get(first, (first,))
        others = (first_of.get(name, name) for name in included)
        kinds[first] = (*own, *(name for other in others for name in kinds.get(other, (other,))))
    wider = {name: kinds[first] for name, first in first_of.items()}
    wider.update((first, names) for first, names in kinds.items() if first not in wider)
    return wider


# What may stand before an activity: where, and with whom.
ACTIVITY = "hobby"
ADJUNCTS = (("place_phrase", "で"), ("person", "と"), ("person", "と一緒に"))
# slot type: the types whose fillers the recogniser takes there; a type not named takes its own.
WIDER = _wider()
