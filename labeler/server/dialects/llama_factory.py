"""LLaMA-Factory's `reward_model_type: api`: whole decoded texts in, one score each. No mark for a failure: a 503."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from labeler.server import texts
from labeler.server.wire import Body, Endpoint, Serving, Several, identity, item


class Texts(Body):
    model: str | None = None
    messages: Several[str]
    max_length: int | None = None


class Scores(BaseModel):
    id: str
    object: str
    model: str
    scores: list[float]


def endpoints(serving: Serving) -> list[Endpoint]:
    async def evaluation(body: Texts, client: str) -> dict[str, Any]:
        serving.check(len(body.messages))
        found = serving.all_or_nothing(await serving.ask([item(*texts.split(each)) for each in body.messages], client))
        name = f"scoreeval-{identity(*body.messages)}"
        scores = [each.reward for each in found]
        return {"id": name, "object": "score.evaluation", "model": body.model or serving.model, "scores": scores}

    sent = {"model": "model", "messages": ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!"]}
    told = {"id": "scoreeval-6f1c", "object": "score.evaluation", "model": "model", "scores": [0.42]}
    about = "LLaMA-Factory's score evaluation"
    return [
        Endpoint(path, Texts, Scores, evaluation, about, (sent, told), "LLaMA-Factory")
        for path in ("/v1/score/evaluation", "/")
    ]
