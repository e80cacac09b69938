"""Line charts as numbers and path strings, for a template to put into SVG. Pure: no files, no colours, no words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 36
"""Margins; all in SVG user units."""

Number = float | int | None


@dataclass(frozen=True)
class Dot:
    """A data point: where it is drawn and what its tooltip says."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready to draw. Coordinates are SVG user units, y downward."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: str
    """Path data; a value that is missing leaves a gap."""
    dots: list[Dot]
    band: str = ""
    """Path data of the closed area between two curves."""
    target: float | None = None
    """Height of a horizontal line."""
    guide: str = ""
    """Path data of a line to compare with."""
    marks: dict[str, Dot] = field(default_factory=dict)
    """Further points by name."""
    beside: str = ""
    """Path data of a second line."""
    beside_dots: list[Dot] = field(default_factory=list)


def over_updates(
    updates: Sequence[float],
    values: Sequence[Number],
    *,
    spread: Sequence[Number] | None = None,
    target: float | None = None,
    zero: bool = False,
    whole: bool = True,
) -> Chart | None:
    """A curve over updates.

    Args:
        updates: x, ascending.
        values: y; None leaves a gap.
        spread: half width of a band around the curve.
        target: height of a line across.
        zero: the y axis includes 0.
        whole: ``updates`` are whole numbers.

    Returns:
        None if there is no value at all.
    """
    points = [(x, y) for x, y in zip(updates, values, strict=True) if y is not None]
    if not points:
        return None
    edges: list[tuple[float, float, float] | None] = [
        None if y is None or s is None else (x, y - s, y + s)
        for x, y, s in zip(updates, values, spread or [None] * len(updates), strict=True)
    ]
    heights = [y for _, y in points] + [h for e in edges if e for h in e[1:]]
    heights += [0.0] * zero + ([] if target is None else [target])
    x_axis, y_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, whole=whole), _y_axis(heights)
    titles = iter(
        f"{round(x, 3)}: {y:.4g}" + ("" if spread is None or s is None else f" ± {s:.3g}")
        for x, y, s in zip(updates, values, spread or [None] * len(updates), strict=True)
        if y is not None
    )
    return Chart(
        x_axis.ticks(),
        y_axis.ticks(),
        _line((None if y is None else (x_axis(x), y_axis(y))) for x, y in zip(updates, values, strict=True)),
        [Dot(x_axis(x), y_axis(y), next(titles)) for x, y in points],
        band=_band([None if e is None else (x_axis(e[0]), y_axis(e[1]), y_axis(e[2])) for e in edges]),
        target=None if target is None else y_axis(target),
    )


def path(
    updates: Sequence[int],
    xs: Sequence[Number],
    ys: Sequence[Number],
    marks: dict[str, tuple[float, float]],
    beside: Sequence[tuple[str, Number, Number]] = (),
) -> Chart | None:
    """The way of (x, y) from update to update, joined in order, with named points beside it. None if there is none.

    ``beside``: the points (name, x, y) of a second line.
    """
    points = [(u, x, y) for u, x, y in zip(updates, xs, ys, strict=True) if x is not None and y is not None]
    if not points:
        return None
    other = [(name, x, y) for name, x, y in beside if x is not None and y is not None]
    everything = [(x, y) for _, x, y in points] + [(x, y) for _, x, y in other] + list(marks.values())
    x_axis = _Axis(_roomy([*(x for x, _ in everything), 0.0]), LEFT, WIDTH - RIGHT)
    y_axis = _y_axis(_roomy([y for _, y in everything]))
    return Chart(
        x_axis.ticks(),
        y_axis.ticks(),
        _line((x_axis(x), y_axis(y)) for _, x, y in points),
        [Dot(x_axis(x), y_axis(y), f"{u}: {x:.4g}, {y:.4g}") for u, x, y in points],
        marks={name: Dot(x_axis(x), y_axis(y), f"{x:.4g}, {y:.4g}") for name, (x, y) in marks.items()},
        beside=_line((x_axis(x), y_axis(y)) for _, x, y in other),
        beside_dots=[Dot(x_axis(x), y_axis(y), f"{name}: {x:.4g}, {y:.4g}") for name, x, y in other],
    )


def calibration(points: Sequence[tuple[float, float, int]], low: float) -> Chart | None:
    """How often what was said came true, from (probability that was said, share that came true, count). None if empty.

    The x axis is from ``low`` to 1; the guide is where both are equal.
    """
    if not points:
        return None
    x_axis, y_axis = _Axis([low, 1.0], LEFT, WIDTH - RIGHT), _y_axis([low, 1.0, *(y for _, y, _ in points)])
    return Chart(
        x_axis.ticks(),
        y_axis.ticks(),
        _line((x_axis(x), y_axis(y)) for x, y, _ in points),
        [Dot(x_axis(x), y_axis(y), f"{x:.3g}: {y:.3g} ({count})") for x, y, count in points],
        guide=_line([(x_axis(low), y_axis(low)), (x_axis(1.0), y_axis(1.0))]),
    )


class _Axis:
    """Maps data to [start, end] and picks round tick values (steps of 1, 2, 5 times a power of ten)."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: open the axis around it
            room = 0.5 if whole or low == 0 else abs(low) / 10
            low, high = low - room, high + room
        self._low, self._high, self._start, self._end, self._whole = low, high, start, end, whole

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        rough = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)
        if self._whole:
            step = max(1.0, step)
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        return [(self(value), f"{value:.6g}".replace("-", "−")) for value in values]


def _roomy(values: Sequence[float]) -> list[float]:
    """The values' ends with a little room beyond them, for marks that are wider than a line."""
    low, high = min(values), max(values)
    return [low - (high - low) / 20, high + (high - low) / 20]


def _y_axis(values: Sequence[float]) -> _Axis:
    return _Axis(values, HEIGHT - BOTTOM, TOP)


def _line(points: Iterable[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:g} {point[1]:g}")
            pen = "L"
    return "".join(parts)


def _band(edges: Sequence[tuple[float, float, float] | None]) -> str:
    """Closed areas, one for each run of edges (x, low, high) without a gap."""
    parts: list[str] = []
    run: list[tuple[float, float, float]] = []
    for edge in [*edges, None]:
        if edge is not None:
            run.append(edge)
        elif run:
            around = [(x, high) for x, _, high in run] + [(x, low) for x, low, _ in reversed(run)]
            parts.append(_line(around) + "Z")
            run = []
    return "".join(parts)
