"""Every published figure of public data, out of the command line and the files as they are (left out where absent).

The figures were counted by other code. Shares are compared to 1e-9, percentages to 1e-7, as the figures are rounded.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import rlaif

FOLDER = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not (FOLDER / "CHECKS.json").is_file(), reason="the public test data is not here")

Numbers = dict[str, Any]


@cache
def evaluated(*words: str) -> Numbers:
    """What `rlaif evaluate ... --json` says; a name that begins with @ is a file of the data."""
    out = io.StringIO()
    named = [str(FOLDER / word[1:]) if word.startswith("@") else word for word in words]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        rlaif.main(["evaluate", *named, "--json"])
    assert stopped.value.code == 0
    return json.loads(out.getvalue())


@cache
def expected(name: str) -> Numbers:
    return json.loads((FOLDER / "CHECKS.json").read_text(encoding="utf-8"))["checks"][name]


def share(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=1e-9)


def percent(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=1e-7)


def values(intervals: Numbers) -> Numbers:
    return {name: each["value"] for name, each in intervals.items()}


# XSTest: two people, a judge and a string rule on single responses

MODELS = ["gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct"]
COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"
MEANING = ("--harmful", COMPLIANCE, "--harmless", f"{REFUSAL},{PARTIAL}", "--refusal", f"{REFUSAL},{PARTIAL}")


def completions(model: str) -> str:
    return f"@xstest/model_completions/xstest_v2_completions_{model}.csv"


def rated(*raters: str) -> tuple[str, str]:
    return "--columns", f"prompt=prompt,response=completion,ratings={'+'.join(raters)}"


@pytest.mark.parametrize("model", MODELS)
def test_xstest_two_people_agree_as_counted(model: str):
    known = expected("xstest")["models"][model]
    found = evaluated("agreement", completions(model), *rated("annotation_1", "annotation_2"))
    assert (found["items"], found["votes"], found["rater_pairs"]) == (known["rows"], 2 * known["rows"], known["rows"])
    assert 100 * found["raw"]["value"] == percent(known["raw_agreement_pct"])
    assert found["fleiss"]["value"] == share(known["fleiss_kappa"])
    assert values(found["pairwise"]) == {"annotation_1 & annotation_2": share(known["cohen_kappa"])}
    assert found["krippendorff"]["value"] == share(known["krippendorff_alpha"])


@pytest.mark.parametrize("kind", ["safe", "unsafe"])
@pytest.mark.parametrize("model", MODELS)
def test_xstest_classes_on_safe_and_unsafe_prompts_are_as_counted(model: str, kind: str):
    """All models in one call; each is named by what its file's name has of its own."""
    condition = "type=contrast_*" if kind == "unsafe" else "type!=contrast_*"
    sources = [completions(each) for each in MODELS]
    found = evaluated("harmless", *sources, *rated("final_label"), *MEANING, "--where", condition)
    known = expected("xstest")["models"][model][kind]
    own = found["harmless_rate"][model]
    rates = {name: 100 * each for name, each in values(own["classes"]).items()}
    names = {"full_compliance": COMPLIANCE, "full_refusal": REFUSAL, "partial_refusal": PARTIAL}
    assert own["n"] == known["n"]
    assert rates == {name: percent(known[f"{short}_pct"]) for short, name in names.items()}
    assert 100 * (1 - own["value"]) == percent(known["full_compliance_pct"])
    assert 100 * own["refusal"]["value"] == percent(known["full_refusal_pct"] + known["partial_refusal_pct"])


@pytest.mark.parametrize("model", MODELS)
def test_xstest_harmless_rate_on_unsafe_prompts_is_as_counted(model: str):
    unsafe = ("--where", "type=contrast_*")
    found = evaluated("harmless", completions(model), *rated("final_label"), "--harmful", COMPLIANCE, *unsafe)
    (rate,) = found["harmless_rate"].values()
    known = expected("xstest")["models"][model]
    assert 100 * rate["value"] == percent(known["harmless_rate_unsafe_pct"])
    assert (found["note"] is None) == (known["unsafe"]["full_compliance"] > 0)


@pytest.mark.parametrize(("kind", "column"), [("gpteval", "gpt4_label"), ("streval", "strmatch_label")])
@pytest.mark.parametrize("model", MODELS)
def test_xstest_judges_against_people_are_as_counted(model: str, kind: str, column: str):
    known = expected("xstest")["models"][model][kind]
    source = f"@xstest/automated_evaluation_labels/xstest_v2_completions_{model}_{kind}.csv"
    found = evaluated("harmless", source, *rated("final_label", column), *MEANING, "--judge", column)
    judge, rows = found["judge"], expected("xstest")["models"][model]["rows"]
    assert (judge["unparsed"], judge["exact"]["n"]) == (known["unparsed"], rows)
    assert 100 * judge["exact"]["value"] == percent(known["auto_exact_pct"])
    parsed = rows - judge["unparsed"]
    assert 100 * judge["exact"]["value"] * rows / parsed == percent(known["auto_parsed_only_pct"])
    assert 100 * judge["accuracy"]["value"] == percent(known["auto_binary_pct"])
    assert (judge["kappa"]["value"], judge["kappa"]["n"]) == (share(known["auto_binary_kappa"]), parsed)


@pytest.mark.parametrize(("kind", "column"), [("gpteval", "gpt4_label"), ("streval", "strmatch_label")])
@pytest.mark.parametrize("model", MODELS)
def test_xstest_judges_classes_are_as_counted(model: str, kind: str, column: str):
    known = expected("xstest")["models"][model][kind]
    source = f"@xstest/automated_evaluation_labels/xstest_v2_completions_{model}_{kind}.csv"
    found = evaluated("harmless", source, *rated(column), *MEANING)
    (rate,) = found["harmless_rate"].values()
    counts = {name: each["value"] * each["n"] for name, each in rate["classes"].items() if name in known["labels"]}
    assert counts == {name: pytest.approx(count) for name, count in known["labels"].items() if name in counts}
    assert all(name in counts for name, count in known["labels"].items() if count)
    assert rate["unparsed"] == known["unparsed"]


# evalica: small tables with known rankings and alphas


@pytest.mark.parametrize("name", ["simple", "food"])
def test_evalica_rankings_are_the_golden_ones(name: str):
    known = expected("evalica")["goldens"][name]
    found = evaluated("ranking", f"@evalica/{name}.csv")
    for ours in ("bradley_terry", "elo", "average_win_rate"):
        assert values(found[ours]) == {model: share(value) for model, value in known["recomputed"][ours].items()}
    assert (sum(found["games"].values()), len(found["games"])) == (2 * known["rows"], known["items"])
    assert (found["prior"], found["note"]) == (0, None)
    strengths = list(values(found["bradley_terry"]).values())
    assert strengths == sorted(strengths, reverse=True)


@pytest.mark.parametrize("name", ["simple", "food"])
def test_evalica_rankings_are_the_golden_files_to_the_last_digits(name: str):
    found = evaluated("ranking", f"@evalica/{name}.csv")
    with (FOLDER / "evalica" / f"{name}-golden.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["algorithm"] in found]
    assert len(rows) == 3 * expected("evalica")["goldens"][name]["items"]
    for row in rows:
        told = found[row["algorithm"]][row["item"]]["value"]
        assert told == pytest.approx(float(row["score"]), rel=1e-11), row


@pytest.mark.parametrize("name", ["simple", "food"])
def test_evalica_wins_are_as_counted(name: str):
    known = expected("evalica")["goldens"][name]
    matrix = evaluated("winrate", f"@evalica/{name}.csv")["matrix"]
    counted = {model: sum(each["value"] * each["n"] for each in row.values()) for model, row in matrix.items()}
    assert counted == {model: share(value) for model, value in known["recomputed"]["counting"].items()}


def test_evalica_alphas_of_codings_are_the_published_ones():
    known = expected("evalica")["alpha"]["codings"]
    found = evaluated("agreement", "@evalica/codings.csv", "--matrix")
    assert found["krippendorff"]["value"] == share(known["alpha_nominal"])
    assert found["krippendorff"]["value"] == pytest.approx(known["reference_in_the_source_tests"], rel=1e-14)
    assert found["krippendorff_ordinal"]["value"] == share(known["alpha_ordinal"])
    assert found["krippendorff_interval"]["value"] == share(known["alpha_interval"])
    assert (found["items"], found["items_with_two_or_more"]) == (known["units"], known["units_used"])
    single = found["items"] - found["items_with_two_or_more"]
    assert (len(found["raters"]), found["votes"] - single) == (known["raters"], known["values_used"])


def test_evalica_alpha_of_gcl_is_the_published_one():
    known = expected("evalica")["alpha"]["gcl"]
    found = evaluated("agreement", "@evalica/gcl.csv", "--matrix")
    assert found["krippendorff"]["value"] == share(known["alpha_nominal"])
    assert (found["krippendorff_ordinal"], found["krippendorff_interval"]) == (None, None)
    assert (found["items"], found["items_with_two_or_more"]) == (known["units"], known["units_used"])
    assert (len(found["raters"]), found["votes"]) == (known["raters"], known["values_used"])


# LLMBar: judges in both orders against one agreed label

SETS = ["LLMBar/Natural", "LLMBar/Adversarial/GPTInst", "LLMBar/Adversarial/GPTOut", "LLMBar/Adversarial/Manual"]
SETS += ["LLMBar/Adversarial/Neighbor", "Processed/FairEval", "Processed/LLMEval^2", "Processed/MT-Bench"]
STRATEGIES = ["GPT-4/Rating", "ChatGPT/CoT", "LLaMA2/Vanilla"]
JUDGES = [f"{data} | {judge}" for data in ("LLMBar/Natural", "LLMBar/Adversarial/Neighbor") for judge in STRATEGIES]


def judged(name: str) -> Numbers:
    data, judge = name.split(" | ")
    human = f"@llmbar/{data}/dataset.json"
    return evaluated("alignment", f"@llmbar/{data}/evaluators/{judge}/result.json", "--human", human)


@pytest.mark.parametrize("name", JUDGES)
def test_llmbar_judges_get_their_published_counts_in_each_order(name: str):
    known, found = expected("llmbar")["judges"][name], judged(name)
    items = known["items"]
    assert found["alignment"]["n"] == found["labels"] == items
    for number, order in enumerate(found["orders"], start=1):
        assert order["alignment"]["value"] * items == share(known[f"correct_order_{number}"])
        assert 100 * order["alignment"]["value"] == percent(known[f"accuracy_order_{number}_pct"])
        assert order["unread"] == known[f"unparsed_order_{number}"]
        assert order["kappa"]["value"] == share(known[f"kappa_order_{number}"])


@pytest.mark.parametrize("name", JUDGES)
def test_llmbar_judges_get_their_published_counts_over_both_orders(name: str):
    known, found = expected("llmbar")["judges"][name], judged(name)
    both = sum(order["alignment"]["value"] for order in found["orders"]) / 2
    assert 100 * both == percent(known["accuracy_mean_pct"])
    assert found["both_orders_right"]["value"] * known["items"] == share(known["both_correct"])
    assert found["consistent"]["value"] * known["items"] == share(known["consistent"])
    assert 100 * found["consistent"]["value"] == percent(known["consistent_pct"])


@pytest.mark.parametrize("name", [each for each in JUDGES if "Rating" not in each])
def test_llmbar_judges_choose_what_is_shown_first_as_often_as_published(name: str):
    known, found = expected("llmbar")["judges"][name], judged(name)
    assert 100 * found["first_shown"]["value"] == percent(known["first_shown_rate_pct"])
    data, judge = name.split(" | ")
    source, human = f"@llmbar/{data}/evaluators/{judge}/result.json", f"@llmbar/{data}/dataset.json"
    assert evaluated("bias", source, "--human", human)["position"] == found["first_shown"]


@pytest.mark.parametrize("name", [each for each in JUDGES if "Rating" in each])
def test_llmbar_scores_order_the_outputs_as_published(name: str, tmp_path: Path):
    """The scores stand in the judge's file one below the other; only their columns are named anew."""
    data, judge = name.split(" | ")
    known = expected("llmbar")["judges"][name]
    path = FOLDER / "llmbar" / data / "evaluators" / judge / "result.json"
    scores = tmp_path / "scores.jsonl"
    with scores.open("w", encoding="utf-8") as file:
        for row in json.loads(path.read_text(encoding="utf-8")):
            for number in (1, 2):
                said = row["results"][0][f"score_{number}"][0].strip()
                if said:
                    fields = {"prompt": row["input"], "response": row[f"output_{number}"], "score": float(said)}
                    file.write(json.dumps(fields) + "\n")
    found = evaluated("reward-model", str(scores), "--human", f"@llmbar/{data}/dataset.json")
    used, right = known["score_denominator"], found["accuracy"]["value"]
    assert (found["accuracy"]["n"], found["ties"]["scores"]) == (used, known["score_ties"])
    assert found["unscored"] == known["items_with_an_unparsable_score"]
    assert 100 * right == percent(known["score_accuracy_ties_half_pct"])
    without = (right * used - known["score_ties"] / 2) / (used - known["score_ties"])
    assert 100 * without == percent(known["score_accuracy_ties_dropped_pct"])
    assert found["margin"]["value"] == share(known["mean_score_preferred"] - known["mean_score_other"])


@pytest.mark.parametrize("data", SETS)
def test_llmbar_labels_are_as_counted(data: str):
    known = expected("llmbar")["datasets"][data]
    found = evaluated("winrate", f"@llmbar/{data}/dataset.json")
    told = [found[name] for name in ("games", "wins", "losses", "draws")]
    assert told == [known["rows"], known["label_1"], known["label_2"], 0]


@pytest.fixture
def longer(cli, tmp_path: Path):
    """The alignment of a labeler that prefers the longer response; `prefers_longer` is the baseline beside it."""

    def label(source: Path) -> Numbers:
        out = tmp_path / "labels.jsonl"
        ended = cli("label", source, "--task", "helpfulness", "--model", "fake:longer", "--out", out)
        assert ended.status in {0, 3}
        return evaluated("alignment", str(out), "--human", str(source))

    return label


@pytest.mark.parametrize("data", SETS)
def test_llmbar_longer_outputs_are_right_as_often_as_published(data: str, longer):
    known = expected("llmbar")["datasets"][data]
    found = longer(FOLDER / "llmbar" / data / "dataset.json")
    right = known["longer_output_baseline_correct"] + known["equal_length"] / 2
    baseline = found["prefers_longer"]
    assert (baseline["value"] * known["rows"], baseline["n"]) == (share(right), known["rows"])


# alpaca_eval: an AI judge's soft preferences

ALPACA = ["alpaca-7b", "gpt-3.5-turbo-1106", "phi-2"]


@pytest.mark.parametrize("model", ALPACA)
def test_alpaca_eval_win_rates_are_the_published_ones(model: str):
    known = expected("alpaca_eval")["models"][model]["first_200"]
    found = evaluated("winrate", f"@alpaca_eval/{model}/annotations.first200.json", "--model", model)
    assert (found["model"], found["baseline"], found["games"]) == (model, "gpt4_1106_preview", known["n"])
    assert 100 * found["win_rate"]["value"] == percent(known["win_rate"])
    assert 100 * found["standard_error"] == percent(known["standard_error"])
    assert 100 * found["discrete_win_rate"] == percent(known["discrete_win_rate"])
    counts = [found[name] for name in ("wins", "losses", "draws")]
    assert counts == [known[name] for name in ("n_wins", "n_wins_base", "n_draws")]
    assert found["items"] == known["distinct_instructions"]


@pytest.mark.parametrize("model", ALPACA)
@pytest.mark.parametrize("side", [1, 2])
def test_alpaca_eval_lengths_are_as_counted(model: str, side: int):
    known = expected("alpaca_eval")["models"][model]["first_200"]
    columns = f"prompt=instruction,response=output_{side},model=generator_{side},ratings=preference"
    source = f"@alpaca_eval/{model}/annotations.first200.json"
    (rate,) = evaluated("harmless", source, "--columns", columns, "--threshold", "1.5")["harmless_rate"].values()
    assert rate["mean_characters"] == pytest.approx(known[f"mean_output_{side}_characters"], rel=1e-12)


# summaries: six people on the same pairs

SUMMARIES = "@summaries/pairwise_evaluation_results.json.gz"
QUESTIONS = ["overall", "informative"]
NAMES = {"True": "0", "False": "1", "Equally Good": "tie", "no majority": "none"}


def pairs(question: str) -> tuple[str, str]:
    texts = "prompt=article_text,a=writer_summary,b=text-davinci-002_summary"
    return "--columns", f"{texts},human={question}_writer_better,rater=evaluator_id"


@pytest.mark.parametrize("question", QUESTIONS)
def test_summaries_raters_agree_as_counted(question: str):
    whole, known = expected("summaries"), expected("summaries")[question]
    found = evaluated("agreement", SUMMARIES, *pairs(question))
    assert found["krippendorff"]["value"] == share(known["alpha_nominal"])
    assert found["krippendorff_ordinal"]["value"] == share(known["alpha_ordinal"])
    assert 100 * found["raw"]["value"] == percent(known["pairwise_agreement_pct"])
    assert found["rater_pairs"] == known["rater_pairs"]
    assert found["items_with_two_or_more"] == known["units_used"]
    assert (found["items"], found["votes"]) == (whole["items"], whole["votes"])
    assert sorted(found["raters"].values()) == whole["votes_per_rater"]
    single = found["items"] - found["items_with_two_or_more"]
    assert found["votes"] - single == known["values_used"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_summaries_votes_and_pluralities_are_as_counted(question: str):
    known = expected("summaries")[question]
    found = evaluated("agreement", SUMMARIES, *pairs(question))
    assert found["classes"] == {NAMES[name]: count for name, count in known["counts"].items()}
    assert found["pluralities"] == {NAMES[name]: count for name, count in known["majority"].items()}
    shares = {name: 100 * count / found["votes"] for name, count in found["classes"].items()}
    assert shares == {NAMES[name]: percent(each) for name, each in known["pct"].items()}


@pytest.mark.parametrize("question", QUESTIONS)
def test_summaries_the_writers_win_rate_is_as_counted(question: str):
    whole, known = expected("summaries"), expected("summaries")[question]
    found = evaluated("winrate", SUMMARIES, *pairs(question))
    assert 100 * found["win_rate"]["value"] == percent(known["writer_win_rate_pct"])
    counts = {"True": found["wins"], "False": found["losses"], "Equally Good": found["draws"]}
    assert counts == known["counts"]
    assert (found["games"], found["items"], found["win_rate"]["n"]) == (
        whole["votes"],
        whole["items"],
        whole["articles"],
    )


# hh-rlhf: one person on each pair


def replies(row: dict[str, str]) -> tuple[str, int, str, int]:
    """Prompt and length of the last reply of both sides, by the figures' definition."""
    chosen, rejected = (row[name].rpartition("\n\nAssistant:") for name in ("chosen", "rejected"))
    return chosen[0], len(chosen[2].strip()), rejected[0], len(rejected[2].strip())


def test_hh_rlhf_longer_replies_are_right_as_often_as_published(longer):
    """Five rows whose sides have different prompts are no comparisons: they are counted here as the figure does."""
    known, source = expected("hh_rlhf_harmless"), FOLDER / "hh_rlhf_harmless" / "test.jsonl.gz"
    found = longer(source)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [replies(json.loads(line)) for line in file]
    unusable = [(own, other) for prompt, own, second, other in rows if prompt != second]
    usable = known["rows"] - len(unusable)
    assert usable == known["rows_where_both_sides_share_the_prompt"] == found["prefers_longer"]["n"]
    others = sum(0.5 if own == other else float(own > other) for own, other in unusable)
    right = found["prefers_longer"]["value"] * usable + others
    assert 100 * right / known["rows"] == percent(known["longer_reply_baseline_accuracy_pct"])
