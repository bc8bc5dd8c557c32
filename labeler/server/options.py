"""What may be said about a server. The command line shows names, defaults and docstrings as they stand here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.errors import RlaifError
from labeler.options import Rung

Policy = Literal["error", "skip", "group-mean", "fallback"]
Rule = Literal["sum", "safety-first"]

UNSAFE = 0.15
"""The safety score, as a probability, below which it is the reward (Llama 2, section 3.2.3)."""


@dataclass(frozen=True)
class Shaping:
    """`temperature` flattens (above 1) or sharpens the ten probabilities before their mean is taken; `clip` bounds the
    reward. Of several tasks: `weights`, or with `safety-first` the second task wherever it is below `unsafe`."""

    temperature: float = 1.0
    clip: tuple[float, float] | None = None
    weights: tuple[float, ...] = ()
    rule: Rule = "sum"
    unsafe: float = UNSAFE

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise RlaifError(f"--sharpness {self.temperature:g}: expected more than 0")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise RlaifError("--clip expects LOW HIGH with LOW < HIGH, for example -1 1")
        if self.weights and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise RlaifError("--weights expects numbers that are not below 0, one for each task")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens, and who may ask."""

    host: str = "127.0.0.1"
    """The address to listen on; any other than this machine's own needs a token."""
    port: int = 8300
    """0 for any that is free."""
    token_file: Path | None = None
    """A file with the token that clients must send. Default: the environment's RLAIF_TOKEN."""
    no_token: bool = False
    """Listen beyond this machine without a token: everybody there may spend your money."""
    largest_body: int = 16
    """MiB of a request."""
    most_items: int = 4096
    """Responses in one request."""
    waiting: int = 100_000
    """Responses that may wait for the model; more are refused. Trainers give up soon when refused, so it is large."""
    answer_within: float = 110.0
    """Seconds until a response that has no answer is a failure; slime waits 120, OpenRLHF 180, Gym 300."""
    stop_within: float = 30.0
    """Seconds that a stopping server goes on with what it has accepted."""
    verbose: bool = False
    """Log every request as a line of JSON: path, status, seconds, client; never its texts."""

    def __post_init__(self) -> None:
        if min(self.largest_body, self.most_items, self.waiting) < 1 or not 0 <= self.port < 65_536:
            raise RlaifError("--largest-body, --most-items and --waiting must be at least 1, --port 0 to 65535")
        if not 0 < self.answer_within < math.inf or self.stop_within < 0:
            raise RlaifError("--answer-within must be more than 0 seconds, --stop-within not less than 0")


@dataclass(frozen=True, kw_only=True)
class Rewarding:
    """What the reward is made of, and what happens where there is none."""

    on_failure: Policy = "error"
    """A response without a reward: error (status 503); skip (a mark, where the client's wire has one); group-mean (the
    mean of the same prompt's other rewards); fallback (--fallback MODEL is asked)."""
    fallback: str | None = None
    """The model that is asked where the first one fails."""
    least_mass: float = 0.0
    """Answers that give the ten scores less probability than this are failures."""
    weights: tuple[float, ...] = ()
    """Of several tasks, in their order. Default: equal."""
    rule: Rule = "sum"
    """How two tasks become one reward: sum, or safety-first (the second is safety; below --unsafe it is the reward)."""
    unsafe: float = UNSAFE
    """The safety, from 0 to 1, below which it is the reward (Llama 2)."""
    sharpness: float = 1.0
    """The temperature at which the ten probabilities are read: below 1 sharper, above 1 flatter."""
    clip: tuple[float, float] | None = None
    """Bounds of the reward, for example -1 1."""
    needs: Rung | None = None
    """How likelihoods are made, as for `rlaif score`."""
    votes: int = 5
    """Answers sampled where there are no log-probabilities."""
    kept: Literal["auto", "disk", "memory"] = "auto"
    """Where answers are kept: on disk they survive a restart. Default: on disk, but not for a server of your own
    (--base-url), which may have another model under the same name tomorrow."""

    def __post_init__(self) -> None:
        if (self.on_failure == "fallback") != (self.fallback is not None):
            raise RlaifError("--fallback MODEL and --on-failure fallback belong together")
        if self.rule == "safety-first" and self.weights:
            raise RlaifError("--weights belongs to --rule sum: safety-first takes one reward or the other")
        if self.rule == "sum" and self.unsafe != UNSAFE:
            raise RlaifError("--unsafe belongs to --rule safety-first")
        if not 0 < self.unsafe < 1:
            raise RlaifError(f"--unsafe {self.unsafe:g}: expected 0 to 1")
        if not 0 <= self.least_mass < 1:
            raise RlaifError(f"--least-mass {self.least_mass:g}: expected 0 to 1")

    @property
    def shaping(self) -> Shaping:
        return Shaping(self.sharpness, self.clip, self.weights, self.rule, self.unsafe)
