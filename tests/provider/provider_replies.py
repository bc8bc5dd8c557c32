"""What goes back over the wire: a reply, or a refusal that each provider words in its own shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic_core import to_json

JSON = "application/json"


class RefusedError(Exception):
    """A request that is not answered. `code` and `param` are OpenAI's."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | int | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.headers = code, param, dict(headers or {})


@dataclass(slots=True)
class Reply:
    """`answers` is the key of the question that this answers rightly, where it does."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict[str, str])
    answers: str = ""


def json_reply(value: object, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Reply:
    return Reply(status, to_json(value), {"Content-Type": JSON, **(headers or {})})
