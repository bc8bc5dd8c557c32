"""What is drawn together when items are resampled: everything about one prompt."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data.records import Comparison, Response
from evaluator.intervals import IntArray


def by_prompt(rows: Iterable[Comparison | Response]) -> IntArray | None:
    """A number for each row, the same for rows of one prompt, (N,); None where every row has its own, or all have the
    same, and rows are the items."""
    numbers: dict[object, int] = {}
    found = np.array([numbers.setdefault(row.prompt, len(numbers)) for row in rows], dtype=np.int64)
    return found if 1 < len(numbers) < len(found) else None
