"""The pooling, classify and score shapes of vLLM and SGLang, for whoever asks a served reward model.

The value is the reward in [-1, 1], as with `use_activation: false`. A text is a whole decoded conversation; of
`/score`, `text_1` is the prompt and `text_2` the response. No mark for a failure: a 503.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from labeler.server import texts
from labeler.server.core import Item
from labeler.server.wire import Body, Endpoint, RefusedError, Serving, Several, Turn, identity, item


class Input(Body):
    model: str | None = None
    input: str | Several[str] | Several[Turn] | None = None
    messages: Several[Turn] | None = None


class Pairs(Body):
    model: str | None = None
    text_1: str | Several[str] | None = None
    text_2: str | Several[str] | None = None
    queries: str | Several[str] | None = None
    documents: str | Several[str] | None = None
    items: str | Several[str] | None = None


class Classified(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Pooled(BaseModel):
    index: int
    object: Literal["pooling"]
    data: list[float]


class Embedded(BaseModel):
    index: int
    object: Literal["embedding"]
    embedding: list[float]


class Scored(BaseModel):
    index: int
    object: Literal["score"]
    score: float


One = TypeVar("One", Classified, Pooled, Embedded, Scored)


class Listed(BaseModel, Generic[One]):
    """What each path answers: a list with an entry for each text."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[One]
    usage: dict[str, int]


def endpoints(serving: Serving) -> list[Endpoint]:
    async def values(items: Sequence[Item], client: str) -> list[float]:
        return [each.reward for each in serving.all_or_nothing(await serving.ask(items, client))]

    def listed(kind: str, model: str | None, data: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"{kind}-{identity(*(str(each) for each in data))}"
        usage = {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0}
        told = {"id": name, "object": "list", "created": int(time.time()), "model": model or serving.model}
        return {**told, "data": data, "usage": usage}

    async def classify(body: Input, client: str) -> dict[str, Any]:
        found = await values(_items(body), client)
        data = [{"index": at, "label": "LABEL_0", "probs": [value], "num_classes": 1} for at, value in enumerate(found)]
        return listed("classify", body.model, data)

    async def pooling(body: Input, client: str) -> dict[str, Any]:
        found = await values(_items(body), client)
        data: list[dict[str, Any]] = [
            {"index": at, "object": "pooling", "data": [value]} for at, value in enumerate(found)
        ]
        return listed("pool", body.model, data)

    async def embeddings(body: Input, client: str) -> dict[str, Any]:
        found = await values(_items(body), client)
        data: list[dict[str, Any]] = [
            {"index": at, "object": "embedding", "embedding": [value]} for at, value in enumerate(found)
        ]
        return listed("embd", body.model, data)

    async def score(body: Pairs, client: str) -> dict[str, Any]:
        found = await values(_paired(body), client)
        data: list[dict[str, Any]] = [
            {"index": at, "object": "score", "score": value} for at, value in enumerate(found)
        ]
        return listed("score", body.model, data)

    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
    one, pair = {"input": text}, {"text_1": "Hi", "text_2": ["Hello!", "Go away."]}
    tag, none = "vLLM and SGLang", {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0}

    def told(kind: str, *data: dict[str, Any]) -> dict[str, Any]:
        told = {"id": f"{kind}-6f1c", "object": "list", "created": 1796083200, "model": serving.model}
        return {**told, "data": list(data), "usage": none}

    classified = told("classify", {"index": 0, "label": "LABEL_0", "probs": [0.42], "num_classes": 1})
    pooled = told("pool", {"index": 0, "object": "pooling", "data": [0.42]})
    embedded = told("embd", {"index": 0, "object": "embedding", "embedding": [0.42]})
    scored = told("score", *({"index": at, "object": "score", "score": each} for at, each in enumerate((0.42, -0.87))))
    whole = (
        ("/classify", Listed[Classified], classify, classified),
        ("/v1/classify", Listed[Classified], classify, classified),
        ("/pooling", Listed[Pooled], pooling, pooled),
        ("/v1/embeddings", Listed[Embedded], embeddings, embedded),
    )
    about, both = "A served reward model's value", "Responses to prompts"
    return [
        *(Endpoint(path, Input, answer, handle, about, (one, back), tag) for path, answer, handle, back in whole),
        *(Endpoint(path, Pairs, Listed[Scored], score, both, (pair, scored), tag) for path in ("/score", "/v1/score")),
    ]


def _items(body: Input) -> list[Item]:
    if body.messages is not None:
        return [_conversation(body.messages)]
    asked = body.input
    if isinstance(asked, str):
        return [item(*texts.split(asked))]
    if asked is None:
        raise RefusedError(422, "expected `input` (texts) or `messages`")
    turns = [each for each in asked if isinstance(each, Turn)]
    return [_conversation(turns)] if turns else [item(*texts.split(each)) for each in asked if isinstance(each, str)]


def _conversation(turns: Sequence[Turn]) -> Item:
    messages = [each.message() for each in turns]
    if not messages or messages[-1].role != "assistant":
        raise RefusedError(422, "messages: expected the assistant's as the last one")
    return item(texts.plain(messages[:-1]), messages[-1].content)


def _paired(body: Pairs) -> list[Item]:
    """1 with 1, 1 with N, or N with N."""
    first = body.text_1 if body.text_1 is not None else body.queries
    second = next((each for each in (body.text_2, body.documents, body.items) if each is not None), None)
    if first is None or second is None:
        raise RefusedError(422, "expected text_1 and text_2 (or queries and documents)")
    prompts = [first] if isinstance(first, str) else first
    responses = [second] if isinstance(second, str) else second
    if len(prompts) == 1:
        prompts = prompts * len(responses)
    if len(prompts) != len(responses):
        raise RefusedError(422, f"{len(prompts)} prompts for {len(responses)} responses; expected 1 or as many")
    return [item(*texts.apart(a, b)) for a, b in zip(prompts, responses, strict=True)]
