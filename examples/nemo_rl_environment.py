"""An environment for NeMo-RL whose rewards come from `rlaif serve`.

Put this file where NeMo-RL's Python finds it, and before `create_env` in your launcher:

    ACTOR_ENVIRONMENT_REGISTRY["nemo_rl_environment.RewardServer"] = PY_EXECUTABLES.SYSTEM
    register_env("rlaif", "nemo_rl_environment.RewardServer")

In the configuration: `env: {rlaif: {url: "http://127.0.0.1:8300"}}`, and `env_name: rlaif` for the data.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn


@ray.remote
class RewardServer(EnvironmentInterface):
    """One step, one reward. The whole batch is one request: the server asks its model about all of it at once."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.url, self.patience = config["url"].rstrip("/"), float(config.get("patience", 600))
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise ValueError(f"url: {self.url}: expected http://HOST:PORT")

    def step(self, message_log_batch: list[list[dict[str, Any]]], metadata: list[Any]) -> EnvironmentReturn:
        rewards = self._rewards(message_log_batch)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in rewards],
            metadata=metadata,
            next_stop_strings=[None] * len(rewards),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            terminateds=torch.ones(len(rewards), dtype=torch.bool),
            answers=[log[-1]["content"] for log in message_log_batch],
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        return batch, {}

    def _rewards(self, logs: list[list[dict[str, Any]]]) -> list[float]:
        """NeMo-RL's prompts have the marks of the chat template in them; `/get_reward` reads those. A failure ends the
        run, unless the server has a policy for it: a 0 would be a wrong reward."""
        prompts = ["".join(message["content"] for message in log[:-1]) for log in logs]
        queries = [prompt + log[-1]["content"] for prompt, log in zip(prompts, logs, strict=True)]
        body = json.dumps({"query": queries, "prompts": prompts}).encode()
        end, pause = time.monotonic() + self.patience, 0.5
        while True:
            try:
                request = Request(f"{self.url}/get_reward", body, {"Content-Type": "application/json"})  # noqa: S310
                with urlopen(request, timeout=self.patience) as answer:  # noqa: S310
                    return json.load(answer)["rewards"]
            except OSError as error:  # the server is away, or has no reward now (503)
                if time.monotonic() + pause > end or (isinstance(error, HTTPError) and error.code < 500):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 10)
