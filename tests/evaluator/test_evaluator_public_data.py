"""Against figures that were counted from public data by other code (left out where the data is absent)."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluator_support import label

from data.reading import comparisons, merged_votes
from data.records import Comparison, Label, Vote
from evaluator.agreement import cohen_kappa, confusion
from evaluator.alignment import Alignment, evaluate, majority

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not (FOLDER / "CHECKS.json").is_file(), reason="the public test data is not here")


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    return json.loads((FOLDER / "CHECKS.json").read_text(encoding="utf-8"))["checks"]


def judged(folder: Path) -> tuple[list[Label], dict[str, Comparison], list[dict[str, str]]]:
    """A judge's verdicts as labels, the authors' labels as votes, and the verdicts as they are in the file."""
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    human = list(merged_votes(comparisons(str(folder.parents[2] / "dataset.json"))).values())
    orders = ("False", "True")
    verdicts = [{swap: row["results"][0][f"swap = {swap}"]["winner"] for swap in orders} for row in rows]
    labels = [
        # Verdicts are mapped back in the file; the second order showed output_2 first.
        label(row.id, float(said["False"] == "1"), float(said["True"] == "2"))
        for row, said in zip(human, verdicts, strict=True)
    ]
    return labels, {row.id: row for row in human}, verdicts


JUDGES = ["LLMBar/Natural | GPT-4/Rating", "LLMBar/Natural | LLaMA2/Vanilla"]
JUDGES += ["LLMBar/Adversarial/Neighbor | GPT-4/Rating", "LLMBar/Adversarial/Neighbor | LLaMA2/Vanilla"]


@pytest.mark.parametrize("name", JUDGES)
def test_published_judges_get_their_published_counts(name: str, checks: dict[str, Any]):
    data, judge = name.split(" | ")
    expected = checks["llmbar"]["judges"][name]
    labels, human, verdicts = judged(FOLDER / "llmbar" / data / "evaluators" / judge)
    found = evaluate(labels, human)
    items = expected["items"]
    assert found.alignment.value * items == pytest.approx(
        expected["correct_order_1"] / 2 + expected["correct_order_2"] / 2
    )
    assert found.ties["labeler"] == items - expected["consistent"]
    assert found.same_position is not None
    assert found.same_position.value == pytest.approx(1 - expected["consistent_pct"] / 100)
    best = np.array([majority(human[each.id].votes) for each in labels])
    for order, number in (("False", 1), ("True", 2)):
        said = np.array([int(each[order]) - 1 for each in verdicts])
        kappa = cohen_kappa(confusion(said, best, 3)[None])[0]
        assert kappa == pytest.approx(expected[f"kappa_order_{number}"], abs=1e-9)


def everyone(rows: dict[str, Comparison]) -> Alignment:
    return evaluate([label(identity, 0.9) for identity in rows], rows)


@pytest.mark.parametrize("data", ["LLMBar/Natural", "LLMBar/Adversarial/Manual", "LLMBar/Adversarial/GPTInst"])
def test_the_baseline_of_length_is_the_published_one_and_half_right_on_equal_lengths(data: str, checks: dict[str, Any]):
    expected = checks["llmbar"]["datasets"][data]
    found = everyone(merged_votes(comparisons(str(FOLDER / "llmbar" / data / "dataset.json")))).prefers_longer
    right = expected["longer_output_baseline_correct"] + expected["equal_length"] / 2
    assert (found.value * found.n, found.n) == (pytest.approx(right), expected["rows"])


def test_longer_harmless_replies_are_right_as_often_as_counted(checks: dict[str, Any]):
    rows = merged_votes(comparisons(str(FOLDER / "hh_rlhf_harmless" / "test.jsonl.gz")))
    expected = checks["hh_rlhf_harmless"]["longer_reply_baseline_accuracy_pct"]
    assert 100 * everyone(rows).prefers_longer.value == pytest.approx(expected, abs=0.11), (
        "5 of 2,312 rows are unusable"
    )


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


@pytest.mark.parametrize("model", ["gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct"])
def test_kappa_of_two_people_is_as_counted(model: str, checks: dict[str, Any]):
    with (FOLDER / "xstest" / "model_completions" / f"xstest_v2_completions_{model}.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    first, second = (np.array([int(row[f"annotation_{n}"][0]) - 1 for row in rows]) for n in (1, 2))
    kappa = cohen_kappa(confusion(first, second, 3)[None])[0]
    assert kappa == pytest.approx(checks["xstest"]["models"][model]["cohen_kappa"], abs=1e-9)
