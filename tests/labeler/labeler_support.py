"""What the labeler's tests share: rows, a scripted backend that remembers what it was asked, and short ways to ask."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.records import Comparison, Failure, Label, Response
from labeler.backend import Backend, Choose, Failed, Text, Usage, Write
from labeler.fake import FakeBackend, Rule, by
from labeler.job import Outcome, run
from labeler.journal import Journal
from labeler.options import Options
from labeler.preference import Labeler
from labeler.wrappers import Cached, Meter, Metered
from prompts.task import load

WORTH = {"good": 2.0, "fair": 1.0, "bad": 0.0}


def worth(text: str) -> float:
    return WORTH.get(text, 0.0)


def comparison(
    first: str = "good", second: str = "bad", *, identity: str = "a", prompt: Any = "What now?"
) -> Comparison:
    return Comparison(id=identity, prompt=prompt, responses=(first, second))


def comparisons(count: int) -> list[Comparison]:
    return [comparison(f"one {n}", f"two {n}", identity=f"row {n}", prompt=f"Question {n}?") for n in range(count)]


def response(text: str = "good", *, identity: str = "a") -> Response:
    return Response(id=identity, prompt="What now?", response=text)


def always_says(*probabilities: float) -> Rule:
    """The same distribution over the options, whatever is asked."""
    values = [math.log(each) if each else -math.inf for each in probabilities]
    return lambda request: values


@dataclass(frozen=True)
class Scripted(FakeBackend):
    """A fake whose rationales a function tells, and which remembers what it was asked."""

    name: str = "fake:scripted"
    rule: Rule = field(default_factory=lambda: by(worth))
    tell: Callable[[Write], str | Failed] = lambda request: " because"
    asked: list[Choose | Write] = field(default_factory=list[Choose | Write])

    async def likelihoods(self, requests: Sequence[Choose]) -> Any:
        self.asked.extend(requests)
        return await super().likelihoods(requests)

    async def texts(self, requests: Sequence[Write]) -> list[Text | Failed]:
        self.asked.extend(requests)
        told = [self.tell(each) for each in requests]
        return [each if isinstance(each, Failed) else Text(each, Usage(10, 5, 0.0)) for each in told]

    @property
    def chosen(self) -> list[Choose]:
        return [each for each in self.asked if isinstance(each, Choose)]

    @property
    def written(self) -> list[Write]:
        return [each for each in self.asked if isinstance(each, Write)]


def as_backend(how: Rule | Backend) -> Backend:
    return FakeBackend("fake:test", how) if callable(how) else how


def ask(how: Rule | Backend, rows: Sequence[Comparison], task: str = "helpfulness", **options: Any) -> Any:
    """What a labeler made of these parts says of the rows."""
    labeler = Labeler(load(task), as_backend(how), Options(**options))
    return asyncio.run(labeler(rows))


def label(how: Rule | Backend, row: Comparison | None = None, task: str = "helpfulness", **options: Any) -> Label:
    """The label of one row, which must be one."""
    (found,) = ask(how, [row or comparison()], task, **options)
    assert isinstance(found, Label), found
    return found


def fails(how: Rule | Backend, row: Comparison | None = None, task: str = "helpfulness", **options: Any) -> Failure:
    """The failure of one row, which must be one."""
    (found,) = ask(how, [row or comparison()], task, **options)
    assert isinstance(found, Failure), found
    return found


class Silent:
    """No progress bar."""

    def advance(self, *, done: int, resumed: int, failed: int) -> None: ...


@dataclass(frozen=True)
class Worked:
    """What a run of a job did: `asked` counts the requests that reached the backend."""

    outcome: Outcome
    asked: int
    good: list[dict[str, Any]]
    bad: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [record["id"] for record in self.good]


def work(
    rows: Iterable[Comparison | Failure],
    path: Path,
    how: Rule | Backend,
    *,
    task: str = "helpfulness",
    fresh: bool = False,
    strict: bool = False,
    batch: int = 4,
    calls: int = 1,
    **options: Any,
) -> Worked:
    """Run a labeling job on a journal, from opening to closing it."""
    meter = Meter()
    metered = Metered(as_backend(how), meter)
    digest = Labeler(load(task), metered, Options(**options)).digest
    journal = Journal(path, digest, fresh=fresh)
    try:
        labeler = Labeler(load(task), Cached(metered, journal), Options(**options))
        outcome = asyncio.run(run(rows, labeler, journal, Silent(), batch=batch, calls=calls, strict=strict))
        return Worked(
            outcome,
            meter.asked,
            list(map(json.loads, journal.results(ok=True))),
            list(map(json.loads, journal.results(ok=False))),
        )
    finally:
        journal.close()
