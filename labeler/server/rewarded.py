"""The server around a trained reward model: the same dialects, with rewards that have no bounds and no task."""

from __future__ import annotations

from data.errors import RlaifError
from data.records import Comparison, Failure, ModelReward, Ranking, Response
from labeler.reward_model import Rewarder
from labeler.server.app import app
from labeler.server.core import Core
from labeler.server.gate import Gate
from labeler.server.grading import Grader
from labeler.server.metrics import Metrics
from labeler.server.options import Listening, Rewarding
from labeler.server.serving import BODY, WARM, Model, digest_of
from labeler.server.wire import Named, Serving


def build(model: Model, listening: Listening, rewarding: Rewarding, token: str | None) -> Gate:
    """Open the model and put the app around it. Raises RlaifError."""
    if rewarding.on_failure == "fallback":
        raise RlaifError("--on-failure fallback: another model's rewards are on another scale; choose another policy")
    rewarder, metrics = Rewarder(model.name, dtype=model.dtype, device=model.device), Metrics()
    bound = listening.waiting
    single = Grader[Response, ModelReward](rewarder, rewarder.rows, rewarder.calls, bound, metrics)
    several = Grader[Comparison, Ranking](rewarder.rank, rewarder.rows, rewarder.calls, bound, metrics)
    core = Core({"reward": single}, several, {}, rewarding.on_failure, rewarding.shaping, metrics)
    metrics.queued(lambda: sum(len(grader.queue) for grader in core.every))
    within, most = listening.answer_within, listening.most_items
    rewards = Named("reward", digest_of([rewarder.digest], rewarding.shaping))
    preferences = Named("reward", rewarder.digest)
    serving = Serving(core, rewarder.name, rewards, preferences, within, most, temperature=1.0)

    async def warm() -> str | None:
        (found,) = await rewarder([WARM])
        return f"{found.reason}: {found.message}" if isinstance(found, Failure) else None

    largest = listening.largest_body << 20
    return app(serving, token=token, largest=largest, patience=BODY, warm=warm, close=rewarder.close)
