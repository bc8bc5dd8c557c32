"""Real files, where they stand beside the project; their figures are those of CHECKS.json there."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import data
from data.checking import check
from data.reading import comparisons, merged_votes, responses
from data.records import Comparison

SHARED = Path(data.__file__).parents[2] / "shared" / "data"
CHECKS = json.loads((SHARED / "CHECKS.json").read_text())["checks"] if (SHARED / "CHECKS.json").exists() else {}

pytestmark = pytest.mark.skipif(not CHECKS, reason="the shared data is not there")

SUMMARIES = "prompt=article_text,a=writer_summary,b=text-davinci-002_summary,human={}_writer_better,rater=evaluator_id"
LLMBAR = [
    "LLMBar/Natural",
    *(f"LLMBar/Adversarial/{name}" for name in ("GPTInst", "GPTOut", "Manual", "Neighbor")),
    *(f"Processed/{name}" for name in ("FairEval", "LLMEval^2", "MT-Bench")),
]
JUDGED = ["alpaca-7b", "gpt-3.5-turbo-1106", "phi-2"]
XSTEST = ["gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct"]


@cache
def rows(name, named=None):
    return list(comparisons(str(SHARED / name), named))


def hh():
    return [row for row in rows("hh_rlhf_harmless/test.jsonl.gz") if isinstance(row, Comparison)]


def lengths(row):
    """Of the reply that was voted for, and of the other."""
    [vote] = row.votes
    return len(row.responses[vote.choice]), len(row.responses[1 - vote.choice])


def longer_is_right(found):
    return sum((right > wrong) + 0.5 * (right == wrong) for right, wrong in map(lengths, found))


def test_hh_rows_are_read_but_for_those_that_do_not_share_the_prompt():
    expected = CHECKS["hh_rlhf_harmless"]
    found = rows("hh_rlhf_harmless/test.jsonl.gz")
    bad = [row.message for row in found if not isinstance(row, Comparison)]
    assert len(found) == expected["rows"] == 2312
    assert len(hh()) == expected["rows_where_both_sides_share_the_prompt"] == 2307
    assert [message.split(": ")[0] for message in bad] == [
        f"test.jsonl.gz:{line}" for line in (1255, 1689, 1951, 1953, 2037)
    ]
    assert all("do not share the prompt" in message for message in bad)


def test_the_longer_hh_reply_is_the_better_one_as_often_as_in_the_raw_rows():
    assert longer_is_right(hh()) == 1026.5
    assert sum(text == "" for row in hh() for text in row.responses) == 4
    assert len({row.prompt for row in hh()}) == 2305


def test_hh_prompts_hold_all_turns_before_the_last_reply():
    turns = Counter(sum(message.role == "user" for message in row.prompt) for row in hh())
    assert turns[1] == 661
    assert {count for count in turns if count > 9} == {10, 11, 12, 18}
    assert all(row.prompt[-1].role == "user" for row in hh())


def test_the_better_hh_reply_stands_first_in_half_of_the_rows():
    first = sum(row.votes[0].choice == 0 for row in hh())
    assert abs(first - 2307 / 2) < 3 * (2307 / 4) ** 0.5


@pytest.mark.parametrize("name", LLMBAR)
def test_llmbar_labels_are_indices(name):
    expected = CHECKS["llmbar"]["datasets"][name]
    found = rows(f"llmbar/{name}/dataset.json")
    assert Counter(row.votes[0].choice for row in found) == {0: expected["label_1"], 1: expected["label_2"]}
    assert longer_is_right(found) == expected["longer_output_baseline_correct"] + expected["equal_length"] / 2


@pytest.mark.parametrize("name", JUDGED)
def test_preferences_of_a_judge_are_votes(name):
    expected = CHECKS["alpaca_eval"]["models"][name]["first_200"]
    found = rows(f"alpaca_eval/{name}/annotations.first200.json")
    votes = {0: expected["n_wins_base"], 1: expected["n_wins"], "tie": expected["n_draws"]}
    assert Counter(vote.choice for row in found for vote in row.votes) == votes
    assert {row.models for row in found} == {("gpt4_1106_preview", name)}
    assert {vote.rater for row in found for vote in row.votes} == {"weighted_alpaca_eval_gpt4_turbo"}
    assert {"dataset", "raw_completion", "price_per_example"} <= found[0].meta.keys()


@pytest.mark.parametrize("question", ["overall", "informative"])
def test_votes_on_summaries_are_read_through_named_columns(question):
    expected = CHECKS["summaries"]
    counts = expected[question]["counts"]
    found = rows("summaries/pairwise_evaluation_results.json.gz", SUMMARIES.format(question))
    votes = {0: counts["True"], 1: counts["False"], "tie": counts["Equally Good"]}
    assert Counter(vote.choice for row in found for vote in row.votes) == votes
    merged = merged_votes(iter(found))
    assert len(merged) == expected["items"] == 112
    assert Counter(len(row.votes) for row in merged.values()) == {1: 12, 5: 13, 6: 87}


def test_a_check_of_the_summaries_counts_votes_items_and_raters():
    path = str(SHARED / "summaries/pairwise_evaluation_results.json.gz")
    report = check(path, SUMMARIES.format("overall")).json()
    assert {name: report[name] for name in ("rows", "usable", "distinct", "judged", "raters")} == {
        "rows": 599,
        "usable": 599,
        "distinct": 112,
        "judged": 599,
        "raters": 6,
    }


@pytest.mark.parametrize("model", XSTEST)
def test_completions_with_line_breaks_in_their_cells_are_read(model):
    path = SHARED / f"xstest/model_completions/xstest_v2_completions_{model}.csv"
    found = list(responses(str(path)))
    assert [row.id for row in found] == [f"v2-{number}" for number in range(1, 451)]
    assert {row.meta["final_label"][0] for row in found} <= set("123")
    assert any("\n" in row.response for row in found)
