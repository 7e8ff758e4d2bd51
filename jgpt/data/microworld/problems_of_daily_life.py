"""Word problems about ages, distances, savings, reading, passengers, time, rows and legs."""

from __future__ import annotations

from jgpt.data.microworld import people
from jgpt.data.microworld.arithmetic_sheet import DEAR, TOGETHER, Problem, Sheet
from jgpt.data.microworld.frames import frame, frames, pick
from jgpt.data.microworld.world import WORLD

_AGES = frames(
    "{~town}に住む{a:person}は{age:number}歳で、{kin_age}[だ|nonpast]。",
    "{a:person}の{kin_age}で、{a:person}は{age:number}歳[だ|nonpast]。",
)
_AGE_GAP_ASKED = frames(
    "{a:person}と{kin}の年の差は何歳[だ|question]。", "{kin}と{a:person}は何歳[違う|question]。"
)
_AGE_GAP = frames(
    "{kin}と{a:person}の年の差は{difference}[だ|nonpast]。",
    "大きいほうの年から引いて、{difference}[だ|nonpast]。",
)
_AGE_LATER_ASKED = frames(
    "{years:number}年後、{a:person}と{kin}の年を足すと何歳[だ|question]。",
)
_AGE_LATER = frames("{years:number}年後、{a:person}は{sum}に[なる|nonpast]。")
_AGE_LATER_KIN = frames("{kin}は{sum}に[なる|nonpast]。", "そのとき{kin}は{sum}[だ|nonpast]。")


def _ages(sheet: Sheet) -> Problem:
    person, other, kin = pick(_RELATED, sheet.random)
    sheet.cast.update(a=person.name, kin=kin, age=person.age, kin_age=f"{kin}は{other.age}歳")
    told = [sheet.say(_AGES, town=person.town)]
    if sheet.random() < 0.5:
        low, high = sorted((person.age, other.age))
        told.append(sheet.say(_AGE_GAP_ASKED))
        return (
            told,
            [sheet.say(_AGE_GAP, difference=f"{high}-{low}={high - low}歳")],
            f"{high - low}歳",
        )
    years = sheet.number(2, 20)
    told.append(sheet.say(_AGE_LATER_ASKED, years=years))
    one, two = person.age + years, other.age + years
    steps = [
        sheet.say(_AGE_LATER, sum=f"{person.age}+{years}={one}歳"),
        sheet.say(_AGE_LATER_KIN, sum=f"{other.age}+{years}={two}歳"),
        sheet.say(TOGETHER, sum=f"{one}+{two}={one + two}歳"),
    ]
    return told, steps, f"{one + two}歳"


_RELATED = tuple(
    (person, other, kin)
    for person in WORLD.people
    for other in WORLD.households[person.household]
    if (kin := people.relation(person, other)) and kin != "孫" and person.age != other.age
)
_WALK = frames(
    "{~some_day}、{a:person}は家から{~public_place}まで分速{speed:number}メートルで{time:number}分[歩く|past]。",
    "{a:person}は{~town}の{~landmark}から{~public_place}まで、分速{speed:number}メートルで{time:number}分[走る|past]。",
)
_WALK_ASKED = frames("{a:person}が進んだ道のりは何メートル[だ|question]。")
_WALKED = frames(
    "1分に{speed:number}メートル進むので、{product}[だ|nonpast]。",
    "道のりは速さと時間を掛けて{product}[だ|nonpast]。",
)


def _walk(sheet: Sheet) -> Problem:
    speed, time = sheet.number(50, 160, 5), sheet.number(4, 45)
    told = [sheet.say(_WALK, speed=speed, time=time), sheet.say(_WALK_ASKED)]
    return (
        told,
        [sheet.say(_WALKED, product=f"{speed}×{time}={speed * time}メートル")],
        f"{speed * time}メートル",
    )


_SAVE = frames(
    "{a:person}は{thing}を買うために、毎週{weekly:number}円ずつ{weeks_n:number}週間お金を[ためる|past]。",
    "{~month}から{a:person}は毎週{weekly:number}円ずつ、{weeks_n:number}週間[貯金する|past]。",
)
_SAVED_FIRST = frames(
    "初めに{start:number}円[持つ|progressive+past]。",
    "{a:person}の貯金箱には初めに{start:number}円[ある|past]。",
)
_SAVE_ASKED = frames(
    "{a:person}のお金は全部で何円に[なる|question_past]。",
    "{weeks_n:number}週間後、{a:person}のお金は何円[だ|question]。",
)
_SAVED = frames(
    "ためたお金は{product}[だ|nonpast]。", "{weeks_n:number}週間で{product}[たまる|nonpast]。"
)
_SAVED_ALL = frames("初めの{start:number}円を足して、{sum}[だ|nonpast]。")


def _save(sheet: Sheet) -> Problem:
    weekly, weeks, start = (
        sheet.number(50, 600, 10),
        sheet.number(3, 20),
        sheet.number(100, 3000, 100),
    )
    told = [
        sheet.say(_SAVE, weekly=weekly, weeks_n=weeks, thing=pick(DEAR, sheet.random).name),
        sheet.say(_SAVED_FIRST, start=start),
        sheet.say(_SAVE_ASKED),
    ]
    earned = weekly * weeks
    steps = [
        sheet.say(_SAVED, product=f"{weekly}×{weeks}={earned}円"),
        sheet.say(_SAVED_ALL, sum=f"{earned}+{start}={earned + start}円"),
    ]
    return told, steps, f"{earned + start}円"


_READ = frames(
    "{a:person}は{pages:number}ページの{book:goods_本}を、1日に{daily:number}ページずつ[読む|nonpast]。",
    "{~town}の図書館で借りた{pages:number}ページの{book:goods_本}を、{a:person}は1日に{daily:number}ページずつ[読む|nonpast]。",
)
_READ_ASKED = frames(
    "{a:person}が{book:goods_本}を読み終わるのは何日目[だ|question]。",
    "{a:person}が{book:goods_本}を全部読むのに何日[かかる|question]。",
)
_READ_DONE = frames(
    "{pages:number}ページを{daily:number}ページずつ読むから、{quotient}[だ|nonpast]。"
)


def _read(sheet: Sheet) -> Problem:
    daily, days = sheet.number(4, 25), sheet.number(4, 20)
    book = pick(WORLD.goods["本屋"], sheet.random).name
    told = [sheet.say(_READ, pages=daily * days, daily=daily, book=book), sheet.say(_READ_ASKED)]
    return told, [sheet.say(_READ_DONE, quotient=f"{daily * days}÷{daily}={days}日")], f"{days}日"


_RIDE = frames(
    "{~town}を出る{vehicle}に客が{on:number}人[乗る|progressive+past]。",
    "{~clock}の{vehicle}には、{a:person}を入れて{on:number}人の客が[いる|past]。",
)
_RIDE_CHANGE = frames(
    "{~landmark}の前で{off:number}人が降り、{new:number}人が[乗る|past]。",
    "次の{~town}で{off:number}人が降りて、{new:number}人が[乗る|past]。",
)
_RIDE_ASKED = frames(
    "{~town}へ向かう{vehicle}に今乗っている客は何人[だ|question]。",
    "{~landmark}の前を出た{vehicle}の客は何人に[なる|question_past]。",
)
_RIDE_OFF = frames("{off:number}人が降りて、{difference}に[なる|nonpast]。")
_RIDE_ON = frames(
    "{new:number}人が乗って、{sum}に[なる|nonpast]。",
    "そこへ{new:number}人が乗ったので、{sum}[だ|nonpast]。",
)


def _ride(sheet: Sheet) -> Problem:
    start, new = sheet.number(10, 60), sheet.number(2, 25)
    off = sheet.number(2, 9)
    left = start - off
    told = [
        sheet.say(_RIDE, on=start),
        sheet.say(_RIDE_CHANGE, off=off, new=new),
        sheet.say(_RIDE_ASKED),
    ]
    steps = [
        sheet.say(_RIDE_OFF, difference=f"{start}-{off}={left}人"),
        sheet.say(_RIDE_ON, sum=f"{left}+{new}={left + new}人"),
    ]
    return told, steps, f"{left + new}人"


_START = frames(
    "{a:person}は{time_of_day}に家を出て、{~public_place}まで{minutes_n:number}分[歩く|past]。",
    "{a:person}は{time_of_day}から{task}を始め、{minutes_n:number}分[続ける|past]。",
)
_START_ASKED = frames(
    "{a:person}が終えた時刻は何時何分[だ|question]。",
    "{a:person}が終わったのは何時何分[だ|question]。",
)
_CLOCK_STEP = frames(
    "{hour_n:number}時{minute_n:number}分の{minutes_n:number}分後は、{minute_n:number}+{minutes_n:number}={total_n:number}分から[考える|nonpast]。"
)
_CLOCK_STEP_2 = frames(
    "{total_n:number}分は{carry:number}時間{rest_n:number}分だから、{time2:time_of_day}[だ|nonpast]。"
)
frame("{answer_time:time_of_day}です。")  # how the answer is given


def _clock(sheet: Sheet) -> Problem:
    half = pick(("午前", "午後"), sheet.random)
    hour, minute = sheet.number(1, 8), sheet.number(5, 55, 5)
    minutes = sheet.number(65 - minute, 175 - minute, 5)
    carry, rest = divmod(minute + minutes, 60)
    end = f"{half}{hour + carry}時" + (f"{rest}分" if rest else "")
    told = [
        sheet.say(_START, time_of_day=f"{half}{hour}時{minute}分", minutes_n=minutes),
        sheet.say(_START_ASKED),
    ]
    steps = [
        sheet.say(_CLOCK_STEP, hour_n=hour, minute_n=minute, total_n=minute + minutes),
        sheet.say(_CLOCK_STEP_2, carry=carry, rest_n=rest, time2=end),
    ]
    return told, steps, end


_ROWS = frames(
    "{a:person}は{~public_place}に椅子を1列に{each:number}脚ずつ、{rows:number}列[並べる|past]。",
    "{~town}の音楽堂で、{a:person}は椅子を{each:number}脚ずつ{rows:number}列に[並べる|past]。",
)
_ROWS_ASKED = frames("{a:person}が並べた椅子は全部で何脚[だ|question]。")
_ROWS_DONE = frames("{each:number}脚の列が{rows:number}列あるので、{product}[だ|nonpast]。")


def _rows(sheet: Sheet) -> Problem:
    each, rows = sheet.number(4, 25), sheet.number(3, 20)
    told = [sheet.say(_ROWS, each=each, rows=rows), sheet.say(_ROWS_ASKED)]
    return (
        told,
        [sheet.say(_ROWS_DONE, product=f"{each}×{rows}={each * rows}脚")],
        f"{each * rows}脚",
    )


_LEGS = frames(
    "{a:person}は{~outdoor_place}の{~near}で、{legged}と{legged2:legged}いるのを[見る|past]。",
    "{~town}の動物園には{legged}、{legged2:legged}[いる|nonpast]。",
)
_LEGS_ASKED = frames("{animal:named_animal}と{animal2:named_animal}の足は全部で何本[だ|question]。")
_LEGS_STEP = frames(
    "{legs}だから、{product}[だ|nonpast]。", "{legs}で、合わせて{product}に[なる|nonpast]。"
)
_LEGGED = tuple(animal for animal in WORLD.animals if animal.legs)


def _legs(sheet: Sheet) -> Problem:
    one, two = pick(_LEGGED, sheet.random), pick(_LEGGED, sheet.random)
    while two is one:
        two = pick(_LEGGED, sheet.random)
    n, m = sheet.number(2, 12), sheet.number(2, 12)
    told = [
        sheet.say(
            _LEGS, legged=f"{one.name}が{n}{one.counter}", legged2=f"{two.name}が{m}{two.counter}"
        ),
        sheet.say(_LEGS_ASKED, animal=one.name, animal2=two.name),
    ]
    first, second = one.legs * n, two.legs * m
    steps = [
        sheet.say(
            _LEGS_STEP, legs=f"{one.name}の足は{one.legs}本", product=f"{one.legs}×{n}={first}本"
        ),
        sheet.say(
            _LEGS_STEP, legs=f"{two.name}の足は{two.legs}本", product=f"{two.legs}×{m}={second}本"
        ),
        sheet.say(TOGETHER, sum=f"{first}+{second}={first + second}本"),
    ]
    return told, steps, f"{first + second}本"


DAILY_PROBLEMS = (_ages, _walk, _save, _read, _ride, _clock, _rows, _legs)
