"""What does the reference say of each row? Asked once, kept in a file by model and row, and the same for every run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from data.tables import batched
from lm.branches import LogProbabilities, totals
from trainer import parallel
from trainer.dpo import Reference
from trainer.loop import Passes
from trainer.pairs import laid_out
from trainer.rows import Row, pieces

SLICE, EVERY = 4096, 60.0
"""Rows that are shared out at a time, and seconds after which what is known is written."""


@torch.no_grad()
def ask(model: LogProbabilities, rows: Sequence[Row], passes: Passes) -> Tensor:
    """The model's log-probability of each answer of the rows, (A,)."""
    laid = laid_out(rows)
    with passes.room(rows), passes.precision():
        return totals(model(laid), laid.lengths)


def online(model: LogProbabilities, passes: Passes) -> Reference:
    """A reference that is asked at each update."""
    model.eval()
    return lambda rows: ask(model, rows, passes)


def cached(
    model: LogProbabilities, rows: Sequence[Row], passes: Passes, place: Path, done: Callable[[int], object]
) -> Reference:
    """A reference whose answers are known beforehand: those in the file at `place`; others are asked now and added.

    `done` is called with a number of rows, after each pass.
    """
    known = parallel.from_first(lambda: _read(place))
    missing = [row for row in {row.key: row for row in rows}.values() if row.key not in known]
    was = model.training
    model.eval()
    written = time.monotonic()
    for some in batched(missing, SLICE):
        found: dict[str, list[float]] = {}
        for piece in parallel.mine(pieces(some, passes.tokens, parallel.world())):
            values = ask(model, piece or some[:1], passes).tolist()
            for row in piece:
                found[row.key] = [values.pop(0) for _ in row.answers]
            done(len(piece) * parallel.world())
        known |= parallel.joined(found)
        if parallel.first() and (time.monotonic() - written > EVERY or some[-1] is missing[-1]):
            _write(place, known)
            written = time.monotonic()
    parallel.settle(model)
    model.train(was)
    return lambda wanted: torch.tensor([value for row in wanted for value in known[row.key]])


def _read(place: Path) -> dict[str, list[float]]:
    if not place.is_file():
        return {}
    frame = pl.read_parquet(place)
    return dict(zip(frame["row"].to_list(), frame["values"].to_list(), strict=True))


def _write(place: Path, known: dict[str, list[float]]) -> None:
    """Add to the file, in which another run may have written meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    whole = {**_read(place), **known}
    beside = place.with_suffix(f".{os.getpid()}")
    frame = pl.DataFrame(
        {"row": list(whole), "values": list(whole.values())}, schema={"row": pl.String, "values": pl.List(pl.Float32)}
    )
    frame.write_parquet(beside)
    beside.replace(place)
