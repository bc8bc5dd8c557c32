"""A labeler or a reward server as a plain callable, (prompts, responses) -> rewards, for a trainer in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from data.errors import RlaifError
from data.records import Failure, Prompt, Response
from labeler.client import PASSING, RewardClient, items
from labeler.here import unpriced
from labeler.ladder import climb
from labeler.opening import KINDS, Reach, open_backend
from labeler.options import Options
from labeler.score import Scorer
from labeler.wrappers import Checked, Metered
from prompts.task import load

PATIENCE = 100.0
"""Seconds for one request with all of its tries; the trainer asks again where it has more."""

Rewards = Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]


def rewards(
    name: str, *, task: str, cache: Path, reach: Reach, token: str | None, patience: float, closing: ExitStack
) -> Rewards | None:
    """Rewards in [-1, 1] from a server's address, or from a labeler asked for a score; None for a name that is neither.

    `closing` ends what was opened. A response without a reward has None; where none has one since nobody answers,
    ConnectionError is raised. Raises RlaifError.
    """
    if name.startswith(("http://", "https://")):
        return _served(name, token, patience)
    if name.partition(":")[0] not in KINDS:
        return None
    if not task:
        raise RlaifError(f"reward.of {name}: which question is it asked? Say reward.task (`rlaif tasks` lists them)")
    return _asked(name, task, cache, reach, closing)


def _reached(found: list[float | None], reasons: Sequence[str | None]) -> list[float | None]:
    """The rewards. Raises ConnectionError where there are none and all may be there a moment later."""
    if found and all(each is None for each in found) and set(reasons) <= PASSING | {"server"}:
        raise ConnectionError(f"{len(found)} responses, {', '.join(sorted({str(each) for each in reasons}))}")
    return found


def _served(url: str, token: str | None, patience: float) -> Rewards:
    client = RewardClient(url, token, timeout=min(PATIENCE, max(1.0, patience)))

    def found(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        plain = [each if isinstance(each, str) else [turn.model_dump() for turn in each] for each in prompts]
        answers = client.ask(items(plain, responses))
        return _reached([each.reward for each in answers], [each.reason for each in answers])

    return found


def _asked(name: str, task: str, cache: Path, reach: Reach, closing: ExitStack) -> Rewards:
    options = Options()
    backend = open_backend(name, cache=cache, dtype="auto", device="auto", reach=reach)
    if reach.spending.usd is not None and backend.price is None:
        raise unpriced(name)
    metered = Checked(Metered(backend, reach.spending.meter), reach.spending)
    scorer = Scorer(load(task), climb(metered, options.needs, options.votes), options)
    loop = closing.enter_context(asyncio.Runner())  # one loop for the run: connections belong to it
    closing.callback(lambda: loop.run(backend.close()))

    def found(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        rows = [
            Response(id=str(at), prompt=prompt, response=response)
            for at, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        answers = loop.run(scorer(rows)) if rows else []
        reasons = [each.reason if isinstance(each, Failure) else None for each in answers]
        return _reached([None if isinstance(each, Failure) else each.reward for each in answers], reasons)

    return found
