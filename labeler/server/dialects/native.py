"""Our own words: every item has its own answer, and a failure says what failed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from data.records import MAX_RESPONSES, MIN_RESPONSES, Comparison, Failure, Prompt, Ranking, Score
from labeler.server import texts
from labeler.server.core import Item, Reward, expected
from labeler.server.wire import Body, Endpoint, Serving, Several, Turn, identity, item


class RewardItem(Body):
    """A prompt, as text or as messages, and a response. Without `response`, the last assistant message is it."""

    id: str | None = None
    prompt: str | Several[Turn] | None = None
    messages: Several[Turn] | None = None
    response: str | None = None
    group: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> RewardItem:
        if self.prompt is None and not self.messages:
            raise ValueError("expected `prompt` (a text or messages) or `messages`")
        if self.response is None and not (self.messages and self.messages[-1].role == "assistant"):
            raise ValueError("expected `response`, or `messages` that end with the assistant's")
        return self

    def item(self) -> Item:
        turns = self.messages or []
        response = self.response
        if response is None:
            turns, response = turns[:-1], turns[-1].message().content
        return item(asked(self.prompt if self.prompt is not None else turns), response, self.group)


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Rewards(Body):
    items: Several[RewardItem]
    timeout_s: Seconds | None = None


class Usage(BaseModel):
    tokens_in: int
    tokens_out: int


class RewardAnswer(BaseModel):
    """`reward` and all below are null where `status` is failed; `score` and `distribution` with several tasks.
    `truncated`: the prompt was longer than the model reads, and was cut."""

    id: str | None
    status: Literal["ok", "failed"]
    reward: float | None
    score: float | None
    distribution: list[float] | None
    scores: dict[str, float]
    mass: float | None
    source: str | None
    truncated: bool
    cached: bool
    reason: str | None
    message: str | None
    usage: Usage


class RewardAnswers(BaseModel):
    model: str
    task: str
    digest: str
    items: list[RewardAnswer]


class PreferenceItem(Body):
    id: str | None = None
    prompt: str | Several[Turn] | None = None
    messages: Several[Turn] | None = None
    responses: Annotated[Several[str], Field(min_length=MIN_RESPONSES, max_length=MAX_RESPONSES)]

    @model_validator(mode="after")
    def _whole(self) -> PreferenceItem:
        if self.prompt is None and not self.messages:
            raise ValueError("expected `prompt` (a text or messages) or `messages`")
        return self


class Preferences(Body):
    items: Several[PreferenceItem]
    timeout_s: Seconds | None = None


class PreferenceAnswer(BaseModel):
    """`p[i][j]` is the probability that response i is better than j; `order` is best first."""

    id: str | None
    status: Literal["ok", "failed"]
    p: list[list[float]] | None
    order: list[int] | None
    strengths: list[float] | None
    mass: float | None
    truncated: bool
    cached: bool
    reason: str | None
    message: str | None
    usage: Usage


class PreferenceAnswers(BaseModel):
    model: str
    task: str
    digest: str
    items: list[PreferenceAnswer]


def endpoints(serving: Serving) -> list[Endpoint]:
    async def rewards(body: Rewards, client: str) -> dict[str, Any]:
        serving.check(len(body.items))
        found = await serving.ask([each.item() for each in body.items], client, body.timeout_s)
        told = [_reward(each.id, answer, serving) for each, answer in zip(body.items, found, strict=True)]
        return {"model": serving.model, **serving.rewards.told, "items": told}

    async def preferences(body: Preferences, client: str) -> dict[str, Any]:
        serving.check(len(body.items))
        patience = min(body.timeout_s or serving.patience, serving.patience)
        told = await asyncio.gather(*(_preferred(each, serving, client, patience) for each in body.items))
        return {"model": serving.model, **serving.preferences.told, "items": told}

    one = {"id": "a", "prompt": "How do I boil an egg?", "response": "Put it into boiling water for eight minutes."}
    two = {"id": "a", "prompt": "How do I boil an egg?", "responses": ["Eight minutes.", "I do not know."]}
    about, both = "Rewards of single responses", "Which of several responses to a prompt is better"
    known = {"cached": False, "truncated": False, "reason": None, "message": None}
    rewarded = {
        "id": "a",
        "status": "ok",
        "reward": 0.4044,
        "score": 7.32,
        "scores": {"helpfulness": 7.32},
        "distribution": [0.0, 0.01, 0.02, 0.04, 0.07, 0.13, 0.22, 0.26, 0.17, 0.08],
        "mass": 0.99,
        "source": "model",
        **known,
        "usage": {"tokens_in": 212, "tokens_out": 1},
    }
    preferred = {
        "id": "a",
        "status": "ok",
        "p": [[0.5, 0.93], [0.07, 0.5]],
        "order": [0, 1],
        "strengths": [1.29, -1.29],
        "mass": 0.98,
        **known,
        "usage": {"tokens_in": 431, "tokens_out": 2},
    }
    by = {"model": serving.model, "task": "helpfulness", "digest": "6f1c0c7d2a9b"}
    single = {"items": [one], "timeout_s": 60}, {**by, "items": [rewarded]}
    several = {"items": [two]}, {**by, "items": [preferred]}
    return [
        Endpoint("/v1/rewards", Rewards, RewardAnswers, rewards, about, single, "native"),
        Endpoint("/v1/preferences", Preferences, PreferenceAnswers, preferences, both, several, "native"),
    ]


def asked(prompt: str | list[Turn] | None) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return texts.plain([turn.message() for turn in prompt or []])


def _reward(identity_: str | None, found: Reward | Failure, serving: Serving) -> dict[str, Any]:
    good = found if isinstance(found, Reward) else None
    every = list(good.scores.values()) if good else []
    scores = [each for each in every if isinstance(each, Score)]
    failed = found if isinstance(found, Failure) else None
    return {
        "id": identity_,
        "status": "ok" if good else "failed",
        "reward": good and good.reward,
        "score": good and expected(good, serving.temperature),
        "distribution": list(scores[0].distribution) if len(scores) == 1 else None,
        "scores": {name: each.score for name, each in good.scores.items() if isinstance(each, Score)} if good else {},
        "mass": min((each.mass for each in scores), default=None),
        "source": good and good.source,
        "truncated": bool(good and good.truncated),
        "cached": bool(good and good.cached),
        "reason": failed and failed.reason,
        "message": failed and failed.message,
        "usage": {
            "tokens_in": 0 if good and good.cached else sum(each.tokens_in for each in every),
            "tokens_out": 0 if good and good.cached else sum(each.tokens_out for each in scores),
        },
    }


async def _preferred(each: PreferenceItem, serving: Serving, client: str, patience: float) -> dict[str, Any]:
    prompt = asked(each.prompt if each.prompt is not None else each.messages)
    row = Comparison(id=identity(*each.responses), prompt=prompt, responses=tuple(each.responses))
    found, known = await serving.core.preference(row, client, patience)
    good = found if isinstance(found, Ranking) else None
    failed = found if isinstance(found, Failure) else None
    return {
        "id": each.id,
        "status": "ok" if good else "failed",
        "p": good and [list(line) for line in good.p],
        "order": good and list(good.order),
        "strengths": good and list(good.strengths),
        "mass": good and good.mass,
        "truncated": bool(good and good.truncated),
        "cached": known,
        "reason": failed and failed.reason,
        "message": failed and failed.message,
        "usage": {
            "tokens_in": good.tokens_in if good and not known else 0,
            "tokens_out": good.tokens_out if good and not known else 0,
        },
    }
