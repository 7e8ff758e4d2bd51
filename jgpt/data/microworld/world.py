"""The facts of the microworld as data.

``WORLD`` holds people, pets, towns, things, animals, plants and jobs as plain tuples with
indices by name; ``WORLD.facts()`` yields them as (subject, relation, object) triples and
``WORLD.sentence(fact)`` tells one in Japanese. The world is the same for every seed of the
corpus: the seed changes what is told, never what is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jgpt.data.microworld import people
from jgpt.data.microworld.conjugation import PLAIN, conjugate
from jgpt.data.microworld.frames import define, frame
from jgpt.data.microworld.nature import ANIMALS, MONTHS, PLANTS, SEASONS, Animal, Plant
from jgpt.data.microworld.people import JOBS, Person, Pet, relation
from jgpt.data.microworld.things import THINGS, Thing
from jgpt.data.microworld.towns import TOWNS, Town


class Fact(NamedTuple):
    """One fact: subject and object are Japanese words, the relation one of ``RELATIONS``."""

    subject: str
    relation: str
    object: str


class World(NamedTuple):
    """Everything there is."""

    people: tuple[Person, ...]
    pets: tuple[Pet, ...]
    towns: tuple[Town, ...]
    things: tuple[Thing, ...]
    animals: tuple[Animal, ...]
    plants: tuple[Plant, ...]
    households: tuple[tuple[Person, ...], ...]
    people_of_town: dict[str, tuple[Person, ...]]
    person_by_name: dict[str, Person]
    town_by_name: dict[str, Town]
    thing_by_name: dict[str, Thing]
    goods: dict[str, tuple[Thing, ...]]
    members: dict[str, tuple[str, ...]]

    def facts(self) -> Iterator[Fact]:
        """All facts of the world, in a fixed order."""
        for person in self.people:
            yield from self.facts_of_person(person)
        for pet in self.pets:
            owner = self.households[pet.household][0]
            yield Fact(pet.name, "種類", pet.animal)
            yield Fact(pet.name, "飼い主", owner.full_name)
        for town in self.towns:
            yield Fact(town.name, "地形", town.landscape)
            yield Fact(town.name, "方角", town.direction)
            yield Fact(town.name, "人口", f"{town.population}人")
            yield Fact(town.name, "名物", town.product)
            yield Fact(town.name, "祭り", town.festival)
            yield Fact(town.festival, "開催月", MONTHS[town.festival_month - 1])
            yield Fact(town.name, "見どころ", town.sight)
        for thing in self.things:
            yield Fact(thing.name, "値段", f"{thing.price}円")
            yield Fact(thing.name, "売り場", thing.shop)
            yield Fact(thing.name, "分類", thing.category)
            yield Fact(thing.name, "数え方", thing.counter)
        for animal in self.animals:
            yield Fact(animal.name, "分類", animal.animal_class)
            yield Fact(animal.name, "住む所", animal.habitat)
            yield Fact(animal.name, "食べ物", animal.food)
            yield Fact(animal.name, "足の数", f"{animal.legs}本")
            yield Fact(animal.name, "数え方", animal.counter)
        for plant in self.plants:
            yield Fact(plant.name, "花の色", plant.colour)
            yield Fact(plant.name, "花の月", MONTHS[plant.month - 1])
            yield Fact(plant.name, "生える所", plant.habitat)
        for job, (place, act, tool) in JOBS.items():
            yield Fact(job, "職場", place)
            yield Fact(job, "仕事", act)
            yield Fact(job, "道具", tool)

    def facts_of_person(self, person: Person) -> Iterator[Fact]:
        """The facts about one person, the family among them."""
        name = person.full_name
        yield Fact(name, "年齢", f"{person.age}歳")
        yield Fact(name, "職業", person.job)
        yield Fact(name, "住所", person.town)
        yield Fact(name, "趣味", person.hobby)
        yield Fact(name, "好物", person.food)
        yield Fact(name, "誕生月", MONTHS[person.birth_month - 1])
        for other in self.households[person.household]:
            kin = relation(person, other)
            if kin:
                yield Fact(name, kin, other.full_name)

    def sentence(self, fact: Fact, register: int = PLAIN) -> str:
        """Tells a fact in one sentence (青木康平の職業は郵便配達員だ。).

        Raises:
          ValueError: the relation is not one of this world's.
        """
        if fact.relation not in RELATIONS:
            raise ValueError(f"relation {fact.relation!r}: unknown; one of {sorted(RELATIONS)}")
        told = fact.object
        if fact.relation in ("趣味", "仕事"):
            told = conjugate(told, "base") + "こと"
        cast = {"subject": fact.subject, "relation": fact.relation, "object": told}
        return _TOLD.write(cast, lambda: 0.0, register)


RELATIONS = (
    *("年齢", "職業", "住所", "趣味", "好物", "誕生月", *people.RELATIONS, "種類", "飼い主"),
    *(
        "地形",
        "方角",
        "人口",
        "名物",
        "祭り",
        "開催月",
        "見どころ",
        "値段",
        "売り場",
        "分類",
        "数え方",
    ),
    *("住む所", "食べ物", "足の数", "花の色", "花の月", "生える所", "職場", "仕事", "道具"),
)


def _make_members(world_people: tuple[Person, ...]) -> dict[str, tuple[str, ...]]:
    """The members of each category that can be asked for."""
    members: dict[str, list[str]] = {}
    for thing in THINGS:
        members.setdefault(thing.category, []).append(thing.name)
    for animal in ANIMALS:
        members.setdefault(animal.animal_class, []).append(animal.name)
    members["花"] = [plant.name for plant in PLANTS]
    members["季節"] = list(SEASONS)
    members["仕事"] = list(JOBS)
    members["町"] = [town.name for town in TOWNS]
    members["人"] = [person.full_name for person in world_people]
    return {category: tuple(dict.fromkeys(names)) for category, names in members.items()}


def make_world() -> World:
    """Builds the world; the same on every platform."""
    everyone, pets = people.make_people(tuple(town.name for town in TOWNS))
    households = tuple(
        tuple(person for person in everyone if person.household == household)
        for household in range(len(people.SURNAMES))
    )
    goods: dict[str, list[Thing]] = {}
    for thing in THINGS:
        goods.setdefault(thing.shop, []).append(thing)
    return World(
        people=everyone,
        pets=pets,
        towns=TOWNS,
        things=THINGS,
        animals=ANIMALS,
        plants=PLANTS,
        households=households,
        people_of_town={
            town.name: tuple(person for person in everyone if person.town == town.name)
            for town in TOWNS
        },
        person_by_name={person.name: person for person in everyone},
        town_by_name={town.name: town for town in TOWNS},
        thing_by_name={thing.name: thing for thing in THINGS},
        goods={shop: tuple(sold) for shop, sold in goods.items()},
        members=_make_members(everyone),
    )


WORLD = make_world()

define("relation", RELATIONS)
define("fact_subject", (fact.subject for fact in WORLD.facts()))
define(
    "fact_object",
    (fact.object + "こと" * (fact.relation in ("趣味", "仕事")) for fact in WORLD.facts()),
)
_TOLD = frame("{subject:fact_subject}の{relation}は{object:fact_object}[だ|nonpast]。")
