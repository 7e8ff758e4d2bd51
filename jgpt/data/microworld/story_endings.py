"""How stories end: the hero looks back on what happened."""

from jgpt.data.microworld.story_event import event

ENDINGS = (
    event(
        "write_diary",
        "glad",
        "",
        "{evening}、{topic}{memory}を{~span_short}かけて日記に[書く|past]。",
        "{evening}、{topic}{~colour}日記帳を開き、{memory}を{~write_manner}[書く|past]。",
        is_ending=True,
    ),
    event(
        "tell_family",
        "glad",
        "",
        "{evening}、{topic}{memory}を{kin}に{~in_detail}[伝える|past]。",
        "{evening}、{hero}が{memory}を伝えると、{kin}は「{~reply}」と[言う|past]。",
        is_ending=True,
    ),
    event(
        "feel_good",
        "glad",
        "",
        "帰り道、{~scenery}、{hero}は{~degree}[うれしい|past]。",
        "{~scenery}、{hero}にとって{~good_day}一日に[なる|past]。",
        is_ending=True,
    ),
    event(
        "remember",
        "glad",
        "",
        "それから{hero}は、{~weekday}の{~daypart}が来るたびに{memory}を[思い出す|past]。",
        "{hero}は今でも、{~weekday}の{~daypart}に{memory}を[思い出す|nonpast]。",
        is_ending=True,
    ),
    event(
        "sleep_well",
        "rested",
        "",
        "{evening}、{topic}{memory}を思いながら、{~sleeping_place}で[眠る|past]。",
        "目を覚ますと、{~scenery}、{hero}の疲れはすっかり[取れる|progressive+past]。",
        is_ending=True,
    ),
    event(
        "rested_tell",
        "rested",
        "",
        "元気になった{hero}は、{memory}を{kin}に{~in_detail}[伝える|past]。",
        "{topic}{kin}に礼を言い、{~night_act.te}から明かりを[消す|past]。",
        is_ending=True,
    ),
    event(
        "second_meeting",
        "glad together",
        "",
        "二人は{~weekday}に{~landmark}の前でまた会うことを[約束する|past]。",
        "別れるとき、{friend:companion}は「{~weekday}に{~landmark}でまた会おう」と[言う|past]。",
        is_ending=True,
    ),
)
