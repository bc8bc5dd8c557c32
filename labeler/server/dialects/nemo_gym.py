"""NeMo Gym's resources server: a rollout as OpenAI's Responses, back comes the same with its reward.

A failure has marks here: reward 0 with `_ng_failure_class`, by which Gym puts it aside, and `mask_sample`, by which
trainers give it no weight. Under the policy `error` it is a 503 instead, which Gym tries again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, RootModel

from data.records import Failure, Prompt
from labeler.server import texts
from labeler.server.wire import Body, Endpoint, RefusedError, Serving, Several, item

KIND = "judge_failed"
FAILED = frozenset(
    {"_ng_failure_class", "_ng_failure_judge_error", "mask_sample", "failure_kind", "failure_reason", "reward"}
)
"""Marks of an earlier try: a rollout that is asked about again has this try's outcome alone."""


class Rollout(Body):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class Verified(Rollout):
    """The rollout as it came, with its reward; where there is none, the reward is 0 and the marks say why."""

    reward: float
    mask_sample: bool


class Metrics(BaseModel):
    agent_metrics: dict[str, float | None]


class Session(Body):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Results(Body):
    verify_responses: Several[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])


def endpoints(serving: Serving) -> list[Endpoint]:
    async def verify(body: Rollout, client: str) -> dict[str, Any]:
        response = _output(body.response)
        echoed = {name: value for name, value in body.model_dump().items() if name not in FAILED}
        asked = _input(body.responses_create_params)
        if response is None:  # cut off while it was thinking: no failure of the judge, but nothing to judge either
            told = "no_response: response.output has no message of the assistant"
            return echoed | _failed(told)
        (found,) = await serving.ask([item(asked, response)], client)
        if not isinstance(found, Failure):
            return {**echoed, "reward": found.reward, "mask_sample": False}
        if serving.core.policy == "error":
            serving.all_or_nothing([found])
        return echoed | _failed(f"{found.reason}: {found.message}")

    async def stateless(body: Session, client: str) -> str:  # noqa: ARG001
        return "stateless"

    async def nothing(body: Session, client: str) -> dict[str, Any]:  # noqa: ARG001
        return {}

    async def aggregate_metrics(body: Results, client: str) -> dict[str, Any]:  # noqa: ARG001
        good = [each for each in body.verify_responses if not ("_ng_failure_class" in each or each.get("mask_sample"))]
        given = [each.get("reward") for each in good]
        rewards = [float(each) for each in given if isinstance(each, int | float) and abs(each) <= sys.float_info.max]
        failed = len(body.verify_responses) - len(good)
        mean = sum(rewards) / len(rewards) if rewards else None
        return {"agent_metrics": {"mean/reward": mean, "count": len(rewards), "failed": failed}}

    rollout = {
        "responses_create_params": {"input": [{"role": "user", "content": "Hi"}]},
        "response": {
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]}]
        },
    }
    verified = rollout, {**rollout, "reward": 0.42, "mask_sample": False}
    mean = {"agent_metrics": {"mean/reward": 0.42, "count": 1, "failed": 0}}
    results = {"verify_responses": [verified[1]]}, mean
    again: tuple[object, object] = ({}, "stateless")
    tag = "NeMo Gym"
    return [
        Endpoint("/verify", Rollout, Verified, verify, "The reward of a rollout", verified, tag),
        Endpoint("/seed_session", Session, Session, nothing, "Nothing to prepare", ({}, {}), tag),
        Endpoint("/close_session", Session, Session, nothing, "Nothing to put away", ({}, {}), tag),
        Endpoint("/aggregate_metrics", Results, Metrics, aggregate_metrics, "The mean reward", results, tag),
        Endpoint(
            "/reverify_mode", Session, RootModel[str], stateless, "Rewards can be asked for again", again, tag, "GET"
        ),
    ]


def _failed(told: str) -> dict[str, Any]:
    """No reward, in the words of rollout collection and in those of a verify response (both read one of them only)."""
    collected = {"_ng_failure_class": KIND, "_ng_failure_judge_error": told}
    return {"reward": 0.0, **collected, "mask_sample": True, "failure_kind": KIND, "failure_reason": told}


def _input(params: Mapping[str, Any]) -> Prompt:
    asked = params.get("input")
    system = str(params.get("instructions") or "")
    if isinstance(asked, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    elif isinstance(asked, list):
        messages = [each for each in cast("list[Any]", asked) if isinstance(each, dict) and "role" in each]
    else:
        raise RefusedError(422, "responses_create_params.input: expected a text or messages")
    before = [{"role": "system", "content": system}] if system else []
    return texts.plain(texts.messages_of([*before, *messages]))


def _output(response: Mapping[str, Any]) -> str | None:
    output = response.get("output")
    if not isinstance(output, list):
        return None
    messages = [cast("dict[str, Any]", each) for each in cast("list[Any]", output) if isinstance(each, dict)]
    said = [texts.content_of(each) for each in messages if each.get("role") == "assistant"]
    return "".join(said) if said else None
