"""From numbers to Vega-Lite specs, made with Altair. Pure functions: nothing is drawn here.

Charts are narrow on purpose: scaled to a phone their words can still be read, and on a desk two stand side by side.
Colours come from `COLORS` alone, since the page repaints each of them for dark screens; shades are opacities.
`numbers` is a d3 format: ".0%" for shares, ".2f", ",.0f".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from data.errors import RlaifError
from evaluator.intervals import Interval

Spec = dict[str, Any]

INK, MUTED, RULE = "#23211e", "#6f6a62", "#dcd8cf"
SERIES = ("#1f5f8b", "#b3541e", "#3d7a4f", "#7d5291", "#9a7412", "#56606a")
COLORS: Mapping[str, str] = {
    INK: "#e9e6df",
    MUTED: "#a29d93",
    RULE: "#3d3a35",
    **dict(zip(SERIES, ("#7db7e0", "#ea9463", "#82c297", "#c39fd6", "#dcb657", "#aab4bd"), strict=True)),
}
"""Each colour on paper and on a dark screen."""

WIDTH, HEIGHT = 420, 250
SHARES = ".0%"
_STEP = 30
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])


def reliability(bins: Sequence[tuple[float, Interval]]) -> Spec:
    """Accuracy against confidence; on the dashed line a probability means what it says. A dot's area is its count."""
    alt = _altair()
    rows = [{"confidence": _finite(confidence), **_row(accuracy)} for confidence, accuracy in bins]
    least = _least([confidence for confidence, _ in bins])
    x = alt.X("confidence:Q", title="confidence", axis=alt.Axis(format=SHARES), scale=alt.Scale(domain=[least, 1]))
    ideal = alt.Chart(_data([{"confidence": at, "value": at} for at in (least, 1.0)]))
    seen = alt.Chart(_data(rows)).encode(x=x)
    size = alt.Size("n:Q", scale=alt.Scale(range=[30, 360], zero=True), legend=None)
    layers = [
        ideal.mark_line(color=MUTED, strokeDash=[4, 4], strokeWidth=1).encode(x=x, y="value:Q"),
        seen.mark_rule(color=SERIES[0]).encode(y="low:Q", y2="high:Q"),
        seen.mark_circle(color=SERIES[0], opacity=1).encode(y=_y("value", "accuracy", SHARES, [0, 1]), size=size),
    ]
    return _spec(alt.layer(*layers), HEIGHT)


def intervals(
    values: Mapping[str, Interval], label: str, *, reference: float | None = None, numbers: str = SHARES
) -> Spec:
    """A dot with a whisker for each name; `reference` is what they are held against, such as a coin's 50 %."""
    alt = _altair()
    rows = [{"name": name, **_row(each)} for name, each in values.items()]
    base = alt.Chart(_data(rows)).encode(y=_names(alt))
    x = alt.X("value:Q", title=label, axis=alt.Axis(format=numbers), scale=alt.Scale(zero=False, nice=True))
    layers: list[Any] = []
    if reference is not None:
        line = alt.Chart(_data([{"value": reference}]))
        layers.append(line.mark_rule(color=MUTED, strokeDash=[4, 4]).encode(x="value:Q"))
    layers += [
        base.mark_rule(color=SERIES[0], strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_circle(color=SERIES[0], opacity=1, size=60).encode(x=x),
        base.mark_text(color=INK, dy=-10).encode(x="value:Q", text=alt.Text("value:Q", format=numbers)),
    ]
    return _spec(alt.layer(*layers), alt.Step(_STEP))


def matrix(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    x: str = "",
    y: str = "",
    middle: float | None = None,
    numbers: str = SHARES,
) -> Spec:
    """A heat map with its numbers: a row for each of `y`, a column for each of `x`.

    With a `middle`, what lies below it has another colour.
    """
    alt = _altair()
    cells = [
        (row, column, value, abs(value - (middle or 0.0)))
        for row, line in zip(names, values, strict=True)
        for column, value in zip(names, line, strict=True)
        if isfinite(value)
    ]
    most = max((far for *_, far in cells), default=0.0) or 1.0
    rows = [{"row": row, "column": column, "value": value, "far": far} for row, column, value, far in cells]
    flat = max(map(len, names), default=0) <= 12 and len(names) <= 4
    axis = alt.Axis(orient="top", labelAngle=0 if flat else -40, domain=False, ticks=False, labelLimit=110)
    plain = alt.Axis(domain=False, ticks=False, labelLimit=110)
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("column:N", title=x or None, sort=None, axis=axis, scale=alt.Scale(domain=list(names))),
        y=alt.Y("row:N", title=y or None, sort=None, axis=plain, scale=alt.Scale(domain=list(names))),
    )
    # at most half opaque, so that ink can be read on it by day and by night
    shade = alt.Opacity("far:Q", scale=alt.Scale(domain=[0, most], range=[0.04, 0.5]), legend=None)
    below = alt.condition(f"datum.value < {float(middle or 0.0)}", alt.value(SERIES[1]), alt.value(SERIES[0]))
    layers = [
        base.mark_rect(stroke=None).encode(opacity=shade, color=below if middle is not None else alt.value(SERIES[0])),
        base.mark_text(color=INK).encode(text=alt.Text("value:Q", format=numbers)),
    ]
    return _spec(alt.layer(*layers), alt.Step(34 if len(names) <= 8 else 24))


def histogram(values: Sequence[float], label: str, *, bins: int = 20, numbers: str = SHARES) -> Spec:
    """How many values lie where. Bins of shares go from 0 to 1, of confidences from .5."""
    alt = _altair()
    known = np.array([each for each in values if isfinite(each)], dtype=np.float64)
    share = numbers.endswith("%") and bool(((known >= 0) & (known <= 1)).all())
    counts, edges = np.histogram(known, bins=bins, range=(_least(known), 1.0) if share else None)
    rows = [
        {"low": float(low), "high": float(high), "count": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    ends = [float(edges[0]), float(edges[-1])]
    bars = alt.Chart(_data(rows)).mark_bar(color=SERIES[0])
    x = alt.X(
        "low:Q", bin="binned", title=label, axis=alt.Axis(format=numbers), scale=alt.Scale(domain=ends, nice=False)
    )
    return _spec(bars.encode(x=x, x2="high:Q", y=_y("count", "count", ",.0f")), HEIGHT)


def lines(
    series: Mapping[str, Sequence[tuple[float, float | Interval]]], x: str, y: str, *, numbers: str = ".2f"
) -> Spec:
    """One line a series, with a band where its values are intervals: gold reward against proxy reward."""
    alt = _altair()
    rows = [
        {"series": name, "x": _finite(at), **_row(value if isinstance(value, Interval) else _exactly(value))}
        for name, points in series.items()
        for at, value in points
    ]
    names = list(series)
    colors = [SERIES[index % len(SERIES)] for index in range(len(names))]
    dashes = [_DASHES[index % len(_DASHES)] for index in range(len(names))]
    legend = None
    if len(names) > 1:
        line = {
            "symbolType": "stroke",
            "symbolOpacity": 1,
            "symbolStrokeWidth": 2,
            "symbolSize": 300,
            "symbolFillColor": "transparent",
        }
        legend = alt.Legend(orient="top", title=None, labelLimit=180, columns=2, **line)
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("x:Q", title=x, axis=alt.Axis(), scale=alt.Scale(zero=False, nice=False)),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=colors), legend=legend),
    )
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=dashes), legend=legend)
    layers = [
        base.mark_area(opacity=0.16).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=_y("value", y, numbers), strokeDash=dash),
    ]
    return _spec(alt.layer(*layers), HEIGHT)


def bars(values: Mapping[str, float | Interval], label: str, *, numbers: str = ",.0f") -> Spec:
    """A bar for each name, its number at the end."""
    alt = _altair()
    rows = [
        {"name": name, **_row(each if isinstance(each, Interval) else _exactly(each))} for name, each in values.items()
    ]
    base = alt.Chart(_data(rows)).encode(y=_names(alt))
    x = alt.X("value:Q", title=label, axis=alt.Axis(format=numbers))
    layers = [
        base.mark_bar(color=SERIES[0], height=14).encode(x=x),
        base.mark_rule(color=INK).encode(x="low:Q", x2="high:Q"),
        base.mark_text(color=INK, align="left", dx=5).encode(x="end:Q", text=alt.Text("value:Q", format=numbers)),
    ]
    return _spec(alt.layer(*layers), alt.Step(_STEP))


def _altair() -> Any:
    """Altair, for whoever asked for a report. Untyped: its own types are known in parts only."""
    try:
        import altair
    except ImportError:
        raise RlaifError("a report needs Altair to make its charts: pip install 'rlaif-service[report]'") from None
    return altair


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    return _altair().Data(values=list(rows))


def _names(alt: Any) -> Any:
    return alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=240, domain=False, ticks=False, grid=False))


def _y(field: str, title: str, numbers: str, domain: Sequence[float] | None = None) -> Any:
    alt = _altair()
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=field == "count")
    return alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format=numbers, tickCount=5), scale=scale)


def _row(interval: Interval) -> dict[str, float | None]:
    """An interval's numbers, with null for those that are unknown: Vega leaves out what is null, and fails on NaN."""
    low, high = _finite(interval.low), _finite(interval.high)
    value = _finite(interval.value)
    return {"value": value, "low": low, "high": high, "n": interval.n, "end": value if high is None else high}


def _least(shares: Iterable[float]) -> float:
    """Where an axis of shares begins: a confidence is never below .5."""
    return 0.5 if all(share >= 0.5 for share in shares) else 0.0


def _exactly(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"), 1)


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def _spec(chart: Any, height: Any) -> Spec:
    alt = _altair()
    label = {
        "labelColor": INK,
        "labelFontSize": 12,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    line = {
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": RULE,
        "gridOpacity": 0.7,
        "labelPadding": 6,
        "labelFlush": False,
        "tickCount": 6,
    }
    sized = chart.properties(width=WIDTH, height=height).configure(
        font="Helvetica, Arial, sans-serif",  # Liberation Sans, with which charts are measured, has the same widths
        aria=False,  # the page names the picture; here names of axes would become code
        background="transparent",
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        axis=alt.AxisConfig(**label, **line),
        legend=alt.LegendConfig(**label),
        text=alt.MarkConfig(fontSize=12),
        view=alt.ViewConfig(stroke=None),
    )
    return sized.to_dict()
