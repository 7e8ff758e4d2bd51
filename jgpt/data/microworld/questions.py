"""Questions about a short text, with answers that follow from it.

A text has a passage (【文章】), one or more questions (【問い】) and answers (【答え】). Most answers
stand in the passage; some follow from several sentences: who has a thing after it was passed
on, where someone is now, who of three is the oldest.
"""
# ruff: noqa: E501  (a sentence frame stays on one line, to be read as a sentence)

from __future__ import annotations

from itertools import pairwise

from jgpt.data.microworld import question_words  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.counters import count
from jgpt.data.microworld.frames import Forms, Random, frames, pick, slot_type
from jgpt.data.microworld.lexicon import FINE_WORDS
from jgpt.data.microworld.nature import ANIMALS, WEEKDAYS
from jgpt.data.microworld.people import Person
from jgpt.data.microworld.towns import PUBLIC_PLACES
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

# A question: how it is asked and what is answered.
Asked = tuple[str, str]
Passage = tuple[list[str], list[Asked]]


class Reader(Writer):
    """Writes passages: draws people who have not yet appeared, and things with their counters."""

    def __init__(self, random: Random):
        super().__init__(random, plain_share=0.5)
        self._met: set[str] = set()

    def person(self) -> Person:
        """Someone new to the passage."""
        person = pick(WORLD.people, self.random)
        while person.name in self._met:
            person = pick(WORLD.people, self.random)
        self._met.add(person.name)
        return person

    def draw(self, name: str) -> str:
        """A filler of a slot type."""
        return slot_type(name).draw(self.random, self.register)

    def different(self, name: str, number: int) -> list[str]:
        """Several fillers of one type, no two the same."""
        found: list[str] = []
        while len(found) < number:
            drawn = self.draw(name)
            if drawn not in found:
                found.append(drawn)
        return found


# --- shopping: where, what, when, who, how many --------------------------------------------
_BOUGHT = frames(
    "{when:moment}、{p:person}は{site}で{thing:fine_thing}を{counted:count_any}[買う|past]。",
    "{p:person}は{when:moment}に{site}へ行き、{thing:fine_thing}を{counted:count_any}[買う|past]。",
    "{p:person}が{site}で{thing:fine_thing}を{counted:count_any}買ったのは、{when:moment}[だ|past]。",
)
_BOUGHT_WHERE = frames(
    "{p:person}は{thing:fine_thing}をどこで買いましたか。",
    "{p:person}が{thing:fine_thing}を買った所はどこですか。",
)
_BOUGHT_WHAT = frames(
    "{p:person}が{site}で買った物は何ですか。", "{when:moment}に{p:person}は何を買いましたか。"
)
_BOUGHT_WHEN = frames(
    "{p:person}が{thing:fine_thing}を買ったのはいつですか。",
    "{p:person}はいつ{site}へ行きましたか。",
)
_BOUGHT_WHO = frames(
    "{thing:fine_thing}を買った人は誰ですか。", "{site}で{thing:fine_thing}を買ったのは誰ですか。"
)
_BOUGHT_COUNT = frames(
    "{p:person}は{thing:fine_thing}をいくつ買いましたか。",
    "{p:person}が買った{thing:fine_thing}の数はいくつですか。",
)


def _shopping(reader: Reader) -> Passage:
    number = 2 + int(reader.random() * 2)
    told, asked, names = [], [], set()
    for when in reader.different("moment", number):
        thing = pick(WORLD.things, reader.random)
        while thing.name in names:
            thing = pick(WORLD.things, reader.random)
        names.add(thing.name)
        fine = pick(FINE_WORDS[thing.category], reader.random) + thing.name
        counted = count(reader.number(1, 5), thing.counter)
        site = f"{reader.draw('town')}の{reader.draw('shop_quality')}{thing.shop}"
        person = reader.person().name
        cast = {"p": person, "site": site, "when": when, "thing": fine, "counted": counted}
        told.append(reader.say(_BOUGHT, **cast))
        question, answer = reader.pick(
            (
                (_BOUGHT_WHERE, site),
                (_BOUGHT_WHAT, fine),
                (_BOUGHT_WHEN, when),
                (_BOUGHT_WHO, person),
                (_BOUGHT_COUNT, counted),
            )
        )
        asked.append((reader.say(question), answer))
    return told, asked


# --- a thing passed on ---------------------------------------------------------------------
_FIRST_HOLDER = frames(
    "{when:moment}、{p:person}は{site}で{token}を[見つける|past]。",
    "{p:person}は{site}で{token}を[拾う|past]。",
    "{token}は、{when:moment}には{p:person}のところに[ある|past]。",
)
_PASSED = frames(
    "{p:person}は{token}を{q:person}に[渡す|past]。",
    "{~later}、{p:person}は{site}で{q:person}に{token}を[預ける|past]。",
    "{q:person}は{site}で{p:person}から{token}を[受け取る|past]。",
)
_ASIDE = frames(
    "そのころ、{r:person}は{~town}の{~spot_act.te}[いる|past]。",
    "{r:person}は{~moment}から{~site}に[いる|past]。",
)
_HOLDER_ASKED = frames(
    "今、{token}を持っているのは誰ですか。", "最後に{token}を受け取った人は誰ですか。"
)
_FIRST_ASKED = frames("初めに{token}を持っていたのは誰ですか。")


def _passing(reader: Reader) -> Passage:
    holders = [reader.person().name for _ in range(3 + int(reader.random() * 2))]
    reader.cast.update(
        token=reader.draw("token"), site=reader.draw("site"), when=reader.draw("moment")
    )
    told = [reader.say(_FIRST_HOLDER, p=holders[0])]
    for giver, taker in pairwise(holders):
        told.append(reader.say(_PASSED, p=giver, q=taker, site=reader.draw("site")))
    aside = reader.say(_ASIDE, r=reader.person().name)
    told.insert(1 + int(reader.random() * (len(told) - 1)), aside)
    asked = [(reader.say(_FIRST_ASKED), holders[0]), (reader.say(_HOLDER_ASKED), holders[-1])]
    return told, asked


# --- where someone is ------------------------------------------------------------------------
_WENT = frames(
    "{p:person}は{~moment}に{here:stop}へ[行く|past]。",
    "{~later}、{p:person}は{here:stop}に[着く|past]。",
    "{p:person}は{~at_ease}{here:stop}まで[歩く|past]。",
)
_WENT_ON = frames(
    "それから{p:person}は{there:stop}へ[移る|past]。",
    "{~later}、{p:person}は{here:stop}を出て{there:stop}へ[向かう|past]。",
    "{p:person}は{here:stop}で{~span}過ごしてから、{there:stop}へ[行く|past]。",
)
_WHERE_NOW = frames("{p:person}は今どこにいますか。", "{p:person}が最後に行った所はどこですか。")
_WHERE_FIRST = frames(
    "{p:person}が初めに行った所はどこですか。", "{p:person}は{there:stop}の前にどこにいましたか。"
)


def _moving(reader: Reader) -> Passage:
    told, asked = [], []
    for _ in range(2):
        person = reader.person().name
        here, there = reader.different("stop", 2)
        told += [reader.say(_WENT, p=person, here=here), reader.say(_WENT_ON, there=there)]
        question, answer = reader.pick(((_WHERE_NOW, there), (_WHERE_FIRST, here)))
        asked.append((reader.say(question), answer))
    return told, asked


# --- why ----------------------------------------------------------------------------------
_BECAUSE = frames(
    "{cause.ta}ので、{p:person}は{site}で{act.past:place_act}。",
    "{p:person}は{site}で{act.past:place_act}。{cause.ta}から[だ|nonpast]。",
    "{when:moment}、{p:person}は{cause.ta}ために{site}で{act.past:place_act}。",
)
_WHY = frames(
    "{p:person}が{site}で{act.ta:place_act}のはなぜですか。",
    "なぜ{p:person}は{site}で{act.ta:place_act}のですか。",
)
_WHAT_DONE = frames("{p:person}が{site}でしたことは何ですか。")


def _reasons(reader: Reader) -> Passage:
    told, asked = [], []
    causes = []
    for when in reader.different("moment", 2):
        cause = reader.draw("cause")
        while cause in causes:
            cause = reader.draw("cause")
        causes.append(cause)
        place = reader.pick(tuple(PUBLIC_PLACES))
        act = Forms(reader.pick(PUBLIC_PLACES[place]), reader.register)
        site = f"{reader.draw('town')}の{place}"
        told.append(
            reader.say(_BECAUSE, p=reader.person().name, cause=cause, act=act, site=site, when=when)
        )
        if reader.random() < 0.75:
            asked.append((reader.say(_WHY), cause["ta"] + "から"))
        else:
            asked.append((reader.say(_WHAT_DONE), act["base"] + "こと"))
    return told, asked


# --- comparisons --------------------------------------------------------------------------
_OLDER = frames(
    "{p:person}は{q:person}より{years:number}歳年上[だ|nonpast]。",
    "{q:person}は{p:person}より{years:number}歳年下[だ|nonpast]。",
    "{site}で会った{p:person}は、{q:person}より{years:number}歳年上[だ|nonpast]。",
)
_FARTHER = frames(
    "{p:person}は{q:person}より{far:number}メートル遠くまで[走る|past]。",
    "{q:person}は{p:person}ほど遠くまで[走る|past_negative]。{far:number}メートルの差[だ|past]。",
)
_OLDEST = frames(
    "{p:person}と{q:person}と{r:person}の中で、一番年上の人は誰ですか。",
    "{p:person}、{q:person}、{r:person}のうち、一番年上なのは誰ですか。",
)
_YOUNGEST = frames(
    "{p:person}と{q:person}と{r:person}の中で、一番年下の人は誰ですか。",
    "{p:person}、{q:person}、{r:person}のうち、一番年下なのは誰ですか。",
)
_AGE_GAP = frames("{p:person}は{r:person}より何歳年上ですか。")


def _ages(reader: Reader) -> Passage:
    oldest, middle, youngest = (reader.person().name for _ in range(3))
    first, second = reader.number(1, 15), reader.number(1, 15)
    told = [
        reader.say(_OLDER, p=oldest, q=middle, years=first, site=reader.draw("site")),
        reader.say(_OLDER, p=middle, q=youngest, years=second, site=reader.draw("site")),
    ]
    one, two, three = reader.shuffled([oldest, middle, youngest])
    reader.cast.update(p=one, q=two, r=three)
    asked = [(reader.say(_OLDEST), oldest), (reader.say(_YOUNGEST), youngest)]
    gap = (reader.say(_AGE_GAP, p=oldest, r=youngest), f"{first + second}歳")
    if reader.random() < 0.5:
        told.reverse()
    return told, [*reader.shuffled(asked)[:1], gap]


# --- plans of a week ----------------------------------------------------------------------
_PLAN = frames(
    "{p:person}は{day:weekday}に{here:stop}へ[行く|nonpast]。",
    "{day:weekday}には、{p:person}は{here:stop}で{~span}過ごすつもり[だ|nonpast]。",
    "{day:weekday}の{~daypart}は、{p:person}は{here:stop}に[いる|nonpast]。",
)
_PLAN_WHERE = frames(
    "{day:weekday}に{p:person}はどこへ行きますか。",
    "{p:person}が{day:weekday}に行く所はどこですか。",
)
_PLAN_WHEN = frames(
    "{p:person}が{here:stop}へ行くのは何曜日ですか。", "{p:person}は何曜日に{here:stop}にいますか。"
)


def _week(reader: Reader) -> Passage:
    person = reader.person().name
    number = 3 + int(reader.random() * 2)
    days = sorted(reader.different("weekday", number), key=WEEKDAYS.index)
    places = reader.different("stop", number)
    told, asked = [], []
    for day, here in zip(days, places):
        told.append(reader.say(_PLAN, p=person, day=day, here=here))
        question, answer = reader.pick(((_PLAN_WHERE, here), (_PLAN_WHEN, day)))
        asked.append((reader.say(question), answer))
    return told, reader.shuffled(asked)[:2]


# --- animals seen --------------------------------------------------------------------------
_SEEN = frames(
    "{when:moment}、{p:person}は{site:wild_site}で{herd}いるのを[見る|past]。",
    "{site:wild_site}には{herd}いて、{p:person}は{~at_rest}[眺める|past]。",
    "{p:person}が{site:wild_site}へ行くと、{herd}[いる|past]。",
)
_SEEN_COUNT = frames(
    "{p:person}が見た{animal}の数はいくつですか。", "{site:wild_site}にいた{animal}はいくつですか。"
)
_SEEN_WHERE = frames("{p:person}が{animal}を見た所はどこですか。", "{animal}がいた所はどこですか。")
_SEEN_WHO = frames("{site:wild_site}で{animal}を見た人は誰ですか。", "{animal}を見たのは誰ですか。")


def _seen(reader: Reader) -> Passage:
    told, asked, seen = [], [], set()
    for site in reader.different("wild_site", 2 + int(reader.random() * 2)):
        animal = pick(_COUNTED_ANIMALS, reader.random)
        while animal.name in seen:
            animal = pick(_COUNTED_ANIMALS, reader.random)
        seen.add(animal.name)
        counted = count(reader.number(1, 10), animal.counter)
        person = reader.person().name
        told.append(
            reader.say(
                _SEEN,
                p=person,
                site=site,
                when=reader.draw("moment"),
                herd=f"{animal.name}が{counted}",
                animal=animal.name,
            )
        )
        question, answer = reader.pick(
            ((_SEEN_COUNT, counted), (_SEEN_WHERE, site), (_SEEN_WHO, person))
        )
        asked.append((reader.say(question), answer))
    return told, asked


_COUNTED_ANIMALS = tuple(animal for animal in ANIMALS if animal.counter in ("匹", "羽", "頭"))

# --- people of the world ---------------------------------------------------------------------
_PROFILE = frames(
    "{full:full_name}は{town}に住む{age:number}歳の{job:occupation}[だ|nonpast]。",
    "{town}に住む{full:full_name}は{age:number}歳で、{job:occupation}[だ|nonpast]。",
    "{full:full_name}は{age:number}歳の{job:occupation}で、住まいは{town}に[ある|nonpast]。",
)
_PROFILE_MORE = frames(
    "{p:person}は{act.base:hobby}のが好きで、{~site}で{food}をよく[食べる|nonpast]。",
    "好きな食べ物は{food}で、{~daypart}には{act.base:hobby}ことが[多い|nonpast]。",
)
_PROFILE_JOB = frames("{full:full_name}は何をしている人ですか。")
_PROFILE_AGE = frames(
    "{full:full_name}は何歳ですか。", "{town}に住む{p:person}の年はいくつですか。"
)
_PROFILE_TOWN = frames(
    "{full:full_name}はどの町に住んでいますか。", "{p:person}が住んでいる町はどこですか。"
)
_PROFILE_FOOD = frames("{full:full_name}の好物は何ですか。", "{p:person}が好きな食べ物は何ですか。")
_PROFILE_HOBBY = frames("{full:full_name}が好きなことは何ですか。", "{p:person}の趣味は何ですか。")


def _profiles(reader: Reader) -> Passage:
    told, asked = [], []
    for _ in range(2):
        person = reader.person()
        while person.job == "無職":
            person = reader.person()
        act = Forms(person.hobby, reader.register)
        cast = {"p": person.name, "full": person.full_name, "town": person.town, "age": person.age}
        cast |= {"job": person.job, "food": person.food, "act": act}
        told += [reader.say(_PROFILE, **cast), reader.say(_PROFILE_MORE)]
        question, answer = reader.pick(
            (
                *(
                    (_PROFILE_JOB, person.job),
                    (_PROFILE_AGE, f"{person.age}歳"),
                    (_PROFILE_TOWN, person.town),
                ),
                *((_PROFILE_FOOD, person.food), (_PROFILE_HOBBY, person.hobby + "こと")),
            )
        )
        asked.append((reader.say(question), answer))
    return told, asked


_SCHEMES = (_shopping, _shopping, _passing, _moving, _reasons, _ages, _week, _seen, _profiles)


def make(random: Random) -> tuple[str, str, str]:
    """A passage and its questions; the prompt ends before the answer to the last of them."""
    reader = Reader(random)
    told, asked = pick(_SCHEMES, random)(reader)
    asked = reader.shuffled(asked)[: 1 + (reader.random() < 0.4)]
    lines = [f"【文章】{''.join(told)}"]
    for question, answer in asked:
        lines += [f"【問い】{question}", f"【答え】{answer}です。"]
    answer = asked[-1][1]
    text = "\n".join(lines)
    return text, text[: -len(f"{answer}です。")], answer
