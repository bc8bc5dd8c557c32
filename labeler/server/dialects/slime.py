"""slime's `--rm-type remote_rm --rm-url http://HOST:PORT/rm`: the JSON body of the answer is the reward.

A failure has no mark on this wire: it is a 503, which the client tries ten times.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from labeler.server import texts
from labeler.server.wire import Body, Serving, Turn, add, item


class Sample(Body):
    prompt: str | list[Turn]
    response: str
    label: Any = None


def router(serving: Serving) -> APIRouter:
    made = APIRouter(tags=["slime"])

    async def rm(body: Sample, client: str) -> float:
        prompt = body.prompt
        asked = texts.prompt(prompt) if isinstance(prompt, str) else texts.plain([each.message() for each in prompt])
        found = await serving.ask([item(asked, texts.ended(body.response))], client)
        return serving.all_or_nothing(found)[0].reward

    example = {"prompt": "How do I boil an egg?", "response": "For eight minutes.", "label": None}
    add(made, "/rm", Sample, None, rm, about="slime's remote reward model", example=example)
    return made
