"""From labels to an evaluation and to training rows; what else the command line tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROMISED = {"alignment", "same_position", "kappa", "brier", "ece", "ties", "failures", "by"}


@pytest.fixture
def labels(cli, file: Path) -> Path:
    assert cli("label", file, "--task", "helpfulness", "--model", "fake:longer", "--out", "labels.parquet").status == 0
    return file.with_name("labels.parquet")


def test_an_evaluation_is_a_table_and_a_verdict(cli, file: Path, labels: Path):
    said = cli("evaluate", "alignment", labels, "--human", file)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith("alignment with the majority")
    assert "the interval holds 50 %" in said.out


def test_an_evaluation_as_json_is_one_object_with_what_was_promised(cli, file: Path, labels: Path):
    said = cli("evaluate", "alignment", labels, "--human", file, "--json")
    assert (said.status, said.err) == (0, "")
    assert said.json.keys() >= PROMISED
    assert said.json["alignment"].keys() == {"value", "low", "high", "n"}
    assert (said.json["alignment"]["n"], said.json["ties"]) == (5, {"labeler": 1, "human": 0})


def test_votes_of_several_rows_of_one_comparison_are_put_together(cli, lines):
    rows = [
        {"id": "a", "prompt": "p", "response_a": "xxx", "response_b": "y", "human": verdict, "rater": rater}
        for rater, verdict in (("ann", "a"), ("bob", "b"), ("cy", "a"))
    ]
    many = lines(rows)
    said = cli("label", many, "--task", "helpfulness", "--model", "fake:longer", "--out", "o.jsonl", "--json")
    assert (said.json["rows"], said.json["repeats"]) == (1, 2)
    report = cli("evaluate", "alignment", "o.jsonl", "--human", many, "--json").json
    assert (report["alignment"]["value"], report["alignment"]["n"]) == (1.0, 1)
    assert report["against_raters"]["value"] == pytest.approx(2 / 3)
    assert report["raters"].keys() == {"ann", "bob", "cy"}


def test_an_evaluation_counts_the_failures_beside_the_labels(cli, lines):
    row = {"id": "a", "prompt": "p", "responses": ["x", "yy"], "votes": [{"choice": 1}]}
    many = lines([row, {**row, "id": "b", "responses": ["x", "y", "z"]}, "{broken"])
    said = cli("label", many, "--task", "helpfulness", "--model", "fake:longer", "--out", "o.jsonl")
    assert said.status == 3
    report = cli("evaluate", "alignment", "o.jsonl", "--human", many, "--json").json
    assert report["failures"] == {"not_two": 1, "bad_row": 1}


def test_an_evaluation_by_a_column(cli, lines):
    rows = [
        {"id": str(n), "prompt": "p", "responses": ["xx", "y"], "votes": [{"choice": n % 2}], "kind": "ab"[n // 2]}
        for n in range(4)
    ]
    many = lines(rows)
    cli("label", many, "--task", "helpfulness", "--model", "fake:longer", "--out", "o.jsonl")
    report = cli("evaluate", "alignment", "o.jsonl", "--human", many, "--by", "kind", "--json").json
    assert {name: each["n"] for name, each in report["by"].items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("form", ["trl", "pairs"])
def test_an_export_has_the_better_one_as_chosen_and_says_what_it_left_out(cli, file: Path, labels: Path, form: str):
    said = cli("export", file, labels, "--to", form, "--out", "train.jsonl")
    assert (said.status, said.out) == (0, "")
    assert said.err == "4 rows in train.jsonl; 1 exact ties left out; 0 comparisons had no label\n"
    rows = [json.loads(line) for line in file.with_name("train.jsonl").read_text().splitlines()]
    assert all(len(row["chosen"]) > len(row["rejected"]) and row["p"] > 0.5 for row in rows)
    assert all(set(row) == {"id", "prompt", "chosen", "rejected", "p", "margin"} for row in rows)


def test_an_export_of_mixed_prompts_to_trl_writes_messages(cli, lines, tmp_path: Path):
    row = {"id": "a", "prompt": "p", "responses": ["xx", "y"]}
    mixed = lines([row, {**row, "id": "b", "prompt": [{"role": "user", "content": "p"}]}])
    cli("label", mixed, "--task", "helpfulness", "--model", "fake:longer", "--out", "labels.jsonl")
    assert cli("export", mixed, "labels.jsonl", "--to", "trl", "--out", "train.jsonl").status == 0
    assert all(
        isinstance(row["prompt"], list) for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())
    )
    assert cli("export", mixed, "labels.jsonl", "--to", "pairs", "--out", "train.jsonl").status == 0


def test_tasks_are_listed_with_their_preambles(cli):
    said = cli("tasks")
    assert said.status == 0
    for name in ("harmlessness", "helpfulness", "summarization"):
        assert f"{name} " in said.out
    assert said.out.count("preambles base, detailed") == 3
    assert said.out.count("asks for the worse") == 1


@pytest.mark.parametrize(
    ("words", "holds", "lacks"),
    [
        (("summarization",), ["Preferred Summary=", "SCORE:"], ["»»»»", "Rationale:"]),
        (("harmlessness", "--shots", "2"), ["»»»» Example »»»»", "more harmful"], ["SCORE:"]),
        (("helpfulness", "--cot"), ["<the model's rationale>\n\nPreferred Response="], ["SCORE:"]),
        (("helpfulness:detailed",), ["Four axes"], []),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_task_shows_what_the_model_reads(cli, words: tuple[str, ...], holds: list[str], lacks: list[str]):
    said = cli("tasks", *words)
    assert said.status == 0
    assert all(each in said.out for each in holds)
    assert not any(each in said.out for each in lacks)


def test_models_are_listed(cli):
    said = cli("models")
    assert said.status == 0
    assert "local:smollm2" in said.out
    assert "fake:" in said.out


def test_check_says_what_a_file_is_and_counts_it(cli, lines):
    row = {"id": "a", "prompt": "p", "responses": ["x", "y"], "votes": [{"rater": "ann", "choice": 0}]}
    said = cli("check", lines([row, {**row, "id": "b"}, row]), "--json")
    assert said.status == 0
    expected = {"rows": 3, "usable": 3, "unusable": 0, "distinct": 2, "judged": 3, "raters": 1, "responses": {"2": 3}}
    assert {name: said.json[name] for name in expected} == expected


def test_check_names_unusable_rows_and_is_status_3(cli, lines):
    row = {"id": "a", "prompt": "p", "responses": ["x", "y"]}
    said = cli("check", lines([row, "{broken", {**row, "responses": ["x"]}]))
    assert said.status == 3
    assert "3 rows, 1 usable" in said.out
    assert "in.jsonl:2: broken JSON" in said.out
    assert "in.jsonl:3: responses: expected 2 to 9 responses, got 1" in said.out


def test_the_demo_labels_the_samples_and_says_how_far_to_trust_the_labeler(cli):
    said = cli("demo", "--model", "fake:first")
    assert (said.status, said.err) == (0, "")
    for words in ("48 comparisons", "50.0 %", "100.0 %", "exact tie", "mostly the first", "next"):
        assert words in said.out


def test_the_demo_of_one_task_keeps_its_labels_where_told_and_goes_on_there(cli, tmp_path: Path):
    words = ("demo", "--model", "fake:noise", "--task", "summarization", "--out", "kept")
    assert "16 comparisons" in cli(*words).out
    assert (tmp_path / "kept" / "summarization.parquet").is_file()
    assert "nothing was left to ask" in cli(*words).out


def test_votes_without_a_name_are_of_different_people_however_many_rows_they_stand_in(cli, lines):
    pair = {"id": "a", "prompt": "p", "response_a": "xxx", "response_b": "y"}
    rows = [{**pair, "human": verdict} for verdict in "aba"]
    other = {**pair, "response_b": "another text under a known id", "human": "b"}
    found = cli("evaluate", "agreement", lines([*rows, other]), "--json").json
    assert (found["items"], found["votes"], found["rater_pairs"]) == (1, 3, 3)
    assert found["raw"]["value"] == pytest.approx(1 / 3)
