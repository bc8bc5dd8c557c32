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
    """USD per million tokens. `cached` are input tokens that the provider read from its prompt cache, `written` those
    that it wrote there; without a price of their own they cost what other input does."""

    input: float
    output: float
    cached: float | None = None
    written: float | None = None

    def usd(self, tokens_in: int, tokens_out: int, *, cached: int = 0, written: int = 0) -> float:
        """The cost of one answer; `cached` and `written` tokens are among `tokens_in`."""
        read = self.input if self.cached is None else self.cached
        kept = self.input if self.written is None else self.written
        plain = (tokens_in - cached - written) * self.input
        return (plain + cached * read + written * kept + tokens_out * self.output) / 1e6


FREE = Price(0.0, 0.0)
"""Of what runs on a machine of one's own."""


def listed(provider: str, model: str, *, batch: bool = False) -> Price | None:
    """The table's price of a model, or of the model that it is a dated snapshot of; in a batch, where it has one."""
    rows = _table().get(provider, {})
    row = rows.get(model) or rows.get(_DATED.sub("", model))
    if row is None:
        return None
    if not batch or "batch_input" not in row:
        return Price(row["input"], row["output"], row.get("cached"), row.get("written"))
    share = row["batch_input"] / row["input"]  # what is cached is reduced as other input is
    cached, written = (row[name] * share if name in row else None for name in ("cached", "written"))
    return Price(row["batch_input"], row["batch_output"], cached, written)


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
