"""Requests and tokens a minute for each API key: buckets that fill evenly, as OpenAI's and Anthropic's do."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from provider_settings import Settings

FREE = (("requests", 30_000, 29_999, 0.002), ("tokens", 150_000_000, 149_999_000, 0.0))
"""What the headers say where nothing is limited."""

Row = tuple[str, int, int, float]


@dataclass(slots=True)
class Bucket:
    rate: float
    """A second."""
    size: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now

    def wait(self, amount: float) -> float | None:
        """Seconds until so much is there; None where it never is."""
        return None if amount > self.size else max(0.0, (amount - self.level) / self.rate)


@dataclass(frozen=True, slots=True)
class Short:
    """What there is too little of: `wait` is how many seconds it takes, None where the request never fits."""

    unit: str
    limit: int
    used: int
    wanted: int
    wait: float | None


@dataclass
class Limits:
    buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict[tuple[str, str], Bucket])

    def take(self, settings: Settings, key: str, tokens: int) -> Short | None:
        """Takes one request of so many tokens, or nothing where there is too little of either."""
        if not (settings.rpm or settings.tpm):
            return None
        now = time.monotonic()
        wanted = [("requests", settings.rpm, 1), ("tokens", settings.tpm, tokens)]
        held = [(self._bucket(settings, key, unit, limit, now), unit, limit, n) for unit, limit, n in wanted if limit]
        for bucket, unit, limit, amount in held:
            wait = bucket.wait(amount)
            if wait != 0:
                return Short(unit, limit, round(bucket.size - bucket.level), amount, wait)
        for bucket, _, _, amount in held:
            bucket.level -= amount
        return None

    def rows(self, settings: Settings, key: str) -> list[Row]:
        """For the headers: unit, limit, what is left, seconds until it is full again."""
        now = time.monotonic()
        rows: list[Row] = []
        for free, limit in zip(FREE, (settings.rpm, settings.tpm), strict=True):
            if not limit:
                rows.append(free)
                continue
            bucket = self._bucket(settings, key, free[0], limit, now)
            rows.append((free[0], limit, int(bucket.level), (bucket.size - bucket.level) / bucket.rate))
        return rows

    def _bucket(self, settings: Settings, key: str, unit: str, limit: int, now: float) -> Bucket:
        bucket = self.buckets.get((key, unit))
        if bucket is None:
            size = max(1.0, limit * settings.burst_seconds / 60)
            bucket = self.buckets[key, unit] = Bucket(limit / 60, size, size, now)
        bucket.fill(now)
        return bucket
