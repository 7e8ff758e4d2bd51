"""Slot types of the encyclopedic entries."""

from __future__ import annotations

from jgpt.data.microworld import questions  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.frames import define
from jgpt.data.microworld.lexicon import COUNTERS_OF_THINGS
from jgpt.data.microworld.nature import ANIMALS, PLANTS, SEASON_QUALITY
from jgpt.data.microworld.people import JOBS
from jgpt.data.microworld.towns import TOWNS

define("workplace", dict.fromkeys(place for place, _, _ in JOBS.values()))
define("duty_act", predicates=dict.fromkeys(act for _, act, _ in JOBS.values()))
define("work_tool", dict.fromkeys(tool for _, _, tool in JOBS.values()))
define("landscape", [town.landscape for town in TOWNS])
define("town_place", dict.fromkeys(place for town in TOWNS for place in town.places))
define("animal_class", dict.fromkeys(animal.animal_class for animal in ANIMALS))
define("habitat", dict.fromkeys(animal.habitat for animal in ANIMALS))
define("animal_food", dict.fromkeys(animal.food for animal in ANIMALS))
define("animal_quality", predicates=dict.fromkeys(animal.quality for animal in ANIMALS))
define("animal_act", predicates=dict.fromkeys(animal.act for animal in ANIMALS))
define("plant", [plant.name for plant in PLANTS])
define("petal", dict.fromkeys(plant.colour for plant in PLANTS))
define("plant_place", dict.fromkeys(plant.habitat for plant in PLANTS))
define("plant_kind", dict.fromkeys(plant.kind for plant in PLANTS))
define("season_quality", SEASON_QUALITY.values())
define("one_price", patterns=[f"一{c}{{~number}}円" for c in COUNTERS_OF_THINGS])
define("counting", patterns=[f"一{c}、二{c}、三{c}" for c in (*COUNTERS_OF_THINGS, "羽", "頭")])
define("more_or_less", predicates="多い 少ない")
define("dear_or_cheap", predicates="高い 安い")
define("larger_or_smaller", predicates="大きい 小さい")
define("older_or_younger", ["年上", "年下"])
define("bird", [animal.name for animal in ANIMALS if animal.animal_class == "鳥"])
define("zoo", "動物園 水族館 草むら")
define(
    "said_by",
    patterns=[
        "{~person}の話では、",
        "{~town}の{~person}によると、",
        "{~weekday}の新聞によると、",
        "{~place_quality}図書館の本によると、",
    ],
)
