"""What a rater said of an item, and where the rater is after all that was said: state is history replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from data.errors import RlaifError
from data.records import Record, Strength, make

Choice: TypeAlias = Annotated[int, Field(ge=0, strict=True)] | Literal["tie", "skip", "harmful", "harmless"]


class Verdict(Record):
    """One answer. `choice` counts responses as the file does, whatever order was shown; `shown` is that order."""

    choice: Choice
    strength: Strength | None = None
    shown: tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """One entry of the history: a rater's verdict on an item, or None where it was taken back."""

    rater: str
    key: str
    verdict: Verdict | None


def verdict(form: Mapping[str, str], shown: tuple[int, ...]) -> Verdict:
    """The verdict of a submitted form, in which a choice is the place where the response stood. Raises RlaifError."""
    said = form.get("choice", "")
    others = ("skip", "tie") if len(shown) > 1 else ("skip", "harmful", "harmless")
    if said in others:
        return make(Verdict, {"choice": said, "shown": shown})
    if len(shown) > 1 and said in map(str, range(len(shown))):
        strength = form.get("strength") or None
        return make(Verdict, {"choice": shown[int(said)], "strength": strength, "shown": shown})
    raise RlaifError(f"choice: expected {', '.join(others)} or a response's place, got {said[:20]!r}")


@dataclass
class Standing:
    """Where one rater is: what is judged, and what comes next."""

    queue: Iterator[int]
    """All items in this rater's order."""
    done: dict[int, Verdict] = field(default_factory=dict[int, Verdict])
    """By item number, in the order of judging."""
    again: dict[int, None] = field(default_factory=dict[int, None])
    """What was taken back and is not judged anew: the last one comes first."""
    _first: int | None = None

    def take(self, number: int, verdict: Verdict | None) -> None:
        """One fact of the history. The only place where a standing changes."""
        if verdict is None:
            self.done.pop(number, None)
            self.again[number] = None
        else:
            self.again.pop(number, None)
            self.done[number] = verdict

    def current(self) -> int | None:
        """The item to judge now; None when all are judged."""
        if self.again:
            return next(reversed(self.again))
        while self._first is None or self._first in self.done:
            self._first = next(self.queue, None)
            if self._first is None:
                return None
        return self._first

    def last(self) -> tuple[int, Verdict] | None:
        """What an undo takes back."""
        return next(reversed(self.done.items()), None)

    def skipped(self) -> list[int]:
        return [number for number, each in self.done.items() if each.choice == "skip"]
