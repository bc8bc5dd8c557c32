"""What all dialects share: a body is checked, a handler answers, failures become what the wire can carry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from data.records import Failure, Message, Prompt, hashed
from data.records import Response as Row
from labeler.server import gate, texts
from labeler.server.core import Core, Item, Reward

B = TypeVar("B", bound=BaseModel)

JSON = "application/json"


class Body(BaseModel):
    """What a client sends; what it says besides is none of our business."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Turn(Body):
    """A message in the words of OpenAI's protocol; content may come in parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def message(self) -> Message:
        return texts.messages_of([self.model_dump()])[0]


@dataclass(frozen=True)
class Serving:
    """What dialects know: the core, what is served, and how long and how much a request may be."""

    core: Core
    model: str
    task: str
    digest: str
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


def add(
    router: APIRouter,
    path: str,
    body: type[B],
    answer: type[BaseModel] | None,
    handle: Callable[[B, str], Awaitable[Any]],
    *,
    about: str,
    example: object,
    method: str = "POST",
) -> None:
    """A route whose body is checked against `body`. `handle` gets it and the client's name; what it returns is JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            asked = body.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            return problem(422, _first(error))
        try:
            found = await handle(asked, gate.client(request.scope))
        except RefusedError as error:
            return problem(error.status, error.message)
        return Response(to_json(found, inf_nan_mode="null"), media_type=JSON)

    schema = {"schema": body.model_json_schema(ref_template="#/components/schemas/{model}"), "example": example}
    inlined = {"required": True, "content": {JSON: schema}}
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=about,
        operation_id=f"{method.lower()}_{path.strip('/').replace('/', '_') or 'root'}",
        response_model=None,
        openapi_extra={"requestBody": _without_definitions(inlined)} if method == "POST" else None,
        responses={
            200: {"model": answer} if answer else {"description": "the answer"},
            **{status: {"model": Problem, "description": text} for status, text in STATUSES.items()},
        },
    )


STATUSES = {
    400: "the caller hung up while sending",
    401: "no token, or a wrong one",
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


def problem(status: int, message: str) -> Response:
    told = {"error": {"type": STATUSES.get(status, "refused"), "message": message[:2000]}}
    headers = {"Retry-After": "1"} if status == 503 else None
    return Response(to_json(told), status, headers, media_type=JSON)


def identity(*parts: str) -> str:
    return hashed(list(parts))


def _first(error: ValidationError) -> str:
    """Where and what, without the text that was sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg']}" if place else str(found["msg"])


def _without_definitions(body: dict[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to written in its place: OpenAPI has no room for definitions here."""
    schema = body["content"][JSON]["schema"]
    known: dict[str, Any] = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            found = cast("dict[str, Any]", value)
            if "$ref" in found:
                return inlined(known[str(found["$ref"]).rsplit("/", 1)[-1]])
            return {name: inlined(each) for name, each in found.items()}
        return [inlined(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value

    body["content"][JSON]["schema"] = inlined(schema)
    return body
