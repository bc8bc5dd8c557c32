"""What goes wrong, and when: a fault is drawn for each attempt from a hash of (seed, content, attempt), so that a job
meets the same faults whatever the order of its requests, and a retry can succeed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import blake2b

from provider_answers import JUNK_LOGS, Answer, Position, Tokens
from provider_settings import LOGPROBS, Settings

ABSURD = 86_400
"""Seconds."""

REFUSAL = "I'm sorry, but I cannot assist with that request."

OUTSIDE = "Both"

PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"

STATUS = {"http_500": 500, "http_503": 503, "http_529": 529}
"""Of the refusals that are not 429."""


@dataclass
class Faults:
    attempts: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])

    def drawn(self, settings: Settings, key: str, kinds: Collection[str]) -> str | None:
        """The fault of the next attempt at `key`, among `kinds`."""
        if not settings.faults:
            return None
        attempt = self.attempts[key]
        self.attempts[key] += 1
        if settings.fault_attempts and attempt >= settings.fault_attempts:
            return None
        left = int.from_bytes(blake2b(f"{settings.seed} {key} {attempt}".encode(), digest_size=8).digest()) / 2**64
        for name, rate in settings.faults.items():
            left -= rate
            if left < 0:
                return self.counted(name) if name in kinds else None
        return None

    def counted(self, name: str) -> str:
        self.counts[name] += 1
        return name


def retry_headers(settings: Settings, name: str) -> dict[str, str]:
    """What a refusal says about when to come back."""
    match name:
        case "rate_limit":
            return {"retry-after": f"{settings.retry_after:g}"}
        case "rate_limit_ms":
            return {"retry-after-ms": f"{settings.retry_after * 1000:.0f}"}
        case "rate_limit_absurd":
            return {"retry-after": str(ABSURD)}
        case _:
            return {}


def spoiled(answers: list[Answer], name: str | None) -> list[Answer]:
    """The answers as the fault leaves them; others than those of content change nothing."""
    if name == "fewer":
        return answers[:-1]
    for answer in answers:
        if name in LOGPROBS:
            _spoil_logprobs(answer, name)
        elif name in _SPOIL:
            _SPOIL[name](answer)
    return answers


def _spoil_logprobs(answer: Answer, name: str | None) -> None:
    if name == "no_logprobs":
        answer.positions = None
    for position in answer.positions or []:
        match name:
            case "nan":
                position.logprob, position.top = math.nan, [(token, math.nan) for token, _ in position.top]
            case "no_top":
                position.top = []
            case _:
                position.top = [position.top[0], *((token, -9999.0) for token, _ in position.top[1:])]
                position.logprob = dict(position.top).get(position.token, -9999.0)


def _outside(answer: Answer) -> None:
    """An answer without any label, also among the likely tokens."""
    answer.text, answer.finish, answer.stopped_by, answer.tokens = OUTSIDE, "stop", None, 1
    if answer.positions:
        names = (OUTSIDE, " Both", "Neither", " Neither", "Equal", "None", "Hmm", "Well", "Sorry", "As")
        names += ("an", "both", " both", "equal", "tie", "Tie", "##", "**", "\n", "It", "This", "That", "Yes", "No")
        top: Tokens = list(zip(names, JUNK_LOGS, strict=True))
        answer.positions = [Position(OUTSIDE, top[0][1], top)]


def _refused(answer: Answer) -> None:
    answer.text, answer.refusal, answer.finish, answer.stopped_by = None, REFUSAL, "stop", None
    answer.positions = None


def _null(answer: Answer) -> None:
    answer.text = None
    if answer.positions:
        answer.positions = []


_SPOIL: dict[str, Callable[[Answer], None]] = {"outside": _outside, "refusal": _refused, "null_content": _null}
