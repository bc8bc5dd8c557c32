"""From a command's options to a finished file: open the backend, stack its wrappers, run the job, write, report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tqdm import tqdm

from data import tables
from data.errors import RlaifError
from data.records import Failure, Label, Ranking, Score
from labeler import projection
from labeler.backend import Backend
from labeler.batches import Batched
from labeler.job import Outcome, Progress, Result, Row, failures_path, journal_path, run, write
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import Reach, open_backend, open_desk
from labeler.options import Options, Running
from labeler.projection import Counted, Counting, Projection
from labeler.wrappers import Budgeted, Cached, Ended, Meter, Metered
from prompts.task import Task, load


class Compiled(Protocol):
    """What a Labeler, a Scorer and a Ranker have in common: they can be called, and name their job."""

    digest: str

    def __call__(self, rows: Sequence[Any], /) -> Awaitable[Sequence[Result]]: ...


Compile: TypeAlias = Callable[[Task, Backend, Options], Compiled]


@dataclass(frozen=True)
class Job:
    """What is asked of which model, and where the answers go."""

    source: str
    task: str
    model: str
    out: Path
    cache: Path
    options: Options = field(default_factory=Options)
    running: Running = field(default_factory=Running)
    reach: Reach = field(default_factory=Reach)
    budget: float | None = None


@dataclass(frozen=True)
class Finished:
    """How a job ended: `pairs_per_second` counts what was asked now, without loading the model."""

    outcome: Outcome
    meter: Meter
    seconds: float
    out: Path

    @property
    def rate(self) -> float:
        return self.outcome.answered / self.seconds if self.seconds else 0.0

    def json(self) -> dict[str, Any]:
        usage = self.meter.usage
        return {
            **asdict(self.outcome),
            "out": str(self.out),
            "asked": self.meter.asked,
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
            "usd": usage.usd,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rate, 3),
        }

    def lines(self) -> list[str]:
        """What a person is told at the end, on standard error; the failures last."""
        done = self.outcome
        lines = [f"{done.answered + done.resumed} of {done.rows} rows answered in {self.out}"]
        details = [f"{done.answered} now ({self.rate:.2f} a second)", f"{done.resumed} before"]
        details += [f"{done.repeats} repeated rows counted once"] if done.repeats else []
        details += [f"${self.meter.usage.usd:.4f}"] if self.meter.usage.usd else []
        lines[0] += ": " + ", ".join(details)
        if done.other_jobs:
            lines.append(
                f"{done.other_jobs} other job(s) stay in {journal_path(self.out)}; {self.out.name} has this one's rows"
            )
        if done.failed:
            lines.append(f"{done.failed} rows failed; see {failures_path(self.out)}")
        return lines


def execute(
    compile_task: Compile,
    kind: type[Label] | type[Score] | type[Ranking],
    rows: Iterable[Row | Failure],
    job: Job,
    total: int | None,
) -> Finished:
    """Run a job to its end. Raises RlaifError; KeyboardInterrupt after everything answered is safe in the journal."""
    tables.check_writable(job.out, job.source)
    task = load(job.task)
    compile_task(task, _Unopened(), job.options)
    rows = _started(rows)
    how, meter = job.running, Meter()
    stacked = _stack(job, meter)

    def asked_of(asked: Backend) -> Compiled:
        return compile_task(task, climb(asked, job.options.needs, job.options.votes), job.options)

    journal = Journal(journal_path(job.out), asked_of(stacked(None)).digest, fresh=how.fresh)
    try:
        backend = stacked(journal)
        compiled = asked_of(backend)
        started = time.perf_counter()
        with _bar(total, how.limit, meter) as bar:
            outcome = asyncio.run(_run(_limited(rows, how.limit), compiled, journal, bar, backend, how))
        seconds = time.perf_counter() - started
        write(journal, job.out, kind)
    except KeyboardInterrupt:
        tqdm.write(
            f"\nstopped; what was answered is in {journal.path}: the same command goes on there", file=sys.stderr
        )
        raise
    finally:
        journal.close()
    return Finished(outcome, meter, seconds, job.out)


def project(compile_task: Compile, rows: Iterable[Row | Failure], job: Job) -> tuple[Projection, str]:
    """A dry run: what the job would ask, and the first prompt as the model would read it. Raises RlaifError."""
    how, counted = job.running, Counted()
    backend = open_backend(
        job.model, cache=job.cache, dtype=how.dtype, device=how.device, reach=job.reach, batch=how.batch
    )
    counting = Counting(backend, counted)
    ask = compile_task(load(job.task), climb(counting, job.options.needs, job.options.votes), job.options)

    async def work() -> Projection:
        try:
            return await projection.project(_limited(rows, how.limit), ask, counting, how.dry_run or 1)
        finally:
            await backend.close()

    found = asyncio.run(work())
    return found, counted.first.plain() if counted.first else ""


def _stack(job: Job, meter: Meter) -> Callable[[Journal | None], Backend]:
    """Opens the model; what it returns puts the wrappers around it, the journal as the last where there is one."""
    how = job.running
    if how.batch:
        desk = open_desk(job.model, job.reach)
        if job.budget is not None and desk.price is None:
            raise _unpriced(job)
        return lambda journal: Batched(desk, meter, job.budget, journal, _tell)
    backend = open_backend(job.model, cache=job.cache, dtype=how.dtype, device=how.device, reach=job.reach)
    metered: Backend = Metered(backend, meter)
    if job.budget is not None:
        if backend.price is None:
            raise _unpriced(job)
        metered = Budgeted(metered, meter, job.budget)
    if how.deadline is not None:
        metered = Ended(metered, time.monotonic() + how.deadline * 3600)
    return lambda journal: metered if journal is None else Cached(metered, journal)


def _unpriced(job: Job) -> RlaifError:
    return RlaifError(f"--budget: no price is known for {job.model}; give --price IN,OUT (USD per million tokens)")


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


async def _run(
    rows: Iterable[Row | Failure],
    compiled: Compiled,
    journal: Journal,
    bar: Progress,
    backend: Backend,
    how: Running,
) -> Outcome:
    """The job, and the backend closed after it: connections end in the event loop that opened them."""
    batch, calls = backend.rows, backend.calls
    try:
        return await run(rows, compiled, journal, bar, batch=batch, calls=calls, strict=how.strict, leave=how.batch)
    finally:
        await backend.close()


class _Unopened:
    """Stands for the backend while a task and its options are checked, before a model is loaded for nothing."""

    name = identity = ""
    rows = calls = samples = 1
    price, logprobs = None, False

    async def likelihoods(self, requests: object) -> Any:
        raise NotImplementedError

    async def texts(self, requests: object) -> Any:
        raise NotImplementedError

    def overflow(self, request: object) -> int:
        raise NotImplementedError

    async def count(self, request: object) -> int | None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def _started(rows: Iterable[Row | Failure]) -> Iterator[Row | Failure]:
    """The same rows with the first one read: a file that cannot be read is told before a model is loaded for it."""
    stream = iter(rows)
    return chain(list(islice(stream, 1)), stream)


def _limited(rows: Iterable[Row | Failure], limit: int | None) -> Iterator[Row | Failure]:
    return iter(rows) if limit is None else islice(rows, limit)


class _Bar:
    """A progress bar with rate, time left, failures and money; silent where standard error is no terminal."""

    def __init__(self, total: int | None, meter: Meter) -> None:
        self._meter, self._failed = meter, 0
        self._bar = tqdm(total=total, unit="row", disable=not sys.stderr.isatty(), smoothing=0.1, mininterval=0.5)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, *, done: int, resumed: int, failed: int) -> None:
        self._failed += failed
        if resumed and not self._bar.disable:
            self._bar.initial += resumed
        self._bar.update(done + resumed + failed)
        usd = self._meter.usage.usd
        self._bar.set_postfix_str(f"{self._failed} failed" + (f", ${usd:.2f}" if usd else ""))


def _bar(total: int | None, limit: int | None, meter: Meter) -> _Bar:
    known = total if limit is None else limit if total is None else min(total, limit)
    return _Bar(known, meter)
