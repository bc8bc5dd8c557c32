"""Which of two responses does the labeler prefer, how surely? Distilled RLAIF's soft labels (Lee et al., 2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.records import Comparison, Failure, Label, Method, Order, Strength
from labeler.asking import Asked, ask, digest, failure, fit
from labeler.backend import Backend, Failed, Usage, together
from labeler.options import Options
from prompts import answers, constitution
from prompts.constitution import by
from prompts.render import PairQuestion, Prompt, Style, pair_question
from prompts.task import Task


@dataclass(frozen=True)
class Pair:
    """Two of a row's responses, asked about in one or both orders."""

    p: float
    orders: tuple[Order, ...]
    usage: Usage
    method: Method
    truncated: bool


class Labeler:
    """A task, a backend and options, compiled: labels batches of comparisons. Raises TaskError when made."""

    def __init__(self, task: Task, backend: Backend, options: Options) -> None:
        self.digest = digest("label", task, backend, options)
        self._task, self._backend, self._options = task, backend, options
        style = Style(options.shots, options.cot)
        self._law = None if options.constitution is None else constitution.load(options.constitution)
        self._questions = {task.name: pair_question(task, style)}
        if self._law is not None:
            self._questions = {each.name: pair_question(by(task, each), style) for each in self._law.principles}

    async def __call__(self, rows: Sequence[Comparison]) -> list[Label | Failure]:
        """One label or failure for each row, in order."""
        asked: dict[str, list[Comparison]] = {}
        for row in rows:
            if len(row.responses) == 2:
                asked.setdefault(self._named(row), []).append(row)

        async def judged(name: str) -> list[Pair | Failed]:
            pairs = [(row, 0, 1) for row in asked[name]]
            return await judge(self._backend, self._questions[name], pairs, self._options)

        found = await together(judged, asked)
        pairs = {
            id(row): pair
            for some, each in zip(asked.values(), found, strict=True)
            for row, pair in zip(some, each, strict=True)
        }
        return [self._label(row, pairs[id(row)]) if len(row.responses) == 2 else _not_two(row) for row in rows]

    def _named(self, row: Comparison) -> str:
        """The task, or the principle that is drawn for a row."""
        return self._task.name if self._law is None else self._law.drawn(self._options.seed, row.id).name

    def _label(self, row: Comparison, pair: Pair | Failed) -> Label | Failure:
        if isinstance(pair, Failed):
            return failure(row.id, pair, "label")
        p = answers.clamp(pair.p, *self._options.clamp) if self._options.clamp and self._options.cot else pair.p
        return Label(
            id=row.id,
            p=p,
            choice=None if p == 0.5 else int(p < 0.5),  # pyright: ignore[reportArgumentType]
            orders=pair.orders,
            mass=min(order.mass for order in pair.orders),
            same_position=same_position(pair.orders),
            model=self._backend.name,
            task=self._task.name if self._law is None else f"{self._task.name}:{self._named(row)}",
            digest=self.digest,
            content=row.content,
            tokens_in=pair.usage.tokens_in,
            tokens_out=pair.usage.tokens_out,
            usd=pair.usage.usd,
            seconds=pair.usage.seconds,
            method=pair.method,
            truncated=pair.truncated,
        )


async def judge(
    backend: Backend, question: PairQuestion, pairs: Sequence[tuple[Comparison, int, int]], options: Options
) -> list[Pair | Failed]:
    """Ask about responses i and j of each row, in both orders next to each other, so that their shared text is too."""
    fitted = [
        fit(backend, _prompts(question, row, i, j, options), options, question.cut, question.ending)
        for row, i, j in pairs
    ]
    prompts = [prompt for each in fitted if not isinstance(each, Failed) for prompt in each.prompts]
    found = iter(await ask(backend, prompts, answers.PAIR, options, question.ending))
    return [
        each
        if isinstance(each, Failed)
        else _pair([next(found) for _ in each.prompts], question, truncated=each.truncated)
        for each in fitted
    ]


def _prompts(question: PairQuestion, row: Comparison, i: int, j: int, options: Options) -> list[Prompt]:
    shown = [(i, j)] if options.one_order else [(i, j), (j, i)]
    return [question.ask(row.prompt, row.responses[first], row.responses[second]) for first, second in shown]


def _pair(found: Sequence[Asked | Failed], question: PairQuestion, *, truncated: bool) -> Pair | Failed:
    orders: list[Order] = []
    usage, method = Usage(), "logprobs"
    for answer in found:
        if isinstance(answer, Failed):
            return answer
        order = _order(answer, question)
        if isinstance(order, Failed):
            return order
        orders.append(order)
        usage, method = usage + answer.usage, answer.method
    return Pair(average(orders), tuple(orders), usage, method, truncated)


def _order(answer: Asked, question: PairQuestion) -> Order | Failed:
    """The mean over rationales of P("1"), turned round where the task asks for the worse response."""
    try:
        firsts = [answers.first_probability(values) for values in answer.values]
    except ValueError as error:
        return Failed("no_mass", str(error))
    one = math.fsum(firsts) / len(firsts)
    return Order(
        p_first=1 - one if question.polarity == "worse" else one,
        mass=answer.mass,
        rationale=answer.rationale,
        votes=answer.votes,
    )


def average(orders: Sequence[Order]) -> float:
    """P(response 0 is better): the second order is turned back, then probabilities are averaged (section 2.1.1).

    Written around .5 so that orders which contradict each other exactly give exactly .5.
    """
    if len(orders) == 1:
        return orders[0].p_first
    return 0.5 + (orders[0].p_first - orders[1].p_first) / 2


def same_position(orders: Sequence[Order]) -> bool | None:
    """Whether both orders prefer the same position; None where one of them is an exact tie, or there is only one."""
    if len(orders) != 2 or any(order.p_first == 0.5 for order in orders):
        return None
    return (orders[0].p_first > 0.5) == (orders[1].p_first > 0.5)


def strength(p: float) -> Strength:
    """How strongly a soft label prefers, in the four grades of Llama 2 (section 3.1)."""
    sure = max(p, 1 - p)
    if sure >= 0.95:
        return "significantly"
    if sure >= 0.8:
        return "better"
    return "slightly" if sure >= 0.65 else "negligibly"


def _not_two(row: Comparison) -> Failure:
    message = f"has {len(row.responses)} responses; a label needs exactly 2 (`rlaif rank` orders more)"
    return Failure(id=row.id, stage="label", reason="not_two", message=message)
