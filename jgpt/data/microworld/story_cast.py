"""Who and what a story is about, consistent with the world."""

from __future__ import annotations

from jgpt.data.microworld import people, things
from jgpt.data.microworld.counters import count
from jgpt.data.microworld.frames import Random, pick
from jgpt.data.microworld.phrases import CONTESTS
from jgpt.data.microworld.world import WORLD

# How a friend is introduced; what the hero buys when hungry; what one may wish for in each town;
# the people of the town who are not family; the words for the family.
_FRIEND_OF = ("友達の", "近所に住む", "同じ町の")
_FOODS = tuple(thing for thing in WORLD.things if thing.shop in ("パン屋", "菓子屋", "果物屋"))
_DESIRABLE = {
    town.name: tuple(
        thing
        for thing in WORLD.things
        if thing.price >= 900
        and thing.shop in town.places
        and thing.category
        not in (*things.FOOD_CATEGORIES, *things.RAW_FOOD_CATEGORIES, "飲み物", "日用品")
    )
    for town in WORLD.towns
}
_OTHERS = {
    person.name: tuple(
        other for other in WORLD.people_of_town[person.town] if other.household != person.household
    )
    for person in WORLD.people
}
_KIN = {
    person.name: tuple(
        kin
        for other in WORLD.households[person.household]
        if (kin := people.relation(person, other)) and kin != "孫"
    )
    for person in WORLD.people
}


def make_cast(random: Random) -> dict:
    """Who and what a story is about; goods are sold in the shop named, at their price."""
    person = pick(WORLD.people, random)
    town = WORLD.town_by_name[person.town]
    friend, other = _neighbours(person, random)
    far_town = pick(tuple(place for place in WORLD.towns if place is not town), random)
    thing = pick(_DESIRABLE[town.name], random)
    saved = max(10, int(thing.price * (0.3 + 0.5 * random())) // 10 * 10)
    food = pick(_FOODS, random)
    contest = pick(tuple(CONTESTS), random)
    retired = person.job == people.RETIRED
    cast = {
        "friend_name": friend.name,
        "friend": pick(_FRIEND_OF, random) + friend.name,
        "friend2": other.name,
        "kin": _kin(person, random),
        "town": town.name,
        "festival": town.festival,
        "far_town": far_town.name,
        "far_sight": far_town.sight,
        "shop": thing.shop,
        "thing": thing.name,
        "price": thing.price,
        "saved": saved,
        "short": thing.price - saved,
        "food_shop": food.shop,
        "food": food.name,
        "food_counted": f"{food.name}を{count(1 + int(random() * 5), food.counter)}",
        "contest": contest,
        "duty": "学校" if person.is_child else "集会所" if retired else "仕事場",
        "duty_off": "学校" if person.is_child else "集まり" if retired else "仕事",
    }
    _name_hero(cast, person, random)
    return cast


def _neighbours(person: people.Person, random: Random) -> tuple[people.Person, people.Person]:
    """Two others of the same town who are not of the family."""
    others = _OTHERS[person.name]
    first = pick(others, random)
    second = pick(others, random)
    while second is first:
        second = pick(others, random)
    return first, second


def _kin(person: people.Person, random: Random) -> str:
    """A member of the hero's family, as the world has it."""
    return pick(_KIN[person.name], random)


def _name_hero(cast: dict, person: people.Person, random: Random) -> None:
    """How the hero is introduced and called: one story in five is told by the hero."""
    if random() < 0.2:
        me = "私" if person.sex == "女" or random() < 0.5 else "僕"
        cast.update(hero=me, who=me, called=me)
        return
    name, town = person.name, person.town
    has_job = person.job != people.RETIRED
    job = f"{person.job}の{name}" if has_job else name
    cast.update(
        hero=name,
        who=pick((f"{town}の{name}", f"{town}に住む{name}", f"{town}に住む{job}", job), random),
        called=pick((name, job), random),
    )
