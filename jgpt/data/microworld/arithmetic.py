"""Arithmetic word problems with worked steps, from the world's prices, ages and animals.

Numbers stand in digits here. A text has three lines: 【問題】, 【考え方】 and 【答え】.
"""

from __future__ import annotations

from jgpt.data.microworld.arithmetic_sheet import Sheet
from jgpt.data.microworld.frames import Random, pick
from jgpt.data.microworld.problems_of_daily_life import DAILY_PROBLEMS
from jgpt.data.microworld.problems_of_goods import GOODS_PROBLEMS

_PROBLEMS = (*GOODS_PROBLEMS, *DAILY_PROBLEMS)


def make(random: Random) -> tuple[str, str, str]:
    """One problem: the prompt ends after 【考え方】, the rest is the steps and the answer."""
    sheet = Sheet(random)
    told, steps, answer = pick(_PROBLEMS, random)(sheet)
    prompt = f"【問題】{''.join(told)}\n【考え方】"
    return f"{prompt}{''.join(steps)}\n【答え】{answer}です。", prompt, answer
