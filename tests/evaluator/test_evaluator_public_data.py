"""Against figures that were counted from public data by other code (left out where the data is absent).

What the command line says of the same files is in tests/cli/test_cli_published.py.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from data.records import Vote
from evaluator.alignment import majority

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not (FOLDER / "CHECKS.json").is_file(), reason="the public test data is not here")


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    return json.loads((FOLDER / "CHECKS.json").read_text(encoding="utf-8"))["checks"]


@pytest.mark.parametrize("question", ["overall", "informative"])
def test_majorities_of_six_raters_are_as_counted(question: str, checks: dict[str, Any]):
    with gzip.open(FOLDER / "summaries" / "pairwise_evaluation_results.json.gz") as file:
        votes = json.load(file)
    items: dict[Any, list[Vote]] = defaultdict(list)
    names = {True: 0, False: 1, "Equally Good": "tie"}
    for vote in votes:
        items[vote["article_id"], vote["writer_id"]].append(Vote(choice=names[vote[f"{question}_writer_better"]]))
    expected = checks["summaries"][question]["majority"]
    assert Counter(map(majority, items.values())) == {
        0: expected["True"],
        1: expected["False"],
        2: expected["no majority"] + expected["Equally Good"],
    }
