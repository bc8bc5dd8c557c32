"""How the stand-in provider behaves: settings from the command line, `provider(...)` or POST /_control."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints

REFUSALS = (
    "rate_limit",
    "rate_limit_bare",
    "rate_limit_ms",
    "rate_limit_absurd",
    "quota",
    "http_500",
    "http_503",
    "http_529",
)
"""Faults that are a well-formed error answer."""

WIRE = ("slow", "disconnect", "disconnect_body", "truncated", "empty", "html_502")
"""Faults of the connection or of the bytes."""

LOGPROBS = ("no_logprobs", "nan", "no_top", "minus_9999")
"""Faults of log-probabilities; no effect where none are asked for."""

CONTENT = (*LOGPROBS, "outside", "fewer", "refusal", "null_content")
"""Faults of what the model says, in an answer that is otherwise well-formed."""

ROWS = ("row_missing", "row_duplicated", "row_expired", "row_errored", "row_unknown_id")
"""Faults of one row of a batch."""

BATCHES = ("batch_expired", "batch_truncated")
"""Faults of a whole batch: half of its rows are done, or its results end in the middle of a line."""

FAULTS = (*REFUSALS, *WIRE, *CONTENT, *ROWS, *BATCHES)


@dataclass(frozen=True)
class Settings:
    """`faults` are rates that sum to 1 at most. `next` names faults (None: no fault) for the very next requests."""

    keys: list[str] = field(default_factory=list[str])
    """API keys that are accepted; empty accepts any, but not none."""
    models: list[str] = field(default_factory=list[str])
    """Models that exist; empty means all but names that begin with "missing"."""
    latency: float = 0.0
    """Seconds before each good answer."""
    context: int = 128_000
    """Tokens of the prompt and the answer together."""
    rpm: int = 0
    """Requests a minute for each API key, enforced; 0 has no limit."""
    tpm: int = 0
    """Tokens (of the prompt and max_tokens) a minute for each API key, enforced; 0 has no limit."""
    burst_seconds: float = 60.0
    """How many seconds' worth of rpm and tpm can be spent at once."""
    cache_minimum: int = 0
    """Shorter prompts (in tokens) are never counted as cached; real providers have 1024 and more."""
    vary_repeats: bool = False
    """The k-th good answer to the very same request is its k-th sample; else each is the same."""
    seed: int = 0
    """Of the faults; what the model says never depends on it."""
    faults: dict[str, float] = field(default_factory=dict[str, float])
    fault_attempts: int = 0
    """Faults hit the first so many attempts at each content; 0 means all."""
    fault_on: list[str] = field(default_factory=lambda: ["ask"])
    """Which endpoints have faults of the wire: "ask", "batch" (files too), "models", "count"."""
    fault_seconds: float = 1.0
    """How long `slow` is."""
    retry_after: float = 1.0
    """What `rate_limit` and `rate_limit_ms` tell, in seconds."""
    next: list[str | None] = field(default_factory=list[str | None])
    batch_seconds: float = 0.2
    """From a batch's creation to its end; it is validated for the first fifth."""
    max_batch_requests: int = 0
    """0 is what the real ones have: 50,000 (OpenAI), 100,000 (Anthropic)."""
    max_batch_bytes: int = 0
    """0 is what the real ones have: 200 MB (OpenAI), 256 MB (Anthropic)."""
    max_enqueued_tokens: int = 0
    """Of all batches of OpenAI's that are under way; a batch that goes beyond it fails. 0 has no limit."""


NAMES = {each.name: each for each in fields(Settings)}


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Raises ValueError where a setting or a fault is not known, or rates are none."""
    unknown = sorted(set(changes) - set(NAMES))
    if unknown:
        raise ValueError(f"no such setting: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    result = replace(settings, **changes)
    strange = sorted(({*result.faults, *result.next} - {None}) - set(FAULTS))
    if strange:
        raise ValueError(f"no such fault: {', '.join(map(str, strange))}; there are {', '.join(FAULTS)}")
    if any(not 0 <= rate <= 1 for rate in result.faults.values()) or sum(result.faults.values()) > 1 + 1e-9:
        raise ValueError("faults are rates from 0 to 1 that sum to 1 at most")
    return replace(result, next=list(result.next))


def parsed(words: Sequence[str]) -> tuple[Settings, int]:
    """Settings and the port from the command line: one option for each setting, lists and tables as JSON."""
    parser = argparse.ArgumentParser(description="A stand-in for OpenAI's and Anthropic's servers.")
    parser.add_argument("--port", type=int, default=0)
    for name, hint in get_type_hints(Settings).items():
        read = hint if hint in (int, float) else json.loads
        parser.add_argument(f"--{name.replace('_', '-')}", type=read, default=argparse.SUPPRESS)
    values = vars(parser.parse_args(words))
    port = values.pop("port")
    return changed(Settings(), values), port


def words_for(settings: Mapping[str, Any]) -> list[str]:
    """The command line that `parsed` reads as these settings."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", json.dumps(value))]
