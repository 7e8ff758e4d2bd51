"""Stories: chains of events in which each event is caused by what holds before it.

An event is an operator on a small state, a set of facts about the hero's situation (Fikes and
Nilsson 1971, STRIPS): it happens only where its needs hold, and it adds and removes facts. A
story starts from a scene, goes on with events that use up what an earlier event brought about,
and stops when nothing is left open. The events are data (``story_scenes``,
``story_troubles``, ``story_plans``, ``story_endings``); this module chooses among them and tells
them in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jgpt.data.microworld.conjugation import PLAIN, POLITE, Forms
from jgpt.data.microworld.frames import Random, pick
from jgpt.data.microworld.phrases import CONTESTS, STAGES
from jgpt.data.microworld.story_cast import make_cast
from jgpt.data.microworld.story_endings import ENDINGS
from jgpt.data.microworld.story_event import Event
from jgpt.data.microworld.story_plans import PLANS
from jgpt.data.microworld.story_scenes import OPENINGS
from jgpt.data.microworld.story_troubles import TROUBLES

_NEXT_DAY = 4  # the stage that begins with the next morning
_BEDTIME = ("寝る前に", "その夜遅く")
_LONGEST = 9  # events before a story must end
_EVENTS = (*TROUBLES, *PLANS, *ENDINGS)
_BY_NAME = {event.name: event for event in (*OPENINGS, *_EVENTS)}
_FOLLOWING = {
    fact: tuple(event for event in _EVENTS if fact in event.needs)
    for opening in (*OPENINGS, *_EVENTS)
    for fact in sorted(opening.adds)
}
# Slots that a story can look back on.
_REMEMBERED = ("stray", "gadget", "contest", "thing", "lost", "festival")
_LINKS = ("それで、", "そこで、", "だから、", "そのため、")
# Phrases for an ending, by the stage that the story's time has reached.
_EVENINGS = (
    ("その日の夕方", "日が暮れるころ", "その晩", "夜になって"),
    ("その日の夕方", "日が暮れるころ", "その晩", "夜になって"),
    ("その晩", "夜になって", "寝る前に"),
    ("その夜遅く", "寝る前に"),
    ("その日の夜", "その晩", "寝る前に"),
    ("その日の夜", "その晩", "寝る前に"),
)


class Story(NamedTuple):
    """A told story and the names of its events, in order."""

    text: str
    trace: tuple[str, ...]


def all_events() -> tuple[Event, ...]:
    """Every event that a story may hold."""
    return tuple(_BY_NAME.values())


def holds(trace: Iterable[str]) -> bool:
    """Whether every event of a trace had its causes: replays it on the state."""
    facts: frozenset[str] = frozenset()
    for name in trace:
        event = _BY_NAME[name]
        if not event.needs <= facts:
            return False
        facts = (facts - event.removes) | event.adds
    return True


def plan(random: Random) -> tuple[Event, ...]:
    """Chooses a chain of events; each but the first uses a fact that an earlier one added."""
    event = pick(OPENINGS, random)
    chain = [event]
    facts = set(event.adds)
    while len(chain) < _LONGEST:
        # The newest facts first: a story goes on from what has just happened.
        newest = [candidate for fact in sorted(event.adds) for candidate in _FOLLOWING[fact]]
        possible = _possible(newest, facts, chain)
        if not possible:
            older = [candidate for fact in sorted(facts) for candidate in _FOLLOWING[fact]]
            possible = _possible(older, facts, chain)
        if not possible:
            break
        event = possible[int(random() * len(possible))]
        chain.append(event)
        facts -= event.removes
        facts |= event.adds
        if event.is_ending:
            break
    return tuple(chain)


def _possible(candidates: list[Event], facts: set, chain: list[Event]) -> list[Event]:
    return [event for event in candidates if event.needs <= facts and event not in chain]


def tell(chain: tuple[Event, ...], cast: dict, random: Random, register: int) -> list[str]:
    """The sentences of a chain of events, in order."""
    cast["practice"] = Forms(CONTESTS[cast["contest"]], register)
    told, stage, at_night, subject_is_hero = [], 0, False, False
    helped = any("debt" in event.adds for event in chain)
    kept: set[str] = set()
    previous: Event | None = None
    for event in chain:
        frame = pick(event.told, random)
        keys = frame.keys
        if "topic" in keys:
            named = not subject_is_hero or random() < 0.5
            cast["topic"] = cast["hero"] + "は" if named else ""
        if "link" in keys:
            caused = previous is not None and not event.needs.isdisjoint(previous.adds)
            cast["link"] = pick(_LINKS, random) if caused and random() < 0.55 else ""
        if "then" in keys:
            stage, cast["then"] = _later(stage, at_night, random)
        if "next_day" in keys:
            cast.pop("next_day", None)  # drawn anew: a story may have several next days
            stage = max(stage, _NEXT_DAY)
        if "memory" in keys:
            cast["memory"] = pick(_memories(cast, kept, helped, "kin" in keys), random)
        if "evening" in keys:
            at_bedtime = at_night and stage == 0
            cast["evening"] = pick(_BEDTIME if at_bedtime else _EVENINGS[stage], random)
            stage = max(stage, 3)
        told.append(frame.write(cast, random, register))
        if previous is None:
            stage, at_night = _time_of_day(told[0])
        kept |= keys
        if "friend" in keys:
            cast["friend"] = cast["friend_name"]
        subject_is_hero = previous is None or "topic" in keys
        previous = event
    return told


def _time_of_day(opening: str) -> tuple[int, bool]:
    """The stage at which a story begins, and whether it begins at night."""
    time = opening.partition("、")[0]
    if "夜" in time:
        return 0, True
    return (2 if "夕方" in time else 1 if "昼" in time or "午後" in time else 0), False


def _later(stage: int, at_night: bool, random: Random) -> tuple[int, str]:
    """The stage after some time has passed, and how that time is put in words."""
    step = int(random() * 2.2)
    if step == 0:
        return stage, pick(STAGES[0], random)  # some minutes later, whatever the hour
    stage = min(stage + step, len(STAGES) - 1)
    if at_night:
        stage = max(stage, _NEXT_DAY)
    return stage, pick(STAGES[stage], random)


def _memories(cast: dict, told: set[str], helped: bool, to_kin: bool) -> tuple[str, ...]:
    """What the hero can look back on: only what the story has told."""
    memories = [f"{cast[key]}のこと" for key in _REMEMBERED if key in told]
    if "friend" in told:
        friend = cast["friend_name"]
        memories += [f"{friend}の笑顔", f"{friend}のこと"]
        if helped:
            memories += [f"{friend}の親切", f"{friend}の言葉", f"{friend}と過ごした時間"]
    if "old_tale" in told and not to_kin:
        memories.append(f"{cast['kin']}の話")
    if "far_town" in told:
        memories.append(f"{cast['far_town']}での出来事")
    return tuple(memories) or ("その日の出来事",)


def story(random: Random) -> Story:
    """One story: plain or polite, in one paragraph or two."""
    register = PLAIN if random() < 0.5 else POLITE
    chain = plan(random)
    told = tell(chain, make_cast(random), random, register)
    break_at = 2 + int(random() * (len(told) - 1)) if len(told) > 5 else len(told)
    paragraphs = ("".join(told[:break_at]), "".join(told[break_at:]))
    return Story("\n".join(part for part in paragraphs if part), tuple(e.name for e in chain))


def make(random: Random) -> tuple[str, None, None]:
    """A story as a document: it asks for nothing."""
    return story(random).text, None, None
