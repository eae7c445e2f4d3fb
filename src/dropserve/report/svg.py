"""Small line, bar and point plots as inline SVG.

Drawn by hand, not by matplotlib: colours come from the page's style sheet, so one drawing serves light and
dark; text stays text; and a plot costs a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

Style = Literal["a", "b", "c", "good", "bad", "faint"]
WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 12, 42


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: with its unit.
        low: its left or lower end.
        high: its other end, above ``low``.
        log: logarithmic; both ends are then above 0.
        percent: ticks are shares, shown in percent.
        whole: ticks are whole numbers.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False

    @classmethod
    def around(cls, label: str, *values: ArrayLike, zero: bool = False, log: bool = False) -> Axis:
        """An axis with a little room around all values; from 0 up if ``zero``."""
        every = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in values])
        every = every[np.isfinite(every)]
        low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
        if log and low > 0:
            low, high = low / 1.15, high * 1.15
            return cls(label, low, high if high > low else low * 2, log=True)
        room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
        return cls(label, 0.0 if zero else low - room, high + room)

    def place(self, values: ArrayLike) -> list[float]:
        """Values as shares of the axis, 0 at its low end."""
        array = np.asarray(values, np.float64)
        if self.log:
            array = np.log(np.maximum(array, 1e-300))
            low, high = math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return ((array - low) / (high - low)).tolist()

    def ticks(self) -> list[tuple[float, str]]:
        """Where the ticks are, and what they say."""
        return [(value, self._text(value)) for value in (self._decades() if self.log else self._steps())]

    def _steps(self, most: int = 6) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
        if self.whole:
            step = max(1.0, float(math.ceil(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def _decades(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for wanted in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = [m * 10.0**p for p in powers for m in wanted if self.low <= m * 10.0**p <= self.high]
            if len(found) >= 3:
                return found if len(found) <= 8 else found[:: math.ceil(len(found) / 8)]
        return self._steps()

    def _text(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.3g}%"
        return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Line:
    """A line through points."""

    x: ArrayLike
    y: ArrayLike
    style: Style = "a"
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Points:
    """Dots, each with an upright whisker from ``low`` to ``high`` if these are given.

    Attributes:
        radius: of all dots, or of each.
    """

    x: ArrayLike
    y: ArrayLike
    style: Style = "a"
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    radius: float | Sequence[float] = 2.2


@dataclass(frozen=True)
class Bars:
    """Upright bars from 0, K of them between K + 1 edges."""

    edges: ArrayLike
    heights: ArrayLike
    style: Style = "a"


Mark = Line | Points | Bars


@dataclass
class _Canvas:
    x: Axis
    y: Axis
    parts: list[str] = field(default_factory=list[str])

    def across(self, values: ArrayLike) -> list[float]:
        return [LEFT + share * (WIDTH - LEFT - RIGHT) for share in np.ravel(self.x.place(values))]

    def up(self, values: ArrayLike) -> list[float]:
        return [HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM) for share in np.ravel(self.y.place(values))]

    def add(self, mark: Mark) -> None:
        if isinstance(mark, Bars):
            edges, tops, base = self.across(mark.edges), self.up(mark.heights), HEIGHT - BOTTOM
            for left, right, top in zip(edges, edges[1:], tops, strict=False):
                if base - top > 0.05:
                    width = max(right - left - 1, 0.5)
                    self.parts.append(
                        f'<rect class="bar {mark.style}" x="{left + 0.5:.1f}" y="{top:.1f}" '
                        f'width="{width:.1f}" height="{base - top:.1f}"/>'
                    )
            return
        if isinstance(mark, Line):
            seen = np.isfinite(np.asarray(mark.y, np.float64))  # a diverged training has losses that are not
            mark = replace(mark, x=np.asarray(mark.x)[seen], y=np.asarray(mark.y)[seen])
        xs, ys = self.across(mark.x), self.up(mark.y)
        if isinstance(mark, Line):
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
            dashed = " dashed" if mark.dashed else ""
            self.parts.append(f'<polyline class="line {mark.style}{dashed}" points="{path}"/>')
            if not mark.dots:
                return
        elif mark.low is not None and mark.high is not None:
            ends = zip(xs, self.up(mark.low), self.up(mark.high), strict=True)
            self.parts += [
                f'<path class="whisker {mark.style}" d="M{a:.1f} {b:.1f}V{c:.1f}"/>' for a, b, c in ends
            ]
        radius = mark.radius if isinstance(mark, Points) else 3.0
        sizes = [radius] * len(xs) if isinstance(radius, int | float) else radius
        self.parts += [
            f'<circle class="dot {mark.style}" cx="{a:.1f}" cy="{b:.1f}" r="{r:.1f}"/>'
            for a, b, r in zip(xs, ys, sizes, strict=True)
        ]

    def frame(self) -> list[str]:
        base, parts = HEIGHT - BOTTOM, list[str]()
        for value, text in self.x.ticks():
            (a,) = self.across([value])
            parts.append(f'<path class="grid" d="M{a:.1f} {TOP}V{base}"/>')
            parts.append(f'<text class="tick" x="{a:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>')
        for value, text in self.y.ticks():
            (b,) = self.up([value])
            parts.append(f'<path class="grid" d="M{LEFT} {b:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{b + 4:.1f}" text-anchor="end">{text}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>')
        middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + base) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        parts.append(
            f'<text class="label" transform="translate(13 {centre}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )
        return parts


def draw(title: str, x: Axis, y: Axis, marks: Sequence[Mark]) -> Markup:
    """A plot; what lies beyond its axes is cut off.

    Args:
        title: for who cannot see it.
        x: the axis across.
        y: the axis up.
        marks: later ones above earlier ones.
    """
    canvas = _Canvas(x, y)
    for mark in marks:
        canvas.add(mark)
    room = f"{LEFT - 9} {TOP - 9} {WIDTH - LEFT - RIGHT + 18} {HEIGHT - TOP - BOTTOM + 18}"
    left, top, width, height = room.split()
    return Markup(  # noqa: S704  # numbers that we formatted, and text that is escaped
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(canvas.frame())}"
        f'<svg x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{room}">'
        f"{''.join(canvas.parts)}</svg></svg>"
    )
