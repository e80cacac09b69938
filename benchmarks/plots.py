"""The pictures of speed, as SVG text: bars of an update's phases, curves of growth, one update of a GPU over time. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

FONT = 'font-family="system-ui, sans-serif" font-size="12"'
COLOURS = {"rollout": "#4477aa", "reward": "#ccbb44", "score": "#66ccee", "train": "#ee6677",
           "sampling": "#4477aa", "training": "#ee6677"}  # fmt: skip
INK, FAINT = "#222222", "#dddddd"


@dataclass(frozen=True)
class Bar:
    """An update: its phases with seconds and share of bound."""

    label: str
    phases: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Panel:
    """Curves over lengths or batch sizes."""

    title: str
    x_label: str
    y_label: str
    curves: dict[str, list[tuple[float, float]]]
    limits: dict[str, float]
    """Heights of dashed lines, by curve."""


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f"<text {place} {FONT}>{escape(words)}</text>"


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
    ground = f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>"]) + "\n"


def timeline(groups: Sequence[Sequence[Bar]]) -> str:
    """Horizontal bars; each group has a scale of its own, so that before and after can be compared."""
    left, width, row = 165.0, 740.0, 46.0
    parts, y = [], 34.0
    for number, (name, colour) in enumerate(list(COLOURS.items())[:4]):
        parts.append(f'<rect x="{left + number * 100:.0f}" y="8" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(left + 18 + number * 100, 18, name))
    for group in groups:
        longest = max(sum(s for s, _ in bar.phases.values()) for bar in group)
        scale = (width - left - 70) / longest
        for bar in group:
            x = left
            parts.append(_text(left - 8, y + 19, bar.label, "end"))
            for name, (seconds, share) in bar.phases.items():
                wide = seconds * scale
                told = f"{name}: {seconds:.2f} s" + (f", {share:.0%} of its bound" if share is not None else "")
                parts.append(f'<g><title>{escape(told)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="26" '
                             f'fill="{COLOURS[name]}"/></g>')  # fmt: skip
                if share is not None and wide > 30:
                    parts.append(_text(x + wide / 2, y + 18, f"{share:.0%}", "middle", "#000000"))
                x += wide
            parts.append(_text(x + 6, y + 18, f"{sum(s for s, _ in bar.phases.values()):.1f} s"))
            y += row - 14
        y += 18
    parts.append(_text(left, y + 4, "Seconds of one update; in the bars: share of the phase's bound.", colour="#555555"))
    return _svg(width, y + 16, "One update before and after, by phase", parts)


def one_update(phases: Sequence[tuple[str, float, float]], lanes: Mapping[str, Sequence[float]], seconds: float) -> str:
    """An update over time: its phases (name, start, end), and under them lanes of how busy something was, from 0 to 1."""
    left, width, high = 92.0, 760.0, 44.0
    scale = (width - left - 16) / seconds
    parts = [_text(left - 8, 31, "phase", "end")]
    for name, start, end in phases:
        told = f"<title>{escape(name)}: {end - start:.4f} s</title>"
        parts.append(f'<rect x="{left + start * scale:.1f}" y="14" width="{max((end - start) * scale, 0.5):.1f}" height="26" '
                     f'fill="{COLOURS[name]}">{told}</rect>')  # fmt: skip
        if (end - start) * scale > 46:
            parts.append(_text(left + (start + end) / 2 * scale, 32, name, "middle", "#000000"))
    for number, (name, shares) in enumerate(lanes.items()):
        foot = 14 + 26 + (number + 1) * high
        wide = (width - left - 16) / len(shares)
        outline = "".join(
            f"V{foot - share * (high - 10):.1f}H{left + (place + 1) * wide:.1f}" for place, share in enumerate(shares)
        )
        mean = sum(shares) / len(shares)
        parts += [_text(left - 8, foot - 16, name, "end"), _text(left - 8, foot - 2, f"{mean:.0%}", "end", "#555555")]
        parts.append(f'<path d="M{left:.1f} {foot:.1f}{outline}V{foot:.1f}Z" fill="#4477aa"/>')
        parts.append(f'<path d="M{left:.1f} {foot:.1f}H{width - 16:.1f}" stroke="{FAINT}"/>')
    foot = 14 + 26 + len(lanes) * high + 18
    step = _round_step(seconds)
    for tick in range(int(seconds / step) + 1):
        parts.append(_text(left + tick * step * scale, foot, f"{tick * step:.4g} s", "middle", "#555555"))
    return _svg(width, foot + 12, "One update over time: phases, and how busy the device and the host are", parts)


def growth(panels: Sequence[Panel]) -> str:
    """Panels two in a row: x logarithmic with a tick at each measured value, y from zero."""
    wide, high = 380.0, 240.0
    parts = []
    for number, panel in enumerate(panels):
        parts += _panel(panel, (number % 2) * wide, (number // 2) * high, wide, high)
    return _svg(2 * wide, high * math.ceil(len(panels) / 2), "Time a token and memory over length and batch", parts)


def _panel(panel: Panel, x0: float, y0: float, wide: float, high: float) -> list[str]:
    left, right, top, bottom = x0 + 58, x0 + wide - 18, y0 + 46, y0 + high - 40
    xs = sorted({x for points in panel.curves.values() for x, _ in points})
    parts = [_text(x0 + 14, y0 + 20, panel.title, weight="bold"), _text(x0 + 14, y0 + 36, panel.y_label, colour="#555555")]
    parts.append(_text((left + right) / 2, y0 + high - 8, panel.x_label, "middle", "#555555"))
    if not xs:
        return parts
    heights = [y for points in panel.curves.values() for _, y in points] + list(panel.limits.values())
    step = _round_step(max(heights))
    most = math.ceil(max(heights) / step - 1e-9) * step
    span = math.log2(xs[-1] / xs[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * math.log2(x / xs[0]) / span, bottom - (bottom - top) * y / most

    for tick in range(round(most / step) + 1):
        _, y = place(xs[0], tick * step)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(left - 6, y + 4, f"{tick * step:.4g}", "end"))
    parts += [_text(place(x, 0)[0], bottom + 16, f"{x:g}", "middle") for x in xs]
    for number, (name, points) in enumerate(panel.curves.items()):
        colour, placed = COLOURS[name], [place(*point) for point in sorted(points)]
        parts.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in placed)}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')  # fmt: skip
        for (x, y), (at, value) in zip(placed, sorted(points), strict=True):
            told = f"<title>{escape(name)}, {at:g}: {value:.3g}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{told}</circle>')
        if name in panel.limits:
            _, y = place(xs[0], panel.limits[name])
            parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{colour}" stroke-dasharray="5 4"/>')
        parts.append(_text(right - 4, y0 + 20 + 16 * number, name, "end", colour, "bold"))
    return parts


def _round_step(most: float) -> float:
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)
