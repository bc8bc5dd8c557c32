"""What does a token cost? The price table (prices.toml), or what the user says."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import RlaifError

TABLE = Path(__file__).parent / "prices.toml"
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


@dataclass(frozen=True)
class Price:
    """USD per million tokens. `cached` are input tokens that the provider read from its prompt cache."""

    input: float
    output: float
    cached: float | None = None

    def usd(self, tokens_in: int, cached: int, tokens_out: int) -> float:
        """The cost of one answer; `cached` tokens are among `tokens_in`."""
        reused = self.input if self.cached is None else self.cached
        return ((tokens_in - cached) * self.input + cached * reused + tokens_out * self.output) / 1e6


def listed(provider: str, model: str) -> Price | None:
    """The table's price of a model, or of the model that it is a dated snapshot of."""
    rows = _table().get(provider, {})
    row = rows.get(model) or rows.get(_DATED.sub("", model))
    return None if row is None else Price(row["input"], row["output"], row.get("cached"))


def given(text: str) -> Price:
    """`IN,OUT` or `IN,OUT,CACHED` in USD per million tokens. Raises RlaifError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in {2, 3} or not all(0 <= number < float("inf") for number in numbers):
        raise RlaifError(f"--price {text}: expected IN,OUT or IN,OUT,CACHED in USD per million tokens, as 0.15,0.6")
    return Price(*numbers)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text("utf-8"))
