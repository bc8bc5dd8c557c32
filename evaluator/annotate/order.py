"""In which order does a rater see things? Drawn by a hash, so it is the same after every restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.records import hashed


def shown(seed: int, rater: str, key: str, count: int) -> tuple[int, ...]:
    """Which response stands at each place, for this rater and item."""
    return tuple(sorted(range(count), key=lambda response: hashed([str(seed), rater, key, str(response)])))


def queue(seed: int, rater: str, keys: Sequence[str]) -> Iterator[int]:
    """The numbers of all items in this rater's order, put in order when the first is asked for (seconds for a million).

    An item that is added to the file moves no other."""
    yield from sorted(range(len(keys)), key=lambda number: hashed([str(seed), rater, keys[number]]))
