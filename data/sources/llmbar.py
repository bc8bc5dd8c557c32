"""Judges' verdicts as LLMBar stores them: `results`, a list of one object with a `winner` for each shown order.

The stored winner is mapped back to output_1 and output_2 already. A verdict that could not be read is null: that order
has mass 0, as where a model gives the labels no probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison, Label, Order
from data.sources import alpaca
from data.sources.shape import Fields

ORDERS = ("swap = False", "swap = True")


def matches(columns: frozenset[str]) -> bool:
    return {"output_1", "output_2", "results"} <= columns


def read(fields: Fields) -> Label:
    """One label, of two hard orders. Raises RowError."""
    row = alpaca.SHAPE.read(fields)
    assert isinstance(row, Comparison)
    results = fields["results"]
    first: Any = cast("Any", results)[0] if isinstance(results, list) and results else None
    said = cast("Mapping[str, Mapping[str, Any]]", first if isinstance(first, Mapping) else {})
    if not all(isinstance(said.get(order), Mapping) for order in ORDERS):
        raise RowError(f"results: expected a list of one object with {' and '.join(map(repr, ORDERS))}")
    orders = tuple(_order(said[order].get("winner"), str(at + 1)) for at, order in enumerate(ORDERS))
    p = 0.5 + (orders[0].p_first - orders[1].p_first) / 2
    same = None if any(order.mass == 0 for order in orders) else orders[0].p_first == orders[1].p_first
    return Label(
        id=row.id,
        p=p,
        choice=None if p == 0.5 else 0 if p > 0.5 else 1,
        orders=orders,
        mass=min(order.mass for order in orders),
        same_position=same,
        model="judge",
        task="",
        digest="",
        content=row.content,
        tokens_in=0,
        tokens_out=0,
        usd=None,
        seconds=0.0,
        method="votes",
    )


def _order(winner: object, first: str) -> Order:
    if winner is None:
        return Order(p_first=0.5, mass=0.0)
    if str(winner) not in {"1", "2"}:
        raise RowError(f"winner: expected '1', '2' or null, got {str(winner)[:40]!r}")
    return Order(p_first=float(str(winner) == first), mass=1.0)
