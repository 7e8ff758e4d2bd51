"""Which sites are adapted, and with which rank: patterns of module paths to `Target`s."""

import difflib
import re
from collections.abc import Sequence

import jax

from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.models.layout import layout, resolve_scan
from jgpt.peft.method import Method, Target
from jgpt.peft.sites import Site, find_sites

ALL_LINEAR = "all-linear"
"""In `peft.targets`: every linear map and expert of every layer."""
IN_A_LAYER = re.compile(r"^(encoder/)?layers_(\d+)/(.*)$")


def choose_targets(settings: PeftConfig, model: ModelConfig, method: Method) -> tuple[Target, ...]:
    """The sites that `peft.targets` and `peft.exclude` choose, with their ranks.

    Where layers are scanned, all layers of a stack get an adapter if one does; the others' rank is
    0 and their columns are masked.

    Raises:
        ConfigError: a pattern that matches no site which the method attaches to, 'all-linear' where
            that takes in experts and the method does not, or layers of a stack that differ where
            the method cannot mask them.
    """
    sites = find_sites(model)
    possible = [site for site in sites if site.kind in method.kinds]
    wanted = settings.targets or method.targets
    if ALL_LINEAR in wanted and "linear" in method.kinds and "experts" not in method.kinds:
        _no_experts_among(sites, settings.method)
    chosen = {path for pattern in wanted for path in _matches(pattern, possible, "targets")}
    for pattern in settings.exclude:
        chosen -= set(_matches(pattern, possible, "exclude"))
    ranks = _numbers(settings.rank_pattern, possible, "rank_pattern")
    alphas = _numbers(settings.alpha_pattern, possible, "alpha_pattern")
    default = settings.rank or method.default_rank

    def rank(site: Site) -> int:
        return int(ranks.get(site.path, default)) if site.path in chosen else 0

    stacks = _stacks(possible, model)
    targets = []
    for site in possible:
        stack = stacks.get(site.path, (site,))
        width = max(rank(other) for other in stack)
        if not width:
            continue
        if not method.masked and any(rank(other) != width for other in stack):
            raise ConfigError(
                f"peft: {site.path} and other layers of its stack are adapted differently, which "
                f"{settings.method} can do with model.scan_layers='off' only"
            )
        alpha = alphas.get(site.path, settings.alpha or float(rank(site)))
        targets.append(Target(site, rank(site), alpha, width, settings, model))
    return tuple(targets)


def _no_experts_among(sites: Sequence[Site], method: str) -> None:
    """'all-linear' names experts too: a method that cannot have them must not pass over them."""
    experts = [site.path for site in sites if site.kind == "experts"]
    if experts:
        raise ConfigError(
            f"peft.targets: 'all-linear' covers experts such as {experts[0]}, which {method} does "
            "not adapt; name what it is to adapt, such as 'attention/'"
        )


def _matches(pattern: str, sites: Sequence[Site], field: str) -> list[str]:
    if pattern == ALL_LINEAR:
        found = [
            s.path for s in sites if s.kind in ("linear", "experts") and IN_A_LAYER.match(s.path)
        ]
    else:
        found = [s.path for s in sites if re.search(pattern, s.path)]
    if found:
        return found
    paths = sorted({re.sub(r"layers_\d+", "layers_N", s.path) for s in sites})
    close = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"peft.{field}: {pattern!r} matches no module that this method adapts; {hint}there are "
        f"{', '.join(paths)}"
    )


def _numbers(patterns: Sequence[str], sites: Sequence[Site], field: str) -> dict[str, float]:
    """Site path -> the number of the first pattern that matches it."""
    numbers: dict[str, float] = {}
    for entry in patterns:
        pattern, _, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not pattern or value <= 0:
            raise ConfigError(
                f"peft.{field}: {entry!r} is no 'PATTERN=NUMBER' with a number above 0"
            )
        for path in _matches(pattern, sites, field):
            numbers.setdefault(path, value)
    return numbers


def _stacks(sites: Sequence[Site], model: ModelConfig) -> dict[str, tuple[Site, ...]]:
    """Site path -> the sites that lie in one array with it, where layers are scanned."""
    if resolve_scan(model, jax.default_backend()).scan_layers != "on":
        return {}
    groups: dict[tuple, list[Site]] = {}
    for site in sites:
        place = IN_A_LAYER.match(site.path)
        if not place:
            continue
        where = layout(model.encoder if place[1] else model)
        index = int(place[2])
        if where.periods and where.first <= index < where.stop:
            block = (index - where.first) % where.period
            groups.setdefault((place[1], block, place[3]), []).append(site)
    return {site.path: tuple(group) for group in groups.values() for site in group}
