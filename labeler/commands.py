"""From a command's options to a finished file: open the backend, stack its wrappers, run the job, write, report."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data import tables
from data.errors import RlaifError
from data.records import Answer, Comparison, Failure, ModelReward, Response
from labeler import projection
from labeler.here import Asker, Compile, Here, Job
from labeler.job import Outcome, Progress, Row, failures_path, journal_path, run, write
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import is_reward_model, need, open_backend
from labeler.options import Options, Running
from labeler.projection import Counted, Counting, Projection
from labeler.spending import Meter

T = TypeVar("T")


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
        if done.left_out:
            lines.append(
                f"{done.left_out} answers of an earlier run, to rows that were not read now, stay in"
                f" {journal_path(self.out)} and are not in {self.out.name}"
            )
        if done.other_jobs:
            lines.append(
                f"{done.other_jobs} other job(s) stay in {journal_path(self.out)}; {self.out.name} has this one's rows"
            )
        if done.failed:
            lines.append(f"{done.failed} rows failed; see {failures_path(self.out)}")
        return lines


def execute(
    compile_task: Compile,
    kind: type[Answer],
    rows: Iterable[Row | Failure],
    job: Job,
    total: int | None,
) -> Finished:
    """Run a job to its end. Raises RlaifError; KeyboardInterrupt after everything answered is safe in the journal."""
    tables.check_writable(job.out, job.source)
    if not is_reward_model(job.model):
        compile_task(job.load(job.task), _Unopened(), job.options)
    elif kind is not ModelReward or job.task or job.options != Options():
        raise RlaifError(f"--model {job.model}: a reward model scores single responses, without a task or its options")
    rows = _started(rows)
    how = job.running
    asker = _asker(compile_task, job)
    journal = Journal(journal_path(job.out), asker.digest, fresh=how.fresh)
    try:
        if journal.open_batches() and not how.batch:
            raise RlaifError(
                f"{len(journal.open_batches())} batches of this job are under way at the provider: --batch goes on with"
                " them, --fresh forgets them"
            )
        started = time.perf_counter()
        with _bar(total, how.limit, asker.meter) as bar:
            outcome = asyncio.run(_run(_limited(rows, how.limit), asker, journal, bar, how))
        seconds = time.perf_counter() - started
        write(journal, job.out, kind)
    except KeyboardInterrupt:
        _tell(f"\nstopped; what was answered is in {journal.path}: the same command goes on there")
        raise
    finally:
        journal.close()
    return Finished(outcome, asker.meter, seconds, job.out)


def _asker(compile_task: Compile, job: Job) -> Asker:
    if is_reward_model(job.model):
        need("train", "torch transformers", "reward models")
        from labeler.reward_model import Rewarder

        return Rewarder(job.model, dtype=job.running.dtype, device=job.running.device)
    if job.running.engine == "local":
        return Here(compile_task, job, _tell)
    need("ray", "ray", "--engine ray")
    from labeler.on_ray import OnRay

    return OnRay(compile_task, job)


def project(compile_task: Compile, rows: Iterable[Comparison | Response | Failure], job: Job) -> tuple[Projection, str]:
    """A dry run: what the job would ask, and the first prompt as the model would read it. Raises RlaifError."""
    how, counted = job.running, Counted()
    backend = open_backend(
        job.model, cache=job.cache, dtype=how.dtype, device=how.device, reach=job.reach, batch=how.batch
    )
    counting = Counting(backend, counted, grouped=not how.batch)
    ask = compile_task(job.load(job.task), climb(counting, job.options.needs, job.options.votes), job.options)

    async def work() -> Projection:
        try:
            return await projection.project(_limited(rows, how.limit), ask, counting, how.dry_run or 1)
        finally:
            await backend.close()

    found = asyncio.run(work())
    return found, counted.first.plain() if counted.first else ""


def _tell(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


async def _run(rows: Iterable[Row | Failure], asker: Asker, journal: Journal, bar: Progress, how: Running) -> Outcome:
    """The job, and whoever asks closed after it: connections end in the event loop that opened them."""
    ask, whole = asker.asking(journal), how.limit is None
    sizes = {"batch": asker.rows, "calls": asker.calls}
    try:
        return await run(rows, ask, journal, bar, **sizes, strict=how.strict, leave=asker.leave, whole=whole)
    finally:
        await asker.close()


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


def _started(rows: Iterable[T]) -> Iterator[T]:
    """The same rows with the first one read: a file that cannot be read is told before a model is loaded for it."""
    stream = iter(rows)
    return chain(list(islice(stream, 1)), stream)


def _limited(rows: Iterable[T], limit: int | None) -> Iterator[T]:
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
        if self._bar.disable:  # it is told of every row
            return
        self._failed += failed
        if resumed:
            self._bar.initial += resumed
        self._bar.update(done + resumed + failed)
        usd = self._meter.usage.usd
        self._bar.set_postfix_str(f"{self._failed} failed" + (f", ${usd:.2f}" if usd else ""))


def _bar(total: int | None, limit: int | None, meter: Meter) -> _Bar:
    known = total if limit is None else limit if total is None else min(total, limit)
    return _Bar(known, meter)
