"""All that the stand-in remembers: settings, what it was asked, its caches, files and batches."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from provider_caches import Caches
from provider_faults import Faults
from provider_limits import FREE, Limits
from provider_settings import Settings, changed


@dataclass
class Seen:
    """`answered` counts, by the key of a question, the right answers that were given whole."""

    requests: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    keys: Counter[str] = field(default_factory=Counter[str])
    answered: Counter[str] = field(default_factory=Counter[str])
    asked: int = 0
    asked_again: int = 0
    """Questions that came although they had been answered rightly before."""
    in_flight: int = 0
    max_in_flight: int = 0
    bugs: list[str] = field(default_factory=list[str])
    """Tracebacks of the stand-in itself."""

    def question(self, key: str) -> None:
        self.asked += 1
        self.asked_again += key in self.answered

    def view(self, *, answers: bool) -> dict[str, Any]:
        found = {**vars(self), "answered_distinct": len(self.answered), "answered_total": self.answered.total()}
        if not answers:
            del found["answered"]
        return found


@dataclass
class State:
    settings: Settings
    seen: Seen = field(default_factory=Seen)
    faults: Faults = field(default_factory=Faults)
    limits: Limits = field(default_factory=Limits)
    caches: Caches = field(default_factory=Caches)
    files: dict[str, Any] = field(default_factory=dict[str, Any])
    batches: dict[str, Any] = field(default_factory=dict[str, Any])
    count: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _free: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict[str, tuple[int, dict[str, str]]])

    def fresh(self, prefix: str) -> str:
        """An id that was not given before."""
        self.count += 1
        return f"{prefix}{self.count:016x}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that goes on by itself; what it raises is a bug of the stand-in."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.seen.bugs.append("".join(traceback.format_exception(error)))

    def limit_headers(self, wire: ModuleType, key: str) -> dict[str, str]:
        if self.settings.rpm or self.settings.tpm:
            return wire.limit_headers(self.limits.rows(self.settings, key))
        now = int(time.time())
        known = self._free.get(wire.WIRE)
        if known is None or known[0] != now:
            known = self._free[wire.WIRE] = (now, wire.limit_headers(FREE))
        return known[1]

    def change(self, changes: dict[str, Any]) -> None:
        """New settings; `reset` forgets what was counted and cached (files and batches stay). Raises ValueError."""
        forget = changes.pop("reset", False)
        self.settings = changed(self.settings, changes)
        if forget or {"rpm", "tpm", "burst_seconds"} & set(changes):
            self.limits = Limits()
        if forget:
            self.seen, self.faults, self.caches = Seen(), Faults(), Caches()
