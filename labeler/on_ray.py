"""The same job with its model in many processes, on one machine or a cluster: --engine ray.

Each worker is a Ray actor with a backend of its own. The driver reads, hands out pieces, and keeps the journal. That is
the only state: a job may change engines, and a worker that is lost costs the pieces that it had in hand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

from data.records import Failure
from labeler.backend import BackendError
from labeler.here import Compile, Compiled, Here, Job, unpriced
from labeler.job import Ask, Result
from labeler.journal import Journal
from labeler.spending import Meter, Spending

AHEAD = 2
"""Pieces that a worker has in hand: one to ask about, one to go on with."""

LIVES = 3
"""How often a piece is asked again whose worker died."""

MOST_AHEAD = 16

SMALL = 64
"""Rows of a piece for a backend that asks about each row by itself."""


@dataclass(frozen=True)
class _About:
    """What a worker says of its model."""

    digest: str
    rows: int
    calls: int
    priced: bool


class _Worker:
    """The actor: the model and its wrappers, without a journal."""

    def __init__(self, compile_task: Compile, job: Job) -> None:
        with ThreadPoolExecutor(1) as aside:  # an event loop runs here, and opening a model needs one of its own
            self._opened = aside.submit(Here, compile_task, job, lambda _: None)
        self._told = Meter()

    @cached_property
    def _ask(self) -> Compiled:
        return self._opened.result().asking(None)

    def about(self) -> _About:
        """Raises what went wrong with the model: an error while an actor is made would come as a traceback."""
        here = self._opened.result()
        return _About(here.digest, here.rows, here.calls, here.priced)

    async def ask(self, rows: Sequence[Any]) -> tuple[list[Result], Meter]:
        """The results, and what was asked since the last ones."""
        here, ask = self._opened.result(), self._ask
        found = list(await ask(rows))
        new = here.meter.since(self._told)
        self._told = copy(here.meter)
        return found, new


class OnRay:
    """Asks from `--workers` actors, each piece from the one that has least in hand.

    Raises BackendError where Ray or the model cannot be started.
    """

    leave = False

    def __init__(self, compile_task: Compile, job: Job) -> None:
        how = job.running
        self.meter = Meter()
        self._spending = Spending(self.meter, job.budget)
        self._ray: Any = import_module("ray")
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that it runs
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            self._ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
        own = replace(job, budget=None, running=replace(how, deadline=None))
        needs = {"num_cpus": how.worker_cpus, "num_gpus": how.worker_gpus}
        actor = self._ray.remote(max_restarts=-1, max_task_retries=LIVES, max_concurrency=MOST_AHEAD, **needs)(_Worker)
        self._workers = [actor.remote(compile_task, own) for _ in range(how.workers)]
        self._in_hand = dict.fromkeys(range(how.workers), 0)
        about = self._agreed()
        if job.budget is not None and not about.priced:
            raise unpriced(job.model)
        self.digest = about.digest
        self.rows = about.rows if about.rows > 1 else SMALL
        ahead = AHEAD if about.calls == 1 else min(MOST_AHEAD, max(AHEAD, about.calls // self.rows))
        self.calls = how.workers * ahead

    def asking(self, journal: Journal) -> Ask:  # noqa: ARG002
        return self._ask

    async def close(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker)

    async def _ask(self, rows: Sequence[Any]) -> Sequence[Result]:
        self._spending.check()
        place = min(self._in_hand, key=self._in_hand.__getitem__)
        self._in_hand[place] += 1
        try:
            found, new = await self._workers[place].ask.remote(rows)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayActorError:
            message = f"the worker died {LIVES + 1} times with this row, or one of the {len(rows)} with it"
            return [Failure(id=row.id, stage="ask", reason="worker_died", message=message) for row in rows]
        finally:
            self._in_hand[place] -= 1
        self.meter.add(new)
        return found

    def _agreed(self) -> _About:
        """What all workers say of their model; labels of different ones would stand under one name."""
        try:
            told = self._ray.get([worker.about.remote() for worker in self._workers])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise BackendError(f"--engine ray: a worker cannot start: {' '.join(str(error).split())[-300:]}") from None
        if len({about.digest for about in told}) > 1:
            raise BackendError("--engine ray: the workers have different models; give --dtype, or look at their files")
        return told[0]
