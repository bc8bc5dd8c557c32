"""How does a model rate that tells no log-probabilities? It votes, or states a probability: the next rungs of a ladder.

Both ask through `texts`, so they stand around any backend; labels tell by `method` how they were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.records import hashed
from labeler.backend import Backend, BackendError, Choose, Failed, Likelihoods, Text, Usage, Write, only
from labeler.options import Rung
from labeler.wrappers import Around
from prompts import answers

WORDS = 16
"""Tokens of a vote: enough for "Preferred Response=2", too few for a text."""

NO_VOTE = frozenset({"refusal", "unparsable", "cut_off"})
"""Failures of a single vote that leave the others as they are."""

NUMBERS = 256
"""Tokens of a JSON object with a number for each option."""


@dataclass(frozen=True)
class Voting(Around):
    """Samples `votes` answers to each question. P(option) is its share, smoothed (prompts.answers.smoothed).

    A vote that names no option is no vote: `mass` is the share of those that do, and with none the request fails.
    """

    votes: int

    @property
    def identity(self) -> str:
        return f"{self.inner.identity}/votes={self.votes}"

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        asked = [_vote(request, number) for request in requests for number in range(self.votes)]
        found = await self.inner.texts(asked)
        return [
            _counted(request, found[at * self.votes : (at + 1) * self.votes]) for at, request in enumerate(requests)
        ]


@dataclass(frozen=True)
class Stating(Around):
    """Asks the model to state the probability of each option, in percent, as structured output."""

    @property
    def identity(self) -> str:
        return f"{self.inner.identity}/stated"

    async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
        found = await self.inner.texts([_statement(request) for request in requests])
        return [_read(request, each) for request, each in zip(requests, found, strict=True)]


def climb(backend: Backend, needs: Rung | None, votes: int) -> Backend:
    """The backend on the rung that is needed, or the best that it has. Raises BackendError."""
    if needs == "logprobs" and not backend.logprobs:
        raise BackendError(
            f"--needs logprobs: {backend.name} tells none; without --needs it votes, and --needs stated makes it state"
            " probabilities"
        )
    match needs or ("logprobs" if backend.logprobs else "votes"):
        case "logprobs":
            return backend
        case "votes":
            return Voting(backend, votes)
        case "stated":
            return Stating(backend)


def _vote(request: Choose, number: int) -> Write:
    # Of its own for each question: with the same numbers everywhere, the luck of a draw would be that of all rows.
    seed = int(hashed([str(number), request.prompt.plain()], 12), 16)
    return Write(request.prompt, WORDS, temperature=1.0, seed=seed, instruction=only(request.options))


def _counted(request: Choose, found: Sequence[Text | Failed]) -> Likelihoods | Failed:
    texts = [each for each in found if isinstance(each, Text)]
    lost = [each for each in found if isinstance(each, Failed)]
    if not texts or any(each.reason not in NO_VOTE for each in lost):
        return lost[0]
    chosen = [answers.choice(each.text, request.options) for each in texts]
    counts = [chosen.count(at) for at in range(len(request.options))]
    if not sum(counts):
        return Failed("unparsable", f"none of {len(found)} votes named an option; one said {_shown(texts[0].text)}")
    valid = math.log(sum(counts) / len(found))
    values = tuple(valid + math.log(share) for share in answers.smoothed(counts))
    return Likelihoods(values, sum((each.usage for each in texts), Usage()), "votes", sum(counts))


def _statement(request: Choose) -> Write:
    labels = ", ".join(request.options)
    told = (
        f"State how likely each of the answers {labels} is the right one, in percent, as a JSON object: the answers are"
    )
    return Write(request.prompt, NUMBERS, instruction=f"{told} its keys.", numbers=request.options)


def _read(request: Choose, found: Text | Failed) -> Likelihoods | Failed:
    if isinstance(found, Failed):
        return found
    shares = answers.stated(found.text, request.options)
    if shares is None:
        return Failed("unparsable", f"no probability for each option; it said {_shown(found.text)}")
    return Likelihoods(tuple(math.log(each) if each else -math.inf for each in shares), found.usage, "stated")


def _shown(text: str) -> str:
    return repr(" ".join(text.split())[:60])
