"""Charts as inline SVG. Colours are CSS variables of the page, so that light and dark both work."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDE, SMALL = (460, 230), (320, 180)
"""Width and height of charts, in pixels where they are shown as they are."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30
MAX_POINTS = 400
MAX_CELLS = 20_000


@dataclass(frozen=True)
class Series:
    """A line, or dots where `dots`. Values that are None or not finite are left out.

    `color` is a CSS variable without its dashes, `width` in pixels.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str = "series-1"
    width: float = 2.0
    dots: bool = False
    faint: bool = False

    def points(self) -> list[tuple[float, float]]:
        """Finite points, neighbours averaged where there are too many to see."""
        found = [(x, y) for x, y in zip(self.x, self.y) if y is not None and math.isfinite(y)]
        size = -(-len(found) // MAX_POINTS) or 1
        groups = [found[i : i + size] for i in range(0, len(found), size)]
        return [tuple(sum(v) / len(g) for v in zip(*g)) for g in groups]


@dataclass(frozen=True)
class Level:
    """A horizontal line with its name on it."""

    name: str
    y: float


def ticks(low: float, high: float, number: int = 6) -> list[float]:
    """About `number` round values from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / number
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def label(value: float) -> str:
    """A short form of a number for an axis."""
    size = abs(value)
    for limit, divisor, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M")):
        if size >= limit:
            return f"{value / divisor:.3g}{letter}"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < size < 1e-3 else f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """Where values are on the page."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool
    size: tuple[int, int]

    @property
    def right(self) -> float:
        """Where the drawing ends."""
        return self.size[0] - RIGHT

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1
        return LEFT + (value - self.x_low) / span * (self.right - LEFT)

    def y(self, value: float) -> float:
        scale = math.log if self.log else float
        low, high = scale(self.y_low), scale(self.y_high)
        part = (scale(value) - low) / ((high - low) or 1)
        bottom = self.size[1] - BOTTOM
        return bottom - min(max(part, 0), 1) * (bottom - TOP)


def _frame(
    points: list[list[tuple[float, float]]],
    levels: Sequence[Level],
    zero: bool,
    log: bool,
    size: tuple[int, int],
) -> Frame:
    xs = [x for line in points for x, _ in line]
    ys = [y for line in points for _, y in line] + [level.y for level in levels]
    low, high = min(ys), max(ys)
    if log:
        low, high = max(low, 1e-12), max(high, 1e-12)
        return Frame(min(xs), max(xs), low / 1.1, high * 1.1, log, size)
    low = 0.0 if zero else low - 0.04 * (high - low)
    high = high + 0.04 * (high - low) or 1.0
    return Frame(min(xs), max(xs), low, high if high > low else low + 1, log, size)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    levels: Sequence[Level] = (),
    zero: bool = False,
    log: bool = False,
    percent: bool = False,
    size: tuple[int, int] = WIDE,
) -> str:
    """A titled figure of lines over training steps; '' where there is nothing to draw.

    Args:
        title: shown above.
        series: lines and dots; a legend names them where there are several.
        levels: horizontal lines.
        zero: the axis starts at 0.
        log: logarithmic axis; values must be positive.
        percent: axis labels in percent.
        size: width and height.
    """
    drawn = [(s, p) for s in series if (p := s.points())]
    if log:
        drawn = [(s, [(x, y) for x, y in p if y > 0]) for s, p in drawn]
        drawn = [(s, p) for s, p in drawn if p]
    if not drawn:
        return ""
    frame = _frame([p for _, p in drawn], levels, zero, log, size)
    parts = [*_axes(frame, percent), *(_level(frame, level) for level in levels)]
    parts += [_dots(frame, s, p) if s.dots else _line(frame, s, p) for s, p in drawn]
    svg = (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return f"<figure><figcaption>{html.escape(title)}{_legend(drawn)}</figcaption>{svg}</figure>"


def _legend(drawn: list[tuple[Series, list]]) -> str:
    if len(drawn) < 2:
        return ""
    keys = "".join(
        f'<span class="key"><i style="background:var(--{s.color})"'
        f"{' class=faint' if s.faint else ''}></i>{html.escape(s.name)}</span>"
        for s, _ in drawn
    )
    return f'<span class="legend">{keys}</span>'


def _axes(frame: Frame, percent: bool) -> list[str]:
    parts = []
    values = (log_ticks if frame.log else ticks)(frame.y_low, frame.y_high)
    for value in values:
        y = frame.y(value)
        text = f"{value * 100:.4g}%" if percent else label(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
        )
    for value in ticks(frame.x_low, frame.x_high, frame.size[0] // 75):
        x = frame.x(value)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{frame.size[1] - 11}" text-anchor="middle">'
            f"{label(value)}</text>"
        )
    return parts


def _level(frame: Frame, level: Level) -> str:
    y = frame.y(level.y)
    return (
        f'<line class="level" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="level" x="{frame.right - 2}" y="{y - 5:.1f}" text-anchor="end">'
        f"{html.escape(level.name)} {level.y:.3f}</text>"
    )


def _line(frame: Frame, series: Series, points: list[tuple[float, float]]) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    opacity = ' opacity="0.35"' if series.faint else ""
    return (
        f'<polyline fill="none" stroke="var(--{series.color})" stroke-width="{series.width}"'
        f' stroke-linejoin="round"{opacity} points="{path}"/>'
    )


def _dots(frame: Frame, series: Series, points: list[tuple[float, float]]) -> str:
    line = _line(frame, series, points) if len(points) > 1 else ""
    return line + "".join(
        f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4" fill="var(--{series.color})" '
        f'stroke="var(--surface)" stroke-width="2"><title>step {x:g}: {y:.4f}</title></circle>'
        for x, y in points
    )


def heat_map(title: str, steps: Sequence[int], rows: Sequence[Sequence[float]], top: float) -> str:
    """Shares over time: one row per expert, one column per time; full colour is `top`.

    Args:
        title: shown above.
        steps: of the columns.
        rows: [rows][columns].
        top: value of the strongest colour.
    """
    columns, height = len(steps), max(6, min(18, 260 // len(rows)))
    full = WIDE[0]
    width = (full - 34) / columns
    cells = []
    for j, row in enumerate(rows):
        for i, value in enumerate(row):
            strength = round(min(value / top, 1) * 100)
            cells.append(
                f'<rect x="{28 + i * width:.2f}" y="{j * height}" width="{width + 0.3:.2f}" '
                f'height="{height - 1}" style="--v:{strength}%"/>'
            )
        if height >= 11 or j % 8 == 0:
            cells.append(
                f'<text class="tick" x="22" y="{(j + 0.5) * height + 3:.1f}" text-anchor="end">'
                f"{j}</text>"
            )
    bottom = len(rows) * height
    ends = (
        f'<text class="tick" x="28" y="{bottom + 14}">step {steps[0]}</text>'
        f'<text class="tick" x="{full - 6}" y="{bottom + 14}" text-anchor="end">{steps[-1]}</text>'
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg class="heat" viewBox="0 0 {full} {bottom + 20}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(cells)}{ends}</svg></figure>'
    )


def columns_for(rows: int) -> int:
    """How many columns a heat map of so many rows in all may have."""
    return max(8, min(60, MAX_CELLS // max(rows, 1)))
