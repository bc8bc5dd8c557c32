"""A run's numbers as a picture: what falls, what rises, and where the held-out rows part from the others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PICTURE = "curves.png"
UNSEEN = frozenset({"update", "epoch", "lr", "seconds", "sampling_seconds", "tokens"})
"""Fields of a line that are no curve."""


MOST = 500
"""Points of a curve: more are not to be told apart."""


def draw(folder: Path, lines: Sequence[dict[str, Any]]) -> str | None:
    """Write curves.png: one panel a number, training and held-out rows in it. Says why where it could not."""
    if find_spec("altair") is None or find_spec("vl_convert") is None:  # with which altair saves pictures
        return "no curves.png: pip install 'rlaif-service[train]' brings what draws it"
    import altair as alt

    learned = [line for line in lines if "heldout" not in line]
    kept = learned[:: -(-len(learned) // MOST) or 1] + [line for line in lines if "heldout" in line]
    points = [point for line in kept for point in _points(line)]
    names = list(dict.fromkeys(point["name"] for point in points))
    panels = [_panel(alt, [point for point in points if point["name"] == name], name) for name in names]
    try:
        alt.concat(*panels, columns=2).save(folder / PICTURE, scale_factor=2)
    except Exception as error:  # a picture that cannot be drawn must not cost the model
        return f"no curves.png: {type(error).__name__}: {error}"
    return None


def _points(line: dict[str, Any]) -> list[dict[str, Any]]:
    rows, numbers = ("held out", line["heldout"]) if "heldout" in line else ("training", line)
    return [
        {"update": line["update"], "rows": rows, "name": name, "value": value}
        for name, value in numbers.items()
        if name not in UNSEEN and isinstance(value, float | int)
    ]


def _panel(alt: Any, points: Sequence[dict[str, Any]], name: str) -> Any:
    chart = alt.Chart(alt.Data(values=list(points)), title=name.replace("_", " "), width=360, height=180)
    return chart.mark_line(point=len(points) < 60).encode(
        x=alt.X("update:Q", title="update", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("rows:N", title=None, scale=alt.Scale(domain=["training", "held out"])),
    )
