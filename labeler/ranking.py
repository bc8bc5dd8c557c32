"""In which order stand several responses? All pairs are asked about in both orders; Bradley-Terry makes one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from data.errors import RlaifError
from data.records import Comparison, Failure, Ranking
from labeler.asking import digest, failure
from labeler.backend import Backend, Failed, Usage
from labeler.options import Options
from labeler.preference import Pair, judge
from prompts.render import Style, pair_question
from prompts.task import Task

PRIOR = 0.01
"""Of a win, added to each side of each pair: a response that wins every pair for sure has no finite strength else."""


class Ranker:
    """A task, a backend and options, compiled: ranks batches of comparisons. Raises TaskError when made."""

    def __init__(self, task: Task, backend: Backend, options: Options) -> None:
        if options.clamp is not None:
            raise RlaifError("--clamp is for labels; a ranking is made of the probabilities as they are")
        self.digest = digest("rank", task, backend, options)
        self._task, self._backend, self._options = task, backend, options
        self._question = pair_question(task, Style(options.shots, options.cot))

    async def __call__(self, rows: Sequence[Comparison]) -> list[Ranking | Failure]:
        """One ranking or failure for each row, in order."""
        asked = [(row, i, j) for row in rows for i, j in combinations(range(len(row.responses)), 2)]
        found = iter(await judge(self._backend, self._question, asked, self._options))
        return [self._ranking(row, [next(found) for _ in combinations(row.responses, 2)]) for row in rows]

    def _ranking(self, row: Comparison, pairs: Sequence[Pair | Failed]) -> Ranking | Failure:
        good = [pair for pair in pairs if isinstance(pair, Pair)]
        if len(good) < len(pairs):
            return failure(row.id, next(pair for pair in pairs if isinstance(pair, Failed)), "rank")
        count = len(row.responses)
        p = np.full((count, count), 0.5)
        for (i, j), pair in zip(combinations(range(count), 2), good, strict=True):
            p[i, j], p[j, i] = pair.p, 1 - pair.p
        strengths = bradley_terry(p)
        usage = sum((pair.usage for pair in good), Usage())
        return Ranking(
            id=row.id,
            order=tuple(int(at) for at in np.argsort(-strengths, kind="stable")),
            strengths=tuple(strengths.tolist()),
            p=tuple(tuple(line) for line in p.tolist()),
            mass=min(order.mass for pair in good for order in pair.orders),
            model=self._backend.name,
            task=self._task.name,
            digest=self.digest,
            content=row.content,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            usd=usage.usd,
            seconds=usage.seconds,
            method=good[0].method,
            truncated=any(pair.truncated for pair in good),
        )


def bradley_terry(p: NDArray[np.float64], *, rounds: int = 10_000, tolerance: float = 1e-12) -> NDArray[np.float64]:
    """Log-strengths with mean 0 that fit soft wins p (K, K), by minorisation-maximisation (Hunter 2004, equation 3)."""
    wins = p + PRIOR
    np.fill_diagonal(wins, 0)
    games = wins + wins.T
    worth = np.ones(len(p))
    for _ in range(rounds):
        new = wins.sum(1) / (games / (worth[:, None] + worth[None, :])).sum(1)
        new /= np.exp(np.log(new).mean())
        moved = float(np.abs(np.log(new / worth)).max())
        worth = new
        if moved < tolerance:
            break
    return np.log(worth)
