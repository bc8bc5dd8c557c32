"""How does a file become labels, whatever happens meanwhile? The resumable job of `rlaif label`, `score` and `rank`.

Rows stream in; those that the journal has are skipped; the rest are asked in batches, a few at a time; each batch is in
the journal the moment it is answered. At the end the journal is written out in the order of the input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from data import tables
from data.errors import RlaifError
from data.records import (
    Answer,
    Comparison,
    Failure,
    Label,
    ModelReward,
    Prompted,
    Ranking,
    Response,
    Revisions,
    Sampled,
    Score,
)
from labeler.journal import Journal

Row: TypeAlias = Comparison | Response | Prompted
Result: TypeAlias = Answer | Failure
Ask: TypeAlias = Callable[[Sequence[Any]], Awaitable[Sequence[Result]]]

READ = 256
"""Rows read ahead and looked up in the journal at once."""


class Progress(Protocol):
    """Told what happens while the job runs."""

    def advance(self, *, done: int, resumed: int, failed: int) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a job ended with. `rows` distinct rows: labelled now, before, or failed; `repeats` were seen already, and
    `left_out` are answers of earlier runs to rows that were not in this run's input."""

    rows: int
    answered: int
    resumed: int
    failed: int
    repeats: int
    left_out: int
    other_jobs: int


class StrictError(RlaifError):
    """A bad row under --strict."""


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


def failures_path(out: Path) -> Path:
    return out.with_name(out.name + ".failures.jsonl")


async def run(
    rows: Iterable[Row | Failure],
    ask: Ask,
    journal: Journal,
    progress: Progress,
    *,
    batch: int,
    calls: int,
    strict: bool = False,
    leave: bool = False,
    whole: bool = True,
) -> Outcome:
    """Ask about every row that the journal does not have. Raises StrictError at the first bad row under `strict`.

    `leave` says that calls need not be waited for when the job is stopped: their answers can be fetched later. `whole`
    says that these are all rows of the job: answers to parts of others need not be kept.
    """
    tally = _Tally(progress)

    async def one(piece: Sequence[Row]) -> None:
        found = await ask(piece)
        journal.keep([_stored(row, result) for row, result in zip(piece, found, strict=True)])
        tally.add(found)

    async with _Window(calls, leave=leave) as window:
        waiting: list[Row] = []
        for piece in _numbered(rows):
            waiting += _sort_out(piece, journal, tally, strict=strict)
            while len(waiting) >= batch:
                await window.start(one, waiting[:batch])
                waiting = waiting[batch:]
        if waiting:
            await window.start(one, waiting)
    if not tally.failed and whole:
        journal.forget_answers()
    counts = tally.rows, tally.answered, tally.resumed, tally.failed, tally.repeats
    return Outcome(*counts, journal.left_out(), journal.other_jobs())


class _Window:
    """At most `size` calls at a time; one starts as soon as another ends.

    Whatever stops the job, an error or Ctrl-C, no new call starts and those that run are waited for: their answers were
    paid for, and the journal gets them. Under `leave` they are cancelled.
    """

    def __init__(self, size: int, *, leave: bool) -> None:
        self._leave = leave
        self._free = asyncio.Semaphore(size)
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def __aenter__(self) -> _Window:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._leave and (error is not None or self._error is not None):
            for task in self._running:
                task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if error is None and self._error is not None:
            raise self._error

    async def start(self, call: Callable[[Sequence[Row]], Awaitable[None]], piece: Sequence[Row]) -> None:
        await self._free.acquire()
        if self._error is not None:
            raise self._error
        task = asyncio.create_task(self._freeing(call, piece))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _freeing(self, call: Callable[[Sequence[Row]], Awaitable[None]], piece: Sequence[Row]) -> None:
        try:
            await call(piece)
        except Exception as error:  # told to the job by the next start, or at the end
            self._error = self._error or error
        finally:
            self._free.release()


def write(journal: Journal, out: Path, kind: type[Answer]) -> None:
    """Write what the journal has of this run's input: the answers to `out`, the failures beside it."""
    if kind is Revisions or kind is Sampled:
        tables.write(out, _several(journal.results(ok=True), kind))
    else:
        tables.write_json(out, journal.results(ok=True), SCHEMAS[kind]())
    if next(journal.results(ok=False), None) is not None:
        tables.write_json(failures_path(out), journal.results(ok=False), {})
    else:
        failures_path(out).unlink(missing_ok=True)


def _several(results: Iterable[str], kind: type[Revisions] | type[Sampled]) -> Iterator[dict[str, Any]]:
    """The rows that people read and train on, which an answer may hold several of."""
    for each in results:
        yield from kind.model_validate_json(each).rows()


@dataclass
class _Tally:
    progress: Progress
    rows: int = 0
    answered: int = 0
    resumed: int = 0
    failed: int = 0
    repeats: int = 0

    def add(self, results: Sequence[Result]) -> None:
        failed = sum(isinstance(result, Failure) for result in results)
        self.answered += len(results) - failed
        self.failed += failed
        self.progress.advance(done=len(results) - failed, resumed=0, failed=failed)

    def skip(self, count: int) -> None:
        self.resumed += count
        self.progress.advance(done=0, resumed=count, failed=0)


def _numbered(rows: Iterable[Row | Failure]) -> Iterator[list[tuple[int, Row | Failure]]]:
    stream = enumerate(rows)
    while piece := list(islice(stream, READ)):
        yield piece


def _sort_out(
    piece: Sequence[tuple[int, Row | Failure]], journal: Journal, tally: _Tally, *, strict: bool
) -> list[Row]:
    """What of these rows must be asked: not the bad ones, not repeats, not what the journal has."""
    admitted = journal.admit([(number, row.id, _content(row)) for number, row in piece])
    bad = [
        row if new and isinstance(row, Failure) else _clash(row, number)
        for (number, row), new in zip(piece, admitted, strict=True)
        if new is None or isinstance(row, Failure)
    ]
    if bad and strict:
        raise StrictError(f"{bad[0].message} (--strict)")
    journal.admit([(number, row.id, "") for number, row in enumerate(bad, start=piece[-1][0])])
    journal.keep([_stored(row, row) for row in bad])
    tally.add(bad)
    tally.repeats += admitted.count(False)
    new = [row for (_, row), fresh in zip(piece, admitted, strict=True) if fresh and not isinstance(row, Failure)]
    tally.rows += len(new) + len(bad)
    done = journal.finished({row.id: _content(row) for row in new})
    tally.skip(len(done))
    return [row for row in new if row.id not in done]


def _clash(row: Row | Failure, number: int) -> Failure:
    if isinstance(row, Failure):
        return row.model_copy(update={"id": f"{row.id} (row {number + 1})"})
    message = (
        f"row {number + 1}: id {row.id!r} already stands for another prompt or other responses; ids must be unique"
    )
    return Failure(id=f"{row.id} (row {number + 1})", stage="read", reason="duplicate_id", message=message)


def _content(row: Row | Failure) -> str:
    return "" if isinstance(row, Failure) else row.content


def _stored(row: Row | Failure, result: Result) -> tuple[str, str, bool, str]:
    return row.id, _content(row), not isinstance(result, Failure), result.model_dump_json()


def _label_schema() -> dict[str, Any]:
    import polars as pl

    order = pl.Struct({"p_first": pl.Float64, "mass": pl.Float64, "rationale": pl.String, "votes": pl.Int64})
    own = {
        "p": pl.Float64,
        "choice": pl.Int64,
        "orders": pl.List(order),
        "mass": pl.Float64,
        "same_position": pl.Boolean,
    }
    return {"id": pl.String, **own, **_cost_schema()}


def _score_schema() -> dict[str, Any]:
    import polars as pl

    own = {"score": pl.Float64, "reward": pl.Float64, "distribution": pl.List(pl.Float64), "mass": pl.Float64}
    return {"id": pl.String, **own, "rationale": pl.String, **_cost_schema()}


def _model_reward_schema() -> dict[str, Any]:
    import polars as pl

    own = {"reward": pl.Float64, "model": pl.String, "digest": pl.String, "content": pl.String}
    return {"id": pl.String, **own, "tokens_in": pl.Int64, "seconds": pl.Float64, "truncated": pl.Boolean}


def _ranking_schema() -> dict[str, Any]:
    import polars as pl

    own = {"order": pl.List(pl.Int64), "strengths": pl.List(pl.Float64), "p": pl.List(pl.List(pl.Float64))}
    return {"id": pl.String, **own, "mass": pl.Float64, **_cost_schema()}


def _cost_schema() -> dict[str, Any]:
    import polars as pl

    names = {"model": pl.String, "task": pl.String, "digest": pl.String}
    names["content"] = pl.String
    cost = {"tokens_in": pl.Int64, "tokens_out": pl.Int64, "usd": pl.Float64, "seconds": pl.Float64}
    return {**names, **cost, "method": pl.String, "truncated": pl.Boolean}


SCHEMAS: dict[type, Callable[[], dict[str, Any]]] = {
    Label: _label_schema,
    Score: _score_schema,
    ModelReward: _model_reward_schema,
    Ranking: _ranking_schema,
}
