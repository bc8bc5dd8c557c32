"""The reward server on a cluster: Ray Serve runs as many copies as there is room for, and spreads the requests.

    pip install 'ray[serve]'
    serve run ray_serve:app task=helpfulness model=vllm:Qwen/Qwen3-8B replicas=4 gpus=1

from this folder. Each copy has its own model and its own answers; every path of `rlaif serve` is there, on port 8000.
"""

from __future__ import annotations

import os
from pathlib import Path

from ray import serve
from ray.serve import Application

from labeler.opening import Reach
from labeler.server.gate import Gate
from labeler.server.options import Listening, Rewarding
from labeler.server.serving import Model, application

AT_ONCE = 4096
"""Requests that a copy takes at once. Ray's own bound of a few would starve its batches."""


def app(settings: dict[str, str]) -> Application:
    """`task` (several with commas), `model`; `url` of a server that has it; `replicas`; `gpus` and `cpus` of each.

    Token and key are those of whoever starts it: RLAIF_TOKEN, OPENAI_API_KEY. `open=yes` does without a token.
    """
    tasks = tuple(each for each in settings.get("task", "").split(",") if each)
    token, key = os.environ.get("RLAIF_TOKEN"), os.environ.get("OPENAI_API_KEY")
    if not token and settings.get("open") != "yes":
        raise SystemExit("RLAIF_TOKEN is not set: whoever reaches the cluster could ask; open=yes lets them")
    reach = Reach(base_url=settings.get("url"), keys={"openai": key} if key else {})
    cache = os.environ.get("RLAIF_CACHE") or Path.home() / ".cache"
    served = Model(tasks, settings["model"], Path(cache) / "rlaif", reach=reach)

    def web() -> Gate:
        """Runs in the copy: models and connections do not travel. Copies on one machine would want the same file of
        answers."""
        return application(served, Listening(), Rewarding(kept="memory"), token or None)

    rewards = serve.deployment(
        serve.ingress(web)(),
        name="rewards",
        num_replicas=int(settings.get("replicas", "1")),
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={
            "num_gpus": float(settings.get("gpus", "0")),
            "num_cpus": float(settings.get("cpus", "1")),
        },
    )
    return rewards.bind()
