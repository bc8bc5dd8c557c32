"""How good is one response, from 1 to 10? Direct RLAIF's reward: the mean of the ten scores (section 2.2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from data.errors import RlaifError
from data.records import Failure, Response, Score
from labeler.asking import Asked, ask, digest, failure, fit
from labeler.backend import Backend, Failed
from labeler.options import Options
from prompts import answers
from prompts.render import score_question
from prompts.task import Task


class Scorer:
    """A task, a backend and options, compiled: scores batches of responses. Raises TaskError when made."""

    def __init__(self, task: Task, backend: Backend, options: Options) -> None:
        if options.cot or options.shots or options.one_order:
            raise RlaifError("--cot, --shots and --one-order are for comparisons; a score is asked for directly")
        self.digest = digest("score", task, backend, options)
        self._task, self._backend, self._options = task, backend, options
        self._question = score_question(task)

    async def __call__(self, rows: Sequence[Response]) -> list[Score | Failure]:
        """One score or failure for each row, in order."""
        question = self._question
        fitted = [
            fit(self._backend, [question.ask(row.prompt, row.response)], self._options, question.cut, question.ending)
            for row in rows
        ]
        prompts = [each.prompts[0] for each in fitted if not isinstance(each, Failed)]
        found = iter(await ask(self._backend, prompts, answers.SCALE, self._options, question.ending))
        return [
            failure(row.id, each, "score")
            if isinstance(each, Failed)
            else self._score(row, next(found), truncated=each.truncated)
            for row, each in zip(rows, fitted, strict=True)
        ]

    def _score(self, row: Response, answer: Asked | Failed, *, truncated: bool) -> Score | Failure:
        if isinstance(answer, Failed):
            return failure(row.id, answer, "score")
        try:
            distribution = answers.distribution(answer.values[0])
        except ValueError as error:
            return failure(row.id, Failed("no_mass", str(error)), "score")
        score = answers.expected_score(distribution)
        return Score(
            id=row.id,
            score=score,
            reward=answers.reward(score),
            distribution=distribution,
            mass=answer.mass,
            model=self._backend.name,
            task=self._task.name,
            digest=self.digest,
            content=row.content,
            tokens_in=answer.usage.tokens_in,
            tokens_out=answer.usage.tokens_out,
            usd=answer.usage.usd,
            seconds=answer.usage.seconds,
            method=answer.method,
            truncated=truncated,
        )
