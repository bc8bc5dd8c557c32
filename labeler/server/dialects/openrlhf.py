"""OpenRLHF's `--reward.remote_url http://HOST:PORT/get_reward`.

`query` is the whole decoded sequence, `prompts` its templated beginning; older versions send neither labels nor single
items. With several URLs all but the first get empty batches, which are answered. `scores` must lie in [0, 1]; values of
`extra_logs` must be numbers, under the same names each time. A failure has no mark on this wire: it is a 503, which the
client tries five times; choose the policy `group-mean` or `fallback` to keep a run alive.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from labeler.server import texts
from labeler.server.core import Item
from labeler.server.wire import Body, Endpoint, RefusedError, Serving, Several, item


class Batch(Body):
    query: Several[str]
    prompts: Several[str] | None = None
    labels: list[Any] | None = None


class Rewards(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def endpoints(serving: Serving) -> list[Endpoint]:
    async def get_reward(body: Batch, client: str) -> dict[str, Any]:
        serving.check(len(body.query))
        found = serving.all_or_nothing(await serving.ask(_items(body), client))
        return {
            "rewards": [each.reward for each in found],
            "scores": [each.unit for each in found],
            "extra_logs": {
                "judge_cached": [float(each.cached) for each in found],
                "judge_replaced": [float(each.source != "model") for each in found],
                "judge_truncated": [float(each.truncated) for each in found],
            },
        }

    sent = {"query": ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"], "prompts": []}
    logs = {"judge_cached": [0.0], "judge_replaced": [0.0], "judge_truncated": [0.0]}
    told = {"rewards": [0.42], "scores": [0.71], "extra_logs": logs}
    return [Endpoint("/get_reward", Batch, Rewards, get_reward, "OpenRLHF's remote reward", (sent, told), "OpenRLHF")]


def _items(body: Batch) -> list[Item]:
    if body.prompts and len(body.prompts) != len(body.query):
        raise RefusedError(422, f"{len(body.prompts)} prompts for {len(body.query)} texts in query")
    prompts = body.prompts or [None] * len(body.query)
    return [item(*texts.split(query, asked)) for query, asked in zip(body.query, prompts, strict=True)]
