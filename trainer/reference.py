"""What does the reference say of each row? Asked once, kept in a file by model and row, and the same for every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from lm.branches import LogProbabilities, totals
from trainer import parallel
from trainer.dpo import Reference
from trainer.loop import Passes
from trainer.pairs import laid_out
from trainer.rows import Row, pieces


@torch.no_grad()
def ask(model: LogProbabilities, rows: Sequence[Row], passes: Passes) -> Tensor:
    """The model's log-probability of each answer of the rows, (A,)."""
    laid = laid_out(rows)
    with passes.precision():
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
    known = _read(place)
    missing = [row for row in {row.key: row for row in rows}.values() if row.key not in known]
    was = model.training
    model.eval()
    found: dict[int, list[float]] = {}
    order = {row.key: at for at, row in enumerate(missing)}
    for piece in parallel.mine(pieces(missing, passes.tokens, parallel.world())) if missing else []:
        values = ask(model, piece or missing[:1], passes).tolist()
        for row in piece:
            found[order[row.key]] = [values.pop(0) for _ in row.answers]
        done(len(piece) * parallel.world())
    parallel.settle(model)
    model.train(was)
    whole = parallel.joined(found)
    known |= {row.key: whole[at] for at, row in enumerate(missing)}
    if missing and parallel.first():
        _write(place, known)
    return lambda wanted: torch.tensor([value for row in wanted for value in known[row.key]])


def _read(place: Path) -> dict[str, list[float]]:
    if not place.is_file():
        return {}
    frame = pl.read_parquet(place)
    return dict(zip(frame["row"].to_list(), frame["values"].to_list(), strict=True))


def _write(place: Path, known: dict[str, list[float]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(f".{os.getpid()}")  # other runs may ask the same model now
    frame = pl.DataFrame(
        {"row": list(known), "values": list(known.values())}, schema={"row": pl.String, "values": pl.List(pl.Float32)}
    )
    frame.write_parquet(beside)
    beside.replace(place)
