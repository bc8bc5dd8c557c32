"""What all dialects share: a body is checked, a handler answers, failures become what the wire can carry."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from data.records import Failure, Message, Prompt, hashed
from data.records import Response as Row
from labeler.server import texts
from labeler.server.core import Core, Item, Reward

JSON = "application/json"


T = TypeVar("T")
Several = Annotated[list[T], Field(fail_fast=True)]
"""A list in what a client sends: the first thing that is wrong ends it, as each other costs time and memory."""


class Body(BaseModel):
    """What a client sends; what it says besides is none of our business."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Turn(Body):
    """A message in the words of OpenAI's protocol; content may come in parts."""

    role: str
    content: str | Several[dict[str, Any]] | None = None

    def message(self) -> Message:
        return texts.messages_of([self.model_dump()])[0]


@dataclass(frozen=True)
class Named:
    """A question's name and digest."""

    task: str
    digest: str

    @cached_property
    def told(self) -> dict[str, str]:
        """As answers tell them."""
        return {"task": self.task, "digest": self.digest}


@dataclass(frozen=True)
class Serving:
    """What dialects know: the core, what is served, and how long and how much a request may be. Preferences are asked
    of the first task alone."""

    core: Core
    model: str
    rewards: Named
    preferences: Named
    patience: float
    most_items: int
    temperature: float

    async def ask(self, items: Sequence[Item], client: str, patience: float | None = None) -> list[Reward | Failure]:
        """Raises RefusedError for more items than a request may have."""
        self.check(len(items))
        return await self.core.rewards(items, client, min(patience or self.patience, self.patience))

    def check(self, count: int) -> None:
        if count > self.most_items:
            raise RefusedError(413, f"{count} items; a request may have {self.most_items} (--most-items)")

    def all_or_nothing(self, found: Sequence[Reward | Failure]) -> list[Reward]:
        """For wires that carry numbers only. Raises RefusedError: a failure is never a number in disguise."""
        failed = next((each for each in found if isinstance(each, Failure)), None)
        if failed is not None:
            raise RefusedError(503, f"{failed.reason}: {failed.message}")
        return [each for each in found if isinstance(each, Reward)]


@dataclass
class RefusedError(Exception):
    """A request that gets no answer, and why."""

    status: int
    message: str


def item(prompt: Prompt, response: str, group: str | None = None) -> Item:
    """A response to be rewarded, known by its content."""
    made = Row(id="-", prompt=prompt, response=response)
    return Item(made.model_copy(update={"id": made.content}), group)


@dataclass(frozen=True)
class Endpoint:
    """One path of a dialect: what comes in, who answers, what goes out, and how it is described.

    `handle` gets the checked body and the client's name; what it returns is the answer's JSON. No framework stands
    between: for answers that are known, its work would be more than all the rest.
    """

    path: str
    body: type[Body]
    answer: type[BaseModel]
    handle: Callable[[Any, str], Awaitable[Any]]
    about: str
    examples: tuple[object, object]
    """A body, and what is answered to it."""
    tag: str
    method: str = "POST"

    async def __call__(self, body: bytes, client: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        try:
            asked = self.body.model_validate_json(body or b"{}")
        except ValidationError as error:
            return 422, problem(422, _first(error))
        try:
            found = await self.handle(asked, client)
        except RefusedError as error:
            return error.status, problem(error.status, error.message)
        except texts.UnreadableError as error:
            return 422, problem(422, str(error))
        return 200, to_json(found, inf_nan_mode="null")

    def described(self) -> dict[str, Any]:
        """Its place in the OpenAPI document."""
        sent = {"schema": schema(self.body), "example": self.examples[0]}
        told = {JSON: {"schema": schema(self.answer), "example": self.examples[1]}}
        errors = {
            str(status): {"description": text, "content": {JSON: {"schema": schema(Problem)}}}
            for status, text in STATUSES.items()
        }
        return {
            "summary": self.about,
            "tags": [self.tag],
            "operationId": f"{self.method.lower()}_{re.sub('[^a-z0-9]+', '_', self.path).strip('_') or 'root'}",
            **({"requestBody": {"required": True, "content": {JSON: sent}}} if self.method == "POST" else {}),
            "responses": {"200": {"description": "the answer", "content": told}, **errors},
        }


STATUSES = {
    400: "the caller hung up while sending",
    401: "no token, or a wrong one",
    403: "a page in a browser asked",
    404: "nothing is there, or not by this method",
    408: "the body did not come in time",
    413: "too large",
    422: "the body is not what is expected",
    503: "no reward could be made",
}


class Reason(BaseModel):
    type: str
    message: str


class Problem(BaseModel):
    """Every error's body."""

    error: Reason


def problem(status: int, message: str) -> bytes:
    """The body of an answer that is none, in one shape for all."""
    return to_json({"error": {"type": STATUSES.get(status, "a defect of the server"), "message": message[:2000]}})


def identity(*parts: str) -> str:
    return hashed(list(parts))


def _first(error: ValidationError) -> str:
    """Where and what, without the text that was sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg']}" if place else str(found["msg"])


def schema(kind: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with what it refers to written in its place."""
    whole = kind.model_json_schema()
    known: dict[str, Any] = whole.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            found = cast("dict[str, Any]", value)
            if "$ref" in found:
                return inlined(known[str(found["$ref"]).rsplit("/", 1)[-1]])
            return {name: inlined(each) for name, each in found.items()}
        return [inlined(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value

    return inlined(whole)
