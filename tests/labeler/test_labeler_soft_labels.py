"""Soft labels from log-probabilities, against those that another project published (left out where they are absent)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prompts.answers import first_probability

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the public test data is not here")

COUNTS = {
    "alpaca-7b": {"1 + p": 95, "2 - p": 104, "no log-probabilities": 1},
    "gpt-3.5-turbo-1106": {"1 + p": 95, "2 - p": 104, "no log-probabilities": 1},
    "phi-2": {"1 + p": 94, "2 - p": 104, "no log-probabilities": 1, "one token": 1},
}


def kind_of(row: dict[str, Any]) -> str:
    """Which formula gives the stored preference; a KeyError where none does."""
    if row["raw_completion"] is None:
        return "no log-probabilities"
    top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
    values = {each["token"]: each["logprob"] for each in top}
    if "m" not in values or "M" not in values:
        return "one token"
    p = first_probability([values["m"], values["M"]])
    residuals = {"1 + p": abs(1 + p - row["preference"]), "2 - p": abs(2 - p - row["preference"])}
    best = min(residuals, key=residuals.__getitem__)
    assert residuals[best] < 1e-9, row["instruction"]
    return best


@pytest.mark.parametrize("model", COUNTS)
def test_published_soft_labels_are_reproduced(model: str):
    rows = json.loads((FOLDER / model / "annotations.first200.json").read_text(encoding="utf-8"))
    assert Counter(map(kind_of, rows)) == COUNTS[model]
