"""Ordered rules over parameters: learning rate, weight decay, freezing.

    optimizer.rules = ("^embedding: freeze", "layers_[01]/: rate=0.1", ".*: rate=1 decay=0.01")

Patterns are regular expressions over the paths of the unrolled model; the first that matches a
parameter counts, and every parameter must be matched. `rate` multiplies `optimizer.learning_rate`,
`decay` takes the place of `optimizer.weight_decay`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jgpt.config import ConfigError

EXAMPLE = "write 'PATTERN: freeze' or 'PATTERN: rate=0.1 decay=0'"


@dataclass(frozen=True)
class Rule:
    """What holds for the parameters that a pattern matches."""

    pattern: str
    freeze: bool = False
    rate: float = 1.0
    decay: float | None = None
    """None for what `optimizer.weight_decay` and the parameter's group say"""


def read_rules(lines: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of `optimizer.rules`.

    Raises:
        ConfigError: a line that is no rule.
    """
    return tuple(_read(line) for line in lines)


def _read(line: str) -> Rule:
    pattern, colon, words = line.rpartition(":")
    if not colon or not words.strip():
        raise ConfigError(f"optimizer.rules: {line!r} is no rule; {EXAMPLE}")
    try:
        re.compile(pattern)
        if words.strip() == "freeze":
            return Rule(pattern, freeze=True)
        values = {}
        for word in words.split():
            name, _, number = word.partition("=")
            values[name] = float(number)
        if not set(values) <= {"rate", "decay"} or min(values.values()) < 0:
            raise ValueError
    except (ValueError, re.error) as error:
        raise ConfigError(f"optimizer.rules: {line!r} cannot be read; {EXAMPLE}") from error
    return Rule(pattern, rate=values.get("rate", 1.0), decay=values.get("decay"))


def rule_of(path: str, rules: Sequence[Rule]) -> Rule:
    """The first rule whose pattern matches.

    Raises:
        ConfigError: none does.
    """
    for rule in rules:
        if re.search(rule.pattern, path):
            return rule
    raise ConfigError(
        f"optimizer.rules: no rule for {path}; end with one for the rest, such as '.*: rate=1'"
    )
