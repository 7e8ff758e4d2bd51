"""Dialogues: two people speak in turns, one line each, as in a play (健太「明日は晴れるね。」).

A script is a list of turns; a turn names its speaker and the ways to say it. Friends and
families speak plainly, everyone else politely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jgpt.data.microworld import people
from jgpt.data.microworld.conjugation import PLAIN, POLITE
from jgpt.data.microworld.counters import count
from jgpt.data.microworld.dialogue_turn import Script
from jgpt.data.microworld.dialogues_at_home import HOME_SCRIPTS
from jgpt.data.microworld.dialogues_in_town import TOWN_SCRIPTS
from jgpt.data.microworld.frames import Random, pick
from jgpt.data.microworld.lexicon import FINE_WORDS, ROLES
from jgpt.data.microworld.nature import MONTHS, WEEKDAYS
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer


class Pair(NamedTuple):
    """Two speakers: their labels, how each calls the other, and the register they speak in."""

    labels: tuple[str, str]
    calls: tuple[str, str]
    register: int


# How a speaker is called: by the role others see in them, or by name.
_FAMILY_CALLS = {"父": "お父さん", "母": "お母さん", "祖父": "おじいさん", "祖母": "おばあさん"}
_FAMILY_CALLS |= {"兄": "お兄さん", "姉": "お姉さん"}


def _friends(writer: Writer) -> Pair:
    """Neighbours of like age speak plainly, others politely."""
    one, two = writer.first, writer.second
    close = abs(one.age - two.age) < 10
    register = PLAIN if close and writer.random() < 0.8 else POLITE
    ending = "" if register == PLAIN else "さん"
    return Pair((one.name, two.name), (two.name + ending, one.name + ending), register)


def _family(writer: Writer) -> Pair:
    """Two of one household; the elder is called by the place in the family."""
    person, elder, kin = pick(_ELDERS, writer.random)
    writer.first, writer.second = person, elder
    writer.cast.update(a=person.name, b=elder.name, town=person.town)
    return Pair((person.name, f"{kin}の{elder.name}"), (_FAMILY_CALLS[kin], person.name), PLAIN)


_ELDERS = tuple(
    (person, other, kin)
    for person in WORLD.people
    for other in WORLD.households[person.household]
    if (kin := people.relation(person, other)) in _FAMILY_CALLS
)


def _role(role: str) -> Callable[[Writer], Pair]:
    """Someone of the town and a person met in a role, who speak politely."""

    def pair(writer: Writer) -> Pair:
        if role == "先生":
            writer.first = pick(_CHILDREN, writer.random)
            writer.cast.update(a=writer.first.name, town=writer.first.town)
        name = writer.first.name + "さん"
        surname = writer.second.surname
        label = f"{surname}先生" if role == "先生" else f"{role}の{surname}"
        return Pair((writer.first.name, label), (f"{role}さん", name), POLITE)

    return pair


_CHILDREN = tuple(person for person in WORLD.people if person.is_child)
_PAIRS = {"friends": _friends, "family": _family}
_PAIRS |= {role: _role(role) for role in (*ROLES, "先生")}


def _prepare(writer: Writer, calls: tuple[str, str]) -> None:
    """What scripts may speak of, consistent with the world."""
    cast, random = writer.cast, writer.random
    town = WORLD.town_by_name[writer.first.town]
    far_town = pick(WORLD.towns, random)
    while far_town is town:
        far_town = pick(WORLD.towns, random)
    other = pick(WORLD.people_of_town[town.name], random)
    while other in (writer.first, writer.second):
        other = pick(WORLD.people_of_town[town.name], random)
    thing = pick(_CHEAP, random)
    number = 1 + int(random() * 6)
    total = thing.price * number
    paid = next(note for note in (100, 500, 1000, 5000, 10000, 20000, 50000) if note > total)
    counted = count(number, thing.counter)
    weekday = int(random() * 7)
    cast.update(
        duty_off="学校" if writer.first.is_child else "仕事",
        c=other.name,
        c_call=other.name + ("さん" if writer.register == POLITE else ""),
        a_call=calls[1],
        b_call=calls[0],
        far_town=far_town.name,
        far_sight=far_town.sight,
        far_product=far_town.product,
        festival=town.festival,
        festival_month=MONTHS[town.festival_month - 1],
        sight=town.sight,
        shop=thing.shop,
        thing=thing.name,
        fine=pick(FINE_WORDS[thing.category], random) + thing.name,
        unit_price=f"{thing.name}は{count(1, thing.counter)}{thing.price}円",
        order=f"{thing.name}を{counted}",
        counted=counted,
        total=total,
        paid=paid,
        change=paid - total,
        day=WEEKDAYS[weekday],
        other_day=WEEKDAYS[(weekday + 1 + int(random() * 6)) % 7],
    )


_WANTED = ("本", "文房具", "切り花", "菓子", "果物", "服", "おもちゃ", "飲み物", "日用品", "パン")
_CHEAP = tuple(thing for thing in WORLD.things if thing.category in _WANTED)


_SCRIPTS = (*TOWN_SCRIPTS, *HOME_SCRIPTS)


def _act(script: Script, writer: Writer) -> str:
    pair = _PAIRS[script.pair](writer)
    writer.register = pair.register
    _prepare(writer, pair.calls)
    lines = []
    for turn in script.turns:
        if turn.chance < 1 and writer.random() >= turn.chance:
            continue
        lines.append(f"{pair.labels[turn.speaker]}「{writer.say(turn.said)}」")
    return "\n".join(lines)


def make(random: Random) -> tuple[str, None, None]:
    """A dialogue as a document: it asks for nothing."""
    return _act(pick(_SCRIPTS, random), Writer(random)), None, None
