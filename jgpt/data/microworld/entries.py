"""Encyclopedic entries about the people, towns, things, animals, plants and jobs of the world.

Each tells some of the facts of its subject in a random order; all that it says is true in `WORLD`.
"""

from __future__ import annotations

from jgpt.data.microworld import entry_words  # noqa: F401  (defines slot types used here)
from jgpt.data.microworld.conjugation import Forms
from jgpt.data.microworld.counters import count
from jgpt.data.microworld.frames import Random, frames, pick
from jgpt.data.microworld.lexicon import FINE_WORDS
from jgpt.data.microworld.nature import ANIMALS, MONTHS, PLANTS, SEASON_QUALITY, SEASONS, season_of
from jgpt.data.microworld.people import JOBS, RETIRED, relation
from jgpt.data.microworld.things import THINGS
from jgpt.data.microworld.towns import TOWNS
from jgpt.data.microworld.world import WORLD
from jgpt.data.microworld.writer import Writer

Facts = list[str]


# --- people -------------------------------------------------------------------------------
_PERSON = frames(
    "{full:full_name}は{month}生まれの{job:occupation}で、{town}に住んで[いる|nonpast]。",
    "{full:full_name}は{food}が好きな{age:number}歳の{job:occupation}[だ|nonpast]。",
    "{town}に住む{full:full_name}は、{act.base:hobby}のが好きな{job:occupation}[だ|nonpast]。",
    "{full:full_name}は{age:number}歳で、{month}に生まれ、今は{town}に住んで[いる|nonpast]。",
    "{full:full_name}は{act.base:hobby}のが趣味で、{month}生まれの{age:number}歳[だ|nonpast]。",
    "{job:occupation}の{full:full_name}は{town}で暮らし、{food}をよく[食べる|nonpast]。",
    "{full:full_name}は{town}の人で、{food}を食べることと{act.base:hobby}ことが好き[だ|nonpast]。",
)
_PERSON_FACTS = frames(
    "{p:person}の好物は{food}で、{~weekday}にはよく{~town}の食堂へ[行く|nonpast]。",
    "{p:person}は{~weekday}の{~daypart}に{~person}と一緒に{act.base:hobby}ことが[多い|nonpast]。",
    "{~passer}の話では、{p:person}は{month}に生まれ、{food}を食べて育ったそう[だ|nonpast]。",
    "{p:person}は{~public_place}の{~near}で{~person}とよく[会う|nonpast]。",
    "{~season}の{~daypart}には、{p:person}が{~landmark}の{~near}を歩く姿を見かけることも[ある|nonpast]。",
    "{p:person}は{~fine_本}と{~fine_keepsake}を大切に[する|progressive+nonpast]。",
    "{~person}と{~person}は、{p:person}に{act.base:hobby}楽しさを[教わる|past]。",
    "{p:person}の家は{town}の{~landmark}の{~near}に[ある|nonpast]。",
)
_PERSON_WORK = frames(
    "{p:person}は{workplace}で働き、{~daypart}から{duty.te:duty_act}[いる|nonpast]。",
    "仕事は{duty.base:duty_act}ことで、{~colour}{tool:work_tool}を大切に[使う|progressive+nonpast]。",
    "{~person}も{~person}も、{p:person}が{workplace}で{duty.base:duty_act}のを見たことが[ある|nonpast]。",
)
_PERSON_KIN = frames(
    "{kin}の{k:person}は{k_age:number}歳で、{p:person}とは{gap:number}歳[違う|nonpast]。",
    "{p:person}は{kin}の{k:person}と一緒に{~weekday}の{~daypart}に{~public_place}へ[行く|nonpast]。",
    "{kin}の{k:person}は{k_food:food}が好きで、{p:person}が時々[作る|nonpast]。",
    "{p:person}は{kin}の{k:person}に{~month}に{~fine_thing}を[贈る|past]。",
)
_PERSON_OTHER = frames(
    "{p:person}は同じ町の{o:person}より{gap:number}歳{older_or_younger}[だ|nonpast]。",
    "同じ{town}に住む{o:person}は{o_job:occupation}で、{p:person}とよく{~public_place}で[話す|nonpast]。",
)


def _person(writer: Writer) -> tuple[str, Facts]:
    person = writer.first
    act = Forms(person.hobby, writer.register)
    cast = {"p": person.name, "full": person.full_name, "age": person.age, "act": act}
    cast |= {"food": person.food, "month": MONTHS[person.birth_month - 1], "job": person.job}
    intro = writer.say(_PERSON if person.job != RETIRED else _PERSON[3:5], **cast)
    facts = [writer.say(frame) for frame in writer.shuffled(list(_PERSON_FACTS))[:3]]
    if person.job in JOBS:
        place, duty, tool = JOBS[person.job]
        facts.append(
            writer.say(_PERSON_WORK, workplace=place, tool=tool, duty=Forms(duty, writer.register))
        )
    family = [
        (kin, other)
        for other in WORLD.households[person.household]
        if (kin := relation(person, other)) and kin != "孫"
    ]
    if family:
        kin, other = pick(tuple(family), writer.random)
        gap = abs(other.age - person.age)
        frame = writer.pick(_PERSON_KIN if gap else _PERSON_KIN[1:])
        facts.append(
            writer.say(frame, kin=kin, k=other.name, k_age=other.age, gap=gap, k_food=other.food)
        )
    other = pick(WORLD.people_of_town[person.town], writer.random)
    if other.age != person.age and other.job != RETIRED:
        relative_age = "年上" if person.age > other.age else "年下"
        gap = abs(other.age - person.age)
        facts.append(
            writer.say(
                _PERSON_OTHER, o=other.name, gap=gap, older_or_younger=relative_age, o_job=other.job
            )
        )
    return intro, facts


# --- towns --------------------------------------------------------------------------------
_TOWN = frames(
    "{town}は{landscape}にある町で、{product:town_product}と{place1:town_place}で知られて[いる|nonpast]。",
    "{town}は{landscape}にある人口{population:number}人の町で、{place1:town_place}や{place2:town_place}が[ある|nonpast]。",
    "{landscape}の{town}には、{sight}と{place1:town_place}が[ある|nonpast]。",
    "{sight}がある{town}は、{other:town}から電車で{minutes}の町[だ|nonpast]。",
)
_TOWN_FACTS = frames(
    "町には{place1:town_place}や{place2:town_place}、{place3:town_place}などが[ある|nonpast]。",
    "{month}には{festival}が開かれ、{~person}や{~person}も毎年[出かける|nonpast]。",
    "{festival}の日には、{place1:town_place}から{place2:town_place}まで人の列が[続く|nonpast]。",
    "{~said_by}{sight}は{~season}の{~daypart}に見るのが一番いいそう[だ|nonpast]。",
    "{town}の人口は{other:town}より{gap:number}人{amount.nonpast:more_or_less}。",
    "{resident_job:occupation}の{resident:full_name}は、この町の{~landmark}の{~near}に住んで[いる|nonpast]。",
    "{place1:town_place}の{~near}では、{~person}が{~weekday}ごとに{product:town_product}を[売る|progressive+nonpast]。",
    "{town}の{shop}では、{thing}が{one_price}で売られて[いる|nonpast]。",
    "{other:town}から{town}までは、電車で{minutes}[かかる|nonpast]。",
    "{~season}になると、{sight}の{~near}で{~hobby.base}人が[増える|nonpast]。",
)


def _town(writer: Writer) -> tuple[str, Facts]:
    town = pick(WORLD.towns, writer.random)
    other = pick(WORLD.towns, writer.random)
    while other is town:
        other = pick(WORLD.towns, writer.random)
    resident = pick(WORLD.people_of_town[town.name], writer.random)
    while resident.job == RETIRED:
        resident = pick(WORLD.people_of_town[town.name], writer.random)
    places = writer.shuffled(list(town.places))
    shop = next(place for place in places if place in WORLD.goods)
    thing = pick(WORLD.goods[shop], writer.random)
    gap = town.population - other.population
    writer.cast.update(
        town=town.name,
        other=other.name,
        landscape=town.landscape,
        product=town.product,
        sight=town.sight,
        festival=town.festival,
        month=MONTHS[town.festival_month - 1],
        population=town.population,
        place1=places[0],
        place2=places[1],
        place3=places[2],
        gap=abs(gap),
        amount=Forms("多い" if gap > 0 else "少ない", writer.register),
        resident=resident.full_name,
        resident_job=resident.job,
        shop=thing.shop,
        thing=thing.name,
        one_price=f"一{thing.counter}{thing.price}円",
    )
    return writer.say(_TOWN), [
        writer.say(frame) for frame in writer.shuffled(list(_TOWN_FACTS))[:6]
    ]


# --- things -------------------------------------------------------------------------------
_THING = frames(
    "{thing}は{shop}で売られている{category}で、値段は{one_price}[だ|nonpast]。",
    "{thing}は{category}の一つで、{town}や{other:town}の{shop}で[買う|can+nonpast]。",
    "{shop}へ行けば、{fine:fine_thing}を{one_price}で買うことが[できる|nonpast]。",
    "{category}の中でも、{fine:fine_thing}は{~person}や{~person}に好まれて[いる|nonpast]。",
)
_THING_FACTS = frames(
    "{~person}は{thing}を{counting}と数え、{total:number}円で{counted:count_any}[買う|past]。",
    "{thing}は{thing2:thing}より{gap:number}円{price_gap.nonpast:dear_or_cheap}。",
    "{thing}を{counted:count_any}と{thing2:thing}を{counted2:count_any}買うと、{total2:number}円に[なる|nonpast]。",
    "{town}の{~person}は、{~weekday}になると{shop}へ{thing}を見に[行く|nonpast]。",
    "{~said_by}{fine:fine_thing}は{~occasion}の贈り物にいいそう[だ|nonpast]。",
    "{~season}には{fine:fine_thing}を買う人が多く、{town}の{shop}はにぎやか[だ|nonpast]。",
    "{shop}の{~near}に住む{~person}は、{fine:fine_thing}をよく[買う|nonpast]。",
    "{category}には{thing}のほかに{thing3:thing}も[ある|nonpast]。",
)


def _thing(writer: Writer) -> tuple[str, Facts]:
    thing = pick(THINGS, writer.random)
    alike = [
        o for o in THINGS if o.price != thing.price and o.price < 4 * thing.price < 16 * o.price
    ]
    other = pick(tuple(alike), writer.random)
    relatives = [
        other
        for other in WORLD.goods[thing.shop]
        if other is not thing and other.category == thing.category
    ]
    towns = writer.shuffled([town.name for town in TOWNS if thing.shop in town.places])
    n, m = writer.number(2, 6), writer.number(2, 6)
    fine = FINE_WORDS[thing.category]
    gap = thing.price - other.price
    writer.cast.update(
        thing=thing.name,
        thing2=other.name,
        shop=thing.shop,
        category=thing.category,
        town=towns[0],
        other=towns[1],
        one_price=f"一{thing.counter}{thing.price}円",
        fine=pick(fine, writer.random) + thing.name,
        counting="、".join(count(number, thing.counter) for number in (1, 2, 3)),
        counted=count(n, thing.counter),
        counted2=count(m, other.counter),
        total2=n * thing.price + m * other.price,
        total=n * thing.price,
        gap=abs(gap),
        price_gap=Forms("高い" if gap > 0 else "安い", writer.register),
    )
    chosen = writer.shuffled(list(_THING_FACTS if relatives else _THING_FACTS[:-1]))[:5]
    if relatives:
        writer.cast["thing3"] = pick(tuple(relatives), writer.random).name
    return writer.say(_THING), [writer.say(frame) for frame in chosen]


# --- animals and plants ---------------------------------------------------------------------
_ANIMAL = frames(
    "{animal}は{habitat}で見られる{animal_class}で、{food:animal_food}を[食べる|nonpast]。",
    "{animal}は{animal_class}の仲間で、{quality.nonpast:animal_quality}。",
    "{animal}は{animal2:animal}と同じく{animal_class}の仲間[だ|nonpast]。",
    "{habitat}には、{act.base:animal_act}ことで知られる{animal}が[いる|nonpast]。",
)
_ANIMAL_FACTS = frames(
    "{animal}は{food:animal_food}を食べ、{~town}の近くでも{act.base:animal_act}ことが[多い|nonpast]。",
    "{~town}の{~person}は、{quality.te:animal_quality}{act.base:animal_act}{animal}が[好きだ|nonpast]。",
    "{~person}は{~town}の{zoo}で、{animal}を{counting}と[数える|past]。",
    "{~said_by}{~town}の{zoo}で{animal}が{act.base:animal_act}のを見ることができるそう[だ|nonpast]。",
    "{~person}は{~month}に{~town}の{zoo}で{animal}を{counted:count_any}[見る|past]。",
    "{animal}は{habitat}で暮らし、{other:animal}は{habitat2:habitat}で[暮らす|nonpast]。",
    "{other:animal}が{food2:animal_food}を食べるのに対して、{animal}は{food:animal_food}を[食べる|nonpast]。",
    "{~person}は{animal}の絵を描き、{~public_place}に[飾る|past]。",
    "{~town}の{~person}は、{animal}が{act.base:animal_act}わけを{~duration}[調べる|past]。",
)

_LEGS = frames(
    "{animal}の足は{legs:number}本で、{other:animal}の足は{legs2:number}本[だ|nonpast]。",
    "{~person}は{animal}の足が{legs:number}本で、{other:animal}の足が{legs2:number}本だと[習う|past]。",
)
_SAME_LEGS = frames(
    "{animal}の足も{other:animal}の足も{legs:number}本[だ|nonpast]。",
    "{animal}には、{other:animal}と同じく足が{legs:number}本[ある|nonpast]。",
)


def _animal(writer: Writer) -> tuple[str, Facts]:
    animal = pick(ANIMALS, writer.random)
    other = pick(ANIMALS, writer.random)
    while other is animal:
        other = pick(ANIMALS, writer.random)
    relatives = tuple(
        a for a in ANIMALS if a.animal_class == animal.animal_class and a is not animal
    )
    intro_frames = _ANIMAL if relatives else (_ANIMAL[0], _ANIMAL[1], _ANIMAL[3])
    register = writer.register
    writer.cast.update(
        animal=animal.name,
        animal2=pick(relatives, writer.random).name if relatives else animal.name,
        animal_class=animal.animal_class,
        other=other.name,
        habitat=animal.habitat,
        habitat2=other.habitat,
        food=animal.food,
        food2=other.food,
        quality=Forms(animal.quality, register),
        act=Forms(animal.act, register),
        zoo={"魚": "水族館", "昆虫": "草むら"}.get(animal.animal_class, "動物園"),
        legs=animal.legs,
        legs2=other.legs,
        counting="、".join(count(number, animal.counter) for number in (1, 2, 3)),
        counted=count(writer.number(1, 10), animal.counter),
    )
    facts = [writer.say(frame) for frame in writer.shuffled(list(_ANIMAL_FACTS))[:4]]
    if animal.legs and other.legs:
        facts.append(writer.say(_SAME_LEGS if animal.legs == other.legs else _LEGS))
    return writer.say(intro_frames), facts


_PLANT = frames(
    "{plant}は{~town}の{plant_place}に生える{plant_kind}で、{month}に{petal}花を[咲かせる|nonpast]。",
    "{month}になると、{~town}の{plant_place}で{plant}の{petal}花が[咲く|nonpast]。",
    "{plant}は{season}の{plant_kind}で、{petal}花が{~person}や{~person}に好まれて[いる|nonpast]。",
)
_PLANT_FACTS = frames(
    "{~town}では、{plant}が{~landmark}の{~near}にも植えられて[いる|nonpast]。",
    "{~said_by}{plant}は{~daypart}に見るのが一番美しいそう[だ|nonpast]。",
    "{~person}の家では{plant}が{month}に咲き、{other:plant}が{month2:month}に[咲く|nonpast]。",
    "{petal}花の{plant}と{petal2:petal}花の{other:plant}を、{~person}は庭に[植える|past]。",
    "{~person}は毎年{month}に{plant}の絵を描いて、{~person}に[送る|nonpast]。",
    "{plant}の前では、{~town}の{~person}が{~duration}写真を[撮る|progressive+past]。",
    "{season}の終わりには{plant}の花も散り、{~landmark}は静かに[なる|nonpast]。",
    "{~person}は{~season}に{plant}を植え、{~daypart}ごとに水を[やる|nonpast]。",
)


def _plant(writer: Writer) -> tuple[str, Facts]:
    plant = pick(PLANTS, writer.random)
    other = pick(PLANTS, writer.random)
    while other is plant:
        other = pick(PLANTS, writer.random)
    writer.cast.update(
        plant=plant.name,
        plant_place=plant.habitat,
        plant_kind=plant.kind,
        month=MONTHS[plant.month - 1],
        month2=MONTHS[other.month - 1],
        petal=plant.colour,
        petal2=other.colour,
        season=season_of(plant.month),
        other=other.name,
    )
    return writer.say(_PLANT), [
        writer.say(frame) for frame in writer.shuffled(list(_PLANT_FACTS))[:5]
    ]


# --- jobs and seasons ---------------------------------------------------------------------
_JOB = frames(
    "{job}は{duty.base:duty_act}仕事で、{~town}の{~person}も{tool:work_tool}を[使う|nonpast]。",
    "{~town}の{workplace}で働く{job}は、{~weekday}も{duty.base:duty_act}ことを仕事に[する|progressive+nonpast]。",
    "{~person}の話では、{job}の仕事は{duty.base:duty_act}ことで、{tool:work_tool}をよく使うそう[だ|nonpast]。",
)
_JOB_FACTS = frames(
    "{town}の{full:full_name}は{age:number}歳の{job}で、{workplace}で働いて[いる|nonpast]。",
    "{~person}は{~month}に{workplace}を訪ね、{job}が{duty.base:duty_act}のを[見る|past]。",
    "{~person}は{~span}もかけて、{job}の{p:person}に{duty.base:duty_act}方法を[教わる|past]。",
    "{~said_by}{~season}は{job}が一番忙しい季節だそう[だ|nonpast]。",
    "{job}は{~morning_hour}から{duty.te:duty_act}、夕方に{tool:work_tool}を[片付ける|nonpast]。",
    "{job}の{p:person}は、{job2:job}の仕事にも興味を[持つ|progressive+nonpast]。",
    "{workplace}の{~near}では、{~weekday}に{~person}が{job}を[手伝う|progressive+nonpast]。",
    "{~person}は{job}になりたいと言い、{~person}は{job2:job}になりたいと[言う|past]。",
)


def _job(writer: Writer) -> tuple[str, Facts]:
    person = pick(_WORKERS, writer.random)
    place, duty, tool = JOBS[person.job]
    job2 = pick(tuple(JOBS), writer.random)
    while job2 == person.job:
        job2 = pick(tuple(JOBS), writer.random)
    writer.cast.update(
        job=person.job,
        job2=job2,
        workplace=place,
        tool=tool,
        duty=Forms(duty, writer.register),
        p=person.name,
        full=person.full_name,
        town=person.town,
        age=person.age,
    )
    return writer.say(_JOB), [writer.say(frame) for frame in writer.shuffled(list(_JOB_FACTS))[:5]]


_WORKERS = tuple(person for person in WORLD.people if person.job in JOBS)
_SEASON = frames(
    "{season}は{season_quality}季節で、{~town}でも{month}に{plant}の花が[咲く|nonpast]。",
    "{season}になると、{town}の{plant_place}でも{plant}が[咲く|nonpast]。",
)
_SEASON_FACTS = frames(
    "{month}には{~town}の{~landmark}の{~near}でも{plant}の花を見ることが[できる|nonpast]。",
    "{season}の{~daypart}には、{~person}は{~spot_act.base}ことが[多い|nonpast]。",
    "{~said_by}{season}には{~bird}が{~outdoor_place}の{~near}まで来ることもあるそう[だ|nonpast]。",
    "{season}の{~weekday}には、{~town}で{~fine_thing}がよく[売れる|nonpast]。",
    "{~person}と{~person}は、{season}になると{~town}へ旅を[する|nonpast]。",
    "{season}の{~daypart}は{season_quality}から、{~person}は{~hot_drink}を[飲む|nonpast]。",
    "{season}の終わりには、{~town}では{~wind}が{~direction}から吹く日が[増える|nonpast]。",
)


def _season(writer: Writer) -> tuple[str, Facts]:
    season = pick(SEASONS, writer.random)
    plant = pick(tuple(p for p in PLANTS if season_of(p.month) == season), writer.random)
    writer.cast.update(
        season=season,
        season_quality=SEASON_QUALITY[season],
        month=MONTHS[plant.month - 1],
        plant=plant.name,
        plant_place=plant.habitat,
    )
    return writer.say(_SEASON), [
        writer.say(frame) for frame in writer.shuffled(list(_SEASON_FACTS))[:5]
    ]


_SUBJECTS = (
    _person,
    _person,
    _person,
    _town,
    _town,
    _thing,
    _thing,
    _animal,
    _animal,
    _plant,
    _job,
    _season,
)


def make(random: Random) -> tuple[str, None, None]:
    """An entry as a document: what the subject is, then other facts about it."""
    writer = Writer(random, plain_share=0.5)
    intro, facts = pick(_SUBJECTS, random)(writer)
    return intro + "".join(writer.shuffled(facts)), None, None
