"""slime's `--rm-type remote_rm --rm-url http://HOST:PORT/rm`: the JSON body of the answer is the reward.

A failure has no mark on this wire: it is a 503, which the client tries ten times.
"""

from __future__ import annotations

from typing import Any

from pydantic import RootModel

from labeler.server import texts
from labeler.server.wire import Body, Endpoint, Serving, Several, Turn, item


class Sample(Body):
    prompt: str | Several[Turn]
    response: str
    label: Any = None


def endpoints(serving: Serving) -> list[Endpoint]:
    async def rm(body: Sample, client: str) -> float:
        if isinstance(body.prompt, str):
            row = item(*texts.apart(body.prompt, body.response))
        else:
            row = item(texts.plain([each.message() for each in body.prompt]), texts.ended(body.response))
        found = await serving.ask([row], client)
        return serving.all_or_nothing(found)[0].reward

    examples = {"prompt": "How do I boil an egg?", "response": "For eight minutes.", "label": None}, 0.42
    return [Endpoint("/rm", Sample, RootModel[float], rm, "slime's remote reward model", examples, "slime")]
