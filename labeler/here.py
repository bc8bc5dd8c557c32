"""A job as data, and how it is asked from this process: the model, its wrappers, the task compiled for them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from data.errors import RlaifError
from labeler.backend import Backend
from labeler.batches import Batched
from labeler.job import Ask, Result
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import Reach, open_backend, open_desk
from labeler.options import Options, Running
from labeler.spending import Meter, Spending
from labeler.wrappers import Cached, Checked, Metered
from prompts.task import load


class Compiled(Protocol):
    """What a Labeler, a Scorer and a Ranker have in common: they can be called, and name their job."""

    digest: str

    def __call__(self, rows: Sequence[Any], /) -> Awaitable[Sequence[Result]]: ...


Compile: TypeAlias = Callable[[Any, Backend, Options], Compiled]


@dataclass(frozen=True)
class Job:
    """What is asked of which model, and where the answers go."""

    source: str
    task: str
    """Of a task, or whatever `load` makes of it."""
    model: str
    out: Path
    cache: Path
    options: Options = field(default_factory=Options)
    running: Running = field(default_factory=Running)
    reach: Reach = field(default_factory=Reach)
    budget: float | None = None
    load: Callable[[str], Any] = load


class Asker(Protocol):
    """Whoever asks a job's questions: `rows` of them in a call, `calls` at a time; `leave` as for labeler.job.run."""

    digest: str
    meter: Meter
    rows: int
    calls: int
    leave: bool

    def asking(self, journal: Journal) -> Ask: ...
    async def close(self) -> None: ...


class Here:
    """Asks from this process. Raises RlaifError where the model cannot be opened or does not suit the job."""

    def __init__(self, compile_task: Compile, job: Job, tell: Callable[[str], None]) -> None:
        self.meter = Meter()
        self._compile, self._job = compile_task, job
        self._task = job.load(job.task)
        self._stacked = _stack(job, self.meter, tell)
        backend = self._stacked(None)
        self.digest = self._compiled(backend).digest
        self.rows, self.calls, self.leave = backend.rows, backend.calls, job.running.batch
        self.priced = backend.price is not None
        self.close = backend.close

    def asking(self, journal: Journal | None) -> Compiled:
        """With the journal as the store of single answers, where there is one."""
        return self._compiled(self._stacked(journal))

    def _compiled(self, backend: Backend) -> Compiled:
        options = self._job.options
        return self._compile(self._task, climb(backend, options.needs, options.votes), options)


def _stack(job: Job, meter: Meter, tell: Callable[[str], None]) -> Callable[[Journal | None], Backend]:
    """Opens the model; what it returns puts the wrappers around it, the journal as the last where there is one."""
    how = job.running
    if how.batch:
        desk = open_desk(job.model, job.reach)
        if job.budget is not None and desk.price is None:
            raise unpriced(job.model)
        return lambda journal: Batched(desk, meter, job.budget, journal, tell)
    end = None if how.deadline is None else time.monotonic() + how.deadline * 3600
    spending = Spending(meter, job.budget, end)
    reach = replace(job.reach, spending=spending)
    backend = open_backend(job.model, cache=job.cache, dtype=how.dtype, device=how.device, reach=reach)
    if job.budget is not None and backend.price is None:
        raise unpriced(job.model)
    metered = Checked(Metered(backend, meter), spending)
    return lambda journal: metered if journal is None else Cached(metered, journal)


def unpriced(model: str) -> RlaifError:
    """A budget cannot be kept where nobody knows what an answer costs."""
    return RlaifError(f"--budget: no price is known for {model}; give --price IN,OUT (USD per million tokens)")
