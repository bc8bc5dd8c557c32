"""What is drawn together when items are resampled: everything about one prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np

from data.records import Comparison, Response
from evaluator.intervals import IntArray


def numbered(keys: Iterable[Hashable]) -> IntArray:
    """A number for each, the same for equal ones, from 0 as they come, (N,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def by_prompt(rows: Iterable[Comparison | Response]) -> IntArray | None:
    """The numbers of the rows' prompts; None where every row has its own, or all have the same, and rows are the
    items."""
    found = numbered(row.prompt for row in rows)
    return found if len(found) and 0 < found.max() < len(found) - 1 else None
