"""What has a job asked and spent, and may it go on?"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from data.errors import RlaifError
from labeler.backend import Usage


class BudgetError(RlaifError):
    """The job has spent what it may; what was answered is in the journal."""


class DeadlineError(RlaifError):
    """The job has run for as long as it may; what was answered is in the journal."""


@dataclass
class Meter:
    """What has been asked and what it cost so far."""

    asked: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)

    def add(self, other: Meter) -> None:
        self.asked += other.asked
        self.failed += other.failed
        self.usage += other.usage

    def since(self, before: Meter) -> Meter:
        """What has been counted since then."""
        return Meter(self.asked - before.asked, self.failed - before.failed, self.usage - before.usage)


@dataclass(frozen=True)
class Spending:
    """`usd` that the job may spend, and the `end` until which it may ask, by time.monotonic; None has no end."""

    meter: Meter = field(default_factory=Meter)
    usd: float | None = None
    end: float | None = None

    def check(self) -> None:
        """Before each request. Raises BudgetError or DeadlineError: at most what is in flight then goes beyond."""
        if self.usd is not None and (spent := self.meter.usage.usd or 0.0) >= self.usd:
            raise BudgetError(
                f"--budget {self.usd:g}: this run has spent ${spent:.4f}; what was answered is kept, and the same"
                " command goes on there, with a budget of its own"
            )
        if self.end is not None and time.monotonic() >= self.end:
            raise DeadlineError("--deadline has come; what was answered is kept, and the same command goes on there")

    def waste(self, usage: Usage) -> None:
        """Count an answer that was of no use: it was paid for."""
        self.meter.usage += usage
