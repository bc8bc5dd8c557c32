"""What the server has done, for Prometheus and for the log: no text of a request is ever in it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
REWARDS = (-20, -10, -5, -2, *(each / 10 for each in range(-10, 11)), 2, 5, 10, 20)
"""Labelers' lie in [-1, 1]; a reward model's have no bounds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def defect(error: BaseException) -> str:
    """An error for the log: its kind and its place, without its message, which may quote what somebody sent."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"


class Metrics:
    """A registry of its own: several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._seconds = Histogram(
            "rlaif_request_seconds", "Time to answer a request.", ["path", "status"], buckets=SECONDS, registry=own
        )
        self._batches = Histogram("rlaif_batch_items", "Items in a call to the model.", buckets=SIZES, registry=own)
        self._rewards = Histogram("rlaif_reward", "Rewards that were given.", buckets=REWARDS, registry=own)
        self._outcomes = Counter(
            "rlaif_items", "Items by outcome: model, fallback, group-mean, or why there is no reward.",
            ["outcome"], registry=own,
        )  # fmt: skip
        self._hits = Counter("rlaif_cache_hits", "Items whose answer was known.", registry=own)
        self._joined = Counter("rlaif_joined", "Items that waited for the same question's answer.", registry=own)
        self._truncated = Counter("rlaif_truncated", "Answers to prompts that were cut to fit.", registry=own)
        self._queue = Gauge("rlaif_queue_items", "Items that wait for the model.", registry=own)
        self._flying = Gauge("rlaif_requests_in_flight", "Requests that wait for their answer.", registry=own)

    def queued(self, size: Callable[[], float]) -> None:
        self._queue.set_function(size)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._seconds.labels(path, str(status)).observe(seconds)

    def entered(self) -> None:
        self._flying.inc()

    def left(self) -> None:
        self._flying.dec()

    def batch(self, size: int) -> None:
        self._batches.observe(size)

    def hit(self) -> None:
        self._hits.inc()

    def truncated(self) -> None:
        self._truncated.inc()

    def joined(self) -> None:
        self._joined.inc()

    def rewarded(self, reward: float | None, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()
        if reward is not None:
            self._rewards.observe(reward)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def histogram(self) -> list[tuple[float, float]]:
        """(upper bound, count) of rewards, for the status page."""
        found: list[tuple[float, float]] = []
        before = 0.0
        for family in self._rewards.collect():
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    found.append((float(sample.labels["le"]), sample.value - before))
                    before = sample.value
        return found

    def outcomes(self) -> dict[str, int]:
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in self._outcomes.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
