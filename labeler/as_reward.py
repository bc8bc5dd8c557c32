"""A labeler or a reward server as a plain callable, (prompts, responses) -> rewards, for a trainer in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from data.errors import RlaifError
from data.records import Failure, Prompt, Response, Score
from labeler.backend import Backend
from labeler.client import PASSING, RewardClient, items
from labeler.here import unpriced
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import KINDS, Reach, open_backend
from labeler.options import Options
from labeler.score import Scorer
from labeler.spending import Spending
from labeler.wrappers import Cached, Checked, Metered
from prompts.task import Task, load

PATIENCE = 100.0
"""Seconds for one request with all of its tries; the trainer asks again where it has more."""

AWAY = frozenset({"connection", "stopped", "overloaded", "rate_limit", "server"})
"""Reasons that are the server's and not a response's: whoever is patient has the reward later."""

Rewards = Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]


def rewards(
    name: str,
    *,
    task: str,
    cache: Path,
    reach: Reach,
    token: str | None,
    patience: float,
    journal: Path,
    closing: ExitStack,
) -> Rewards | None:
    """Rewards in [-1, 1] from a server's address, or from a labeler asked for a score; None for a name that is neither.

    A labeler's answers are kept in `journal`; `closing` ends what was opened. A response without a reward has None;
    where none has one since nobody answers, ConnectionError is raised. Raises RlaifError.
    """
    if name.startswith(("http://", "https://")):
        return _served(name, token, patience)
    if name.partition(":")[0] not in KINDS:
        return None
    if not task:
        raise RlaifError(f"reward.of {name}: which question is it asked? Say reward.task (`rlaif tasks` lists them)")
    question = load(task)
    backend = open_backend(name, cache=cache, dtype="auto", device="auto", reach=reach)
    if reach.spending.usd is not None and backend.price is None:
        raise unpriced(name)
    labeler = _Labeler(backend, question, reach.spending, journal)
    closing.callback(labeler.close)
    return labeler


def _reached(found: list[float | None], reasons: Sequence[str | None]) -> list[float | None]:
    """The rewards. Raises ConnectionError where nobody was there for some of them (who asks again has the others from
    the journal, or from the server's), or where all of several failed in a way that passes.
    """
    failed = {each for each in reasons if each is not None}
    nothing = len(found) > 1 and all(each is None for each in found)
    if failed & AWAY or (nothing and failed <= PASSING):
        raise ConnectionError(f"{sum(each is None for each in found)} of {len(found)}: {', '.join(sorted(failed))}")
    return found


def _served(url: str, token: str | None, patience: float) -> Rewards:
    client = RewardClient(url, token, timeout=min(PATIENCE, max(1.0, patience)), again=False)

    place = urlsplit(url)

    def found(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        # A server that is not there is known at once, so that who waits is told.
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=10).close()
        plain = [each if isinstance(each, str) else [turn.model_dump() for turn in each] for each in prompts]
        try:
            answers = client.ask(items(plain, responses))
        finally:
            client.close()  # rounds are minutes apart, and in threads that end
        if answers and all(each.reason == "refused" for each in answers):
            raise RlaifError(f"reward.of {url}: {answers[0].message}")
        return _reached([each.reward for each in answers], [each.reason for each in answers])

    return found


class _Labeler:
    """A labeler with an event loop in a thread of its own: connections belong to it, and it can be closed while a
    question is under way. Answers are kept in a journal, so that none is paid for twice.
    """

    def __init__(self, backend: Backend, task: Task, spending: Spending, journal: Path) -> None:
        self._backend, self._task, self._spending, self._place = backend, task, spending, journal
        self._journal: Journal | None = None
        self._scorer: Scorer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        rows = [
            Response(id=str(at), prompt=prompt, response=response)
            for at, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        if not rows:
            return []
        answers = asyncio.run_coroutine_threadsafe(self._scored(rows), self._loop).result()
        reasons = [each.reason if isinstance(each, Failure) else None for each in answers]
        return _reached([None if isinstance(each, Failure) else each.reward for each in answers], reasons)

    async def _scored(self, rows: Sequence[Response]) -> list[Score | Failure]:
        if self._scorer is None:  # now that there is a folder to keep answers in
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self._place, "rewards")
            metered = Checked(Metered(self._backend, self._spending.meter), self._spending)
            options = Options()
            asked = climb(Cached(metered, self._journal), options.needs, options.votes)
            self._scorer = Scorer(self._task, asked, options)
        return await self._scorer(rows)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        asking = asyncio.all_tasks() - {asyncio.current_task()}
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._backend.close()
        if self._journal is not None:
            self._journal.close()
