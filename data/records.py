"""What is a row? The records that every command reads and writes.

All are frozen: a step makes a new record, it never edits one. Indices of responses count from 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.errors import RowError

Strength: TypeAlias = Literal["significantly", "better", "slightly", "negligibly"]
MARGINS_SMALL: dict[Strength, float] = {"significantly": 1.0, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}
MARGINS_LARGE: dict[Strength, float] = {"significantly": 3.0, "better": 2.0, "slightly": 1.0, "negligibly": 0.0}
"""How far apart the scores of two responses should be, by how much better one was found (Llama 2, table 27)."""
Method: TypeAlias = Literal["logprobs", "votes", "stated"]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]

MIN_RESPONSES, MAX_RESPONSES = 2, 9


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt: TypeAlias = str | tuple[Message, ...]


class Vote(Record):
    """What one rater said of a comparison: the better response's index, or a tie. An AI rater may say how surely: `p`
    is its probability that response 0 is the better one."""

    rater: str = "human"
    choice: Annotated[int, Field(ge=0, strict=True)] | Literal["tie"]
    strength: Strength | None = None
    p: Probability | None = None

    @model_validator(mode="after")
    def _of_one_mind(self) -> Vote:
        if self.p is not None and self.choice in {0, 1} and (self.p - 0.5) * (1 if self.choice == 0 else -1) < 0:
            raise ValueError(f"p {self.p:g} is for the other response than choice {self.choice}")
        return self


class Comparison(Record):
    """A prompt and two to nine responses to it, with what people said of them."""

    id: str
    prompt: Prompt
    responses: Annotated[tuple[str, ...], Field(min_length=MIN_RESPONSES, max_length=MAX_RESPONSES)]
    models: tuple[str, ...] | None = None
    votes: tuple[Vote, ...] = ()
    meta: dict[str, Any] = {}

    @cached_property
    def content(self) -> str:
        """What is judged, as a fingerprint: a label says by it which texts it is about, since ids alone can clash."""
        return hashed([*_texts(self.prompt), *self.responses])

    @model_validator(mode="after")
    def _indices_fit(self) -> Comparison:
        count = len(self.responses)
        for vote in self.votes:
            if isinstance(vote.choice, int) and vote.choice >= count:
                raise ValueError(f"votes: choice {vote.choice} names no response; expected 0 to {count - 1} or 'tie'")
        if self.models is not None and len(self.models) != count:
            raise ValueError(f"models: expected {count} names, one a response; got {len(self.models)}")
        return self


class Rating(Record):
    """What one rater said of a single response: harmful or not, a score, or a class in the words of a file."""

    rater: str = "human"
    harmful: bool | None = None
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Rating:
        if sum(each is not None for each in (self.harmful, self.score, self.label)) != 1:
            raise ValueError(
                "ratings: each needs one of 'harmful' (true or false), 'score' (a number), 'label' (a text)"
            )
        return self


class Response(Record):
    """A prompt and one response to it, judged alone."""

    id: str
    prompt: Prompt
    response: str
    model: str | None = None
    ratings: tuple[Rating, ...] = ()
    meta: dict[str, Any] = {}

    @cached_property
    def content(self) -> str:
        """What is judged, as a fingerprint."""
        return hashed([*_texts(self.prompt), self.response])


class Prompted(Record):
    """A prompt alone, or with the response that there is to it already."""

    id: str
    prompt: Prompt
    response: str | None = None
    meta: dict[str, Any] = {}

    @cached_property
    def content(self) -> str:
        """What is asked about, as a fingerprint."""
        return hashed([*_texts(self.prompt), self.response or ""])


class Order(Record):
    """The labeler's answer for one shown order of a pair.

    `p_first` is the probability that the response shown first is the better one. `mass` is the probability that the
    model gave to the label strings at all: where it is tiny, `p_first` is renormalised noise.
    """

    p_first: Probability
    mass: Probability
    rationale: str | None = None
    votes: int | None = None


class Label(Record):
    """A soft preference label: `p` is the probability that response 0 is the better one (RLAIF, section 2.1)."""

    id: str
    p: Probability
    choice: Literal[0, 1] | None
    orders: tuple[Order, ...]
    mass: Probability
    same_position: bool | None
    """Both orders preferred the same position; None where one order was asked or an order is an exact tie."""
    model: str
    task: str
    digest: str
    content: str = ""
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float
    method: Method
    truncated: bool = False


class Score(Record):
    """A direct reward: the expectation of a 1-10 score under the labeler's likelihoods (RLAIF, section 2.2.2)."""

    id: str
    score: Annotated[float, Field(ge=1, le=10)]
    reward: Annotated[float, Field(ge=-1, le=1)]
    distribution: Annotated[tuple[Probability, ...], Field(min_length=10, max_length=10)]
    mass: Probability
    rationale: str | None = None
    model: str
    task: str
    digest: str
    content: str = ""
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float
    method: Method
    truncated: bool = False


class ModelReward(Record):
    """What a trained reward model gives a response: a number without bounds, 0 for the mean of its reference set."""

    id: str
    reward: Annotated[float, Field(allow_inf_nan=False)]
    model: str
    digest: str
    content: str = ""
    tokens_in: int
    seconds: float
    truncated: bool = False


class Ranking(Record):
    """Responses ordered best first, from all pairs: `p[i][j]` is the probability that i is better than j."""

    id: str
    order: tuple[int, ...]
    strengths: tuple[float, ...]
    p: tuple[tuple[float, ...], ...]
    mass: Probability
    model: str
    task: str
    digest: str
    content: str = ""
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float
    method: Method
    truncated: bool = False


class Sampled(Record):
    """What models answered to one prompt."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    models: tuple[str, ...]
    identity: str
    """Of the last model: changes with its weights."""
    digest: str
    content: str = ""
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """A comparison of two and more responses, or a single one, with where it comes from. Their id follows from the
        texts, since the same prompt is sampled from again in later rounds.
        """
        said = self.model_dump(include={"prompt"})
        meta = {"prompt_id": self.id, "digest": self.digest, "identity": self.identity}
        if len(self.responses) == 1:
            return [{**said, "response": self.responses[0], "model": self.models[0], "meta": meta}]
        return [{**said, "responses": list(self.responses), "models": list(self.models), "meta": meta}]


class Revised(Record):
    """One step of a critique and revision: what was asked by which principle, and the response after it."""

    principle: str
    critique: str
    response: str


class Revisions(Record):
    """A response and its revisions, each of the one before (Constitutional AI, section 3.1)."""

    id: str
    prompt: Prompt
    response: str
    steps: tuple[Revised, ...]
    model: str
    task: str
    digest: str
    content: str = ""
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """One response a step, as a model is fine-tuned on them: what led to it stands in `meta`."""
        before = (self.response, *(each.response for each in self.steps))
        return [
            {
                "id": f"{self.id}#{number}",
                "prompt": self.model_dump()["prompt"],
                "response": each.response,
                "model": self.model,
                "meta": {
                    "step": number,
                    "principle": each.principle,
                    "critique": each.critique,
                    "revised": before[number - 1],
                    "digest": self.digest,
                },
            }
            for number, each in enumerate(self.steps, 1)
        ]


class Failure(Record):
    """Why a row has no answer. Never a number in a label's place."""

    id: str
    stage: str
    reason: str
    message: str
    attempts: int = 1


Answer: TypeAlias = Label | Score | ModelReward | Ranking | Revisions | Sampled


def canonical(value: object) -> str:
    """The one JSON text of a value, whatever the order of its keys: what digests are made of."""
    return _ENCODER.encode(value)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical form")


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_plain)


def fingerprint(value: object, length: int = 16) -> str:
    """A short SHA-256 of a value's canonical JSON. Lone surrogates are hashed as they stand."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def hashed(parts: Sequence[str], length: int = 16) -> str:
    """A short SHA-256 of texts, with their lengths so that no two lists are one text. Several times as fast as
    `fingerprint`: it is made for every row and every request."""
    sized = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.sha256(sized.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _texts(prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        return ["text", prompt]
    return ["messages", str(len(prompt)), *(text for message in prompt for text in (message.role, message.content))]


def content_id(prompt: object, responses: Sequence[str]) -> str:
    """The id of a row that brings none: the same texts get the same id in every file. Raises RowError."""
    try:
        return fingerprint([prompt, list(responses)])
    except TypeError as error:
        raise RowError(f"prompt: expected texts; {error}") from None


R = TypeVar("R", bound=Record)


def make(kind: type[R], fields: Mapping[str, Any]) -> R:
    """Build a record from untrusted fields.

    Raises RowError: the first thing that is wrong, with the field's name and what was expected there.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise RowError(_first(error)) from None


def _first(error: ValidationError) -> str:
    # A union reports each of its branches: a conversation's own error says more than that it is no text.
    problem = next((each for each in error.errors() if "tuple[Message, ...]" in each["loc"][1:2]), error.errors()[0])
    if problem["input"] == [] or isinstance(problem["input"], str | int):
        problem = error.errors()[0] if len(problem["loc"]) <= _UNION else problem
    place = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
    if place.endswith(".choice") and problem["type"] != "missing":
        return f"{place}: expected a 0-based index or 'tie', got {_short(problem['input'])}"
    message, given = problem["msg"].removeprefix("Value error, "), problem["input"]
    if problem["type"] in {"too_short", "too_long"} and place == "responses":
        message = (
            f"expected {MIN_RESPONSES} to {MAX_RESPONSES} responses, got {problem.get('ctx', {}).get('actual_length')}"
        )
    elif problem["type"] == "missing":
        message = "missing; expected a value"
    elif not isinstance(given, Mapping | BaseModel):
        message = f"{message[0].lower()}{message[1:]}, got {_short(given)}"
    return f"{place}: {message}" if place else message


_UNION = 2
"""Parts of a place that name a union's branch and nothing inside of it."""


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in {"str", "constrained-int"} or part.startswith(("tuple[", "literal[")))


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
