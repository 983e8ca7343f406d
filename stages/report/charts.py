"""Charts as inline SVG. Lengths are percentages or a small view box, so they stay legible on a phone; colours are
classes, so they follow the reader's light or dark setting; every chart says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

Figure = Mapping[str, Any]
"""{value, low, high, n} as in metrics.json."""


def _percent(value: float, low: float = 0.0, high: float = 1.0) -> str:
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return f"{100 * share:.2f}%"


def _svg(height: int, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        height, label, Markup("").join(parts)
    )


def _line(x1: str, y1: float, x2: str, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _whisker(figure: Figure, y: float, low: float, high: float, kind: str) -> list[Markup]:
    a, b = _percent(figure["low"], low, high), _percent(figure["high"], low, high)
    return [
        _line(a, y, b, y, kind),
        _line(a, y - 3, a, y + 3, kind),
        _line(b, y - 3, b, y + 3, kind),
    ]


def level_bar(cells: Mapping[str, Figure], cap: float | None, floor: float | None, label: str) -> Markup:
    """One system in one setting: NDCG (pale), CertNDCG (solid, with interval), gold-gated CertNDCG (inner).

    Args:
        cells: figures under ndcg, cert_ndcg and cert_ndcg_gold; those without a value are left out.
        cap, floor: CertNDCG of the oracle and of the random system, drawn as marks.
        label: the chart in words.
    """
    parts = [Markup('<rect x="0" y="3" width="100%" height="18" rx="3" class="track"/>')]
    for name, y, height in (("ndcg", 3, 18), ("cert_ndcg", 6, 12), ("cert_ndcg_gold", 9.5, 5)):
        value = cells[name]["value"]
        if value is not None:
            parts.append(
                Markup('<rect x="0" y="{}" width="{}" height="{}" rx="2" class="{}"/>').format(
                    y, _percent(value), height, f"bar-{name.replace('_', '-')}"
                )
            )
    if cap is not None:
        parts.append(_line(_percent(cap), 0, _percent(cap), 24, "mark-cap"))
    if floor is not None:
        parts.append(_line(_percent(floor), 0, _percent(floor), 24, "mark-floor"))
    certified = cells["cert_ndcg"]
    if certified["low"] is not None:
        parts += _whisker(certified, 12, 0, 1, "whisker")
    return _svg(24, label, parts)


def simple_bar(value: float | None, label: str, mark: float | None = None, scale: float = 1.0) -> Markup:
    """A share of `scale`, optionally with a threshold mark."""
    parts = [Markup('<rect x="0" y="2" width="100%" height="8" rx="4" class="track"/>')]
    if value is not None:
        parts.append(
            Markup('<rect x="0" y="2" width="{}" height="8" rx="4" class="bar-plain"/>').format(_percent(value / scale))
        )
    if mark is not None:
        parts.append(_line(_percent(mark / scale), 0, _percent(mark / scale), 12, "mark-cap"))
    return _svg(12, label, parts)


def symmetric_limit(figures: Sequence[Figure]) -> float:
    """A round number that no interval exceeds, for a common axis around 0."""
    most = max((abs(f[k]) for f in figures for k in ("low", "high", "value") if f[k] is not None), default=0.0)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0):
        if most <= step:
            return step
    return float(f"{most * 1.1:.1g}")


def forest_row(figure: Figure, second: Figure | None, limit: float, label: str) -> Markup:
    """A point with its interval around 0 (filled), and optionally a second figure below it (hollow)."""
    rows = [figure] if second is None else [figure, second]
    height = 14 + 12 * (len(rows) - 1) + 2
    parts = [_line("50%", 0, "50%", height, "axis-zero")]
    for i, one in enumerate(rows):
        y = 8 + 12 * i
        if one["value"] is None:
            parts.append(Markup('<text x="50%" y="{}" class="tick" text-anchor="middle">–</text>').format(y + 4))
            continue
        side = _side(one)
        kind = f"{side} second" if i else side
        if one["low"] is not None:
            parts.append(
                _line(_percent(one["low"], -limit, limit), y, _percent(one["high"], -limit, limit), y, f"span {kind}")
            )
        parts.append(
            Markup('<circle cx="{}" cy="{}" r="4" class="dot {}"/>').format(
                _percent(one["value"], -limit, limit), y, kind
            )
        )
    return _svg(height, label, parts)


def _side(figure: Figure) -> str:
    """Whether the interval lies above 0, below it, or holds it."""
    if figure["low"] is not None and figure["low"] > 0:
        return "above"
    if figure["high"] is not None and figure["high"] < 0:
        return "below"
    return "level"


def axis(limit: float) -> Markup:
    """Tick labels of a forest plot."""
    parts = [
        Markup('<text x="{}" y="11" class="tick" text-anchor="{}">{}</text>').format(x, anchor, text)
        for x, anchor, text in (
            ("0%", "start", f"−{limit:g}"),
            ("50%", "middle", "0"),
            ("100%", "end", f"+{limit:g}"),
        )
    ]
    return _svg(14, f"axis from minus {limit:g} to plus {limit:g}", parts)


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 34, 96, 10, 34
POINT = 2.5
"""Radius of a dot."""


def line_chart(series: Mapping[str, Sequence[tuple[float, float | None]]], x_label: str, label: str) -> Markup:
    """Lines over a common x axis, y from 0 to 1, each labelled at its end.

    Args:
        series: name -> (x, y) points by ascending x; undefined y are left out.
        x_label: what x is.
        label: the chart in words.
    """
    xs = sorted({x for points in series.values() for x, _ in points})
    if not xs:
        return Markup("")
    low, high = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1

    lines = {}
    for i, (name, points) in enumerate(series.items()):
        drawn = [(*_at((x - low) / (high - low), y), POINT) for x, y in points if y is not None]
        if drawn:
            lines[i, name] = drawn
    ticks = [((x - low) / (high - low), x) for x in xs]
    return _plot([*_axes(ticks, x_label), *_lines(lines)], label)


def reliability_chart(series: Mapping[str, Sequence[tuple[float, float, int]]], label: str) -> Markup:
    """A reliability diagram: share right over mean confidence, both from 0 to 1, and the line of a calibrated one.

    Args:
        series: name -> (mean confidence, share right, hypotheses) per bin by ascending confidence; the area of a dot
            is the bin's share of its series' hypotheses.
        label: the chart in words.
    """
    lines = {}
    for i, (name, points) in enumerate(series.items(), 1):
        total = sum(n for _, _, n in points)
        drawn = [(*_at(x, y), round(max(1.2, 8 * math.sqrt(n / total)), 2)) for x, y, n in points if n]
        if drawn:
            lines[i, name] = drawn
    (x1, y1), (x2, y2) = _at(0.0, 0.0), _at(1.0, 1.0)
    parts = _axes([(x, x) for x in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)], "confidence")
    return _plot([*parts, _line(str(x1), y1, str(x2), y2, "ideal"), *_lines(lines)], label)


def _at(x: float, y: float) -> tuple[float, float]:
    """Place in the view box of a point given in shares of both axes."""
    return round(LEFT + x * (WIDTH - LEFT - RIGHT), 1), round(TOP + (1 - y) * (HEIGHT - TOP - BOTTOM), 1)


def _axes(ticks: Sequence[tuple[float, float]], x_label: str) -> list[Markup]:
    """Grid lines of y from 0 to 1, and ticks of x: (share of the axis, number)."""
    parts = []
    for y in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, py = _at(0, y)
        parts.append(_line(str(LEFT), py, str(WIDTH - RIGHT), py, "grid"))
        parts.append(
            Markup('<text x="{}" y="{}" class="tick" text-anchor="end">{:g}</text>').format(LEFT - 6, py + 4, y)
        )
    for share, x in ticks:
        px, _ = _at(share, 0)
        parts.append(
            Markup('<text x="{}" y="{}" class="tick" text-anchor="middle">{:g}</text>').format(px, HEIGHT - 20, x)
        )
    parts.append(
        Markup('<text x="{}" y="{}" class="tick" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label
        )
    )
    return parts


def _lines(lines: Mapping[tuple[int, str], Sequence[tuple[float, float, float]]]) -> list[Markup]:
    """(colour, name) -> (x, y, radius) of its dots: lines with dots, names at their ends."""
    parts, ends = [], []
    for (i, name), drawn in lines.items():
        path = " ".join(f"{x},{y}" for x, y, _ in drawn)
        parts.append(Markup('<polyline points="{}" class="line s{}"/>').format(path, i))
        parts += [Markup('<circle cx="{}" cy="{}" r="{}" class="point s{}"/>').format(x, y, r, i) for x, y, r in drawn]
        ends.append((drawn[-1][1], i, name))
    for y, (py, i, name) in zip(_spread([e[0] for e in sorted(ends)]), sorted(ends), strict=True):
        x = WIDTH - RIGHT
        parts.append(_line(str(x + 3), py, str(x + 12), y, f"line s{i} thin"))
        parts.append(Markup('<text x="{}" y="{}" class="end s{}">{}</text>').format(x + 15, y + 4, i, name))
    return parts


def _plot(parts: Sequence[Markup], label: str) -> Markup:
    return Markup('<svg class="chart plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _spread(ys: Sequence[float], gap: float = 14.0) -> list[float]:
    """Label positions at least `gap` apart, inside the plot, as near as possible to the given ascending ones."""
    placed: list[float] = []
    for y in ys:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, TOP + 4.0))
    over = placed[-1] - (HEIGHT - BOTTOM) if placed else 0.0
    if over > 0:
        last = HEIGHT - BOTTOM + 0.0
        for i in range(len(placed) - 1, -1, -1):
            placed[i] = min(placed[i], last)
            last = placed[i] - gap
    return placed
