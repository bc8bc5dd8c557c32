import json

import pytest

from data.checking import check
from data.errors import FileError

GOOD = {"prompt": "q", "responses": ["x", "y"], "votes": [{"rater": "a", "choice": 0}, {"rater": "b", "choice": 1}]}


def test_a_report_counts_rows_reasons_raters_and_responses(lines):
    three = {"prompt": "q", "responses": ["x", "y", "z"]}
    path = lines(GOOD, "{", GOOD, {**GOOD, "responses": ["x"]}, {**GOOD, "responses": ["y"]}, three)
    report = check(path).json()
    reasons = report.pop("reasons")
    examples = report.pop("examples")
    assert report == {
        "file": path,
        "read_as": "comparisons",
        "shape": "prompt, responses, votes (our own shape)",
        "rows": 6,
        "usable": 3,
        "unusable": 3,
        "distinct": 2,
        "judged": 2,
        "responses": {"2": 2, "3": 1},
        "raters": 2,
    }
    assert sorted(reasons.values()) == [1, 2]
    assert reasons["responses: expected 2 to 9 responses, got 1"] == 2
    assert [example.split(": ")[0] for example in examples] == ["rows.jsonl:2", "rows.jsonl:4", "rows.jsonl:5"]


def test_a_report_is_json(lines):
    report = check(lines(GOOD)).json()
    assert json.loads(json.dumps(report)) == report


def test_reasons_stay_whole_where_the_file_name_has_a_colon(lines):
    report = check(lines(GOOD, {**GOOD, "responses": []}, name="my: rows.jsonl"))
    assert list(report.unusable) == ["responses: expected 2 to 9 responses, got 0"]


def test_a_report_shows_only_a_few_examples(lines):
    report = check(lines(GOOD, *["{"] * 20))
    assert report.json()["unusable"] == 20
    assert len(report.examples) == 5


def test_a_report_in_lines_says_the_same(lines):
    path = lines(GOOD, GOOD, "{")
    head, numbers, responses, unusable, *rest = check(path).lines()
    assert head == f"{path}: comparisons, read as prompt, responses, votes (our own shape)"
    assert numbers == "3 rows, 2 usable, 1 distinct; 2 rows judged by 2 rater(s)"
    assert responses == "responses a row: 2 in 2"
    assert unusable == "1 unusable rows:"
    assert rest[0].startswith("  1 x broken JSON: ")
    assert rest[-1].startswith("  rows.jsonl:3: broken JSON: ")


def test_a_clean_file_has_no_word_on_unusable_rows(lines):
    assert len(check(lines(GOOD)).lines()) == 3


def test_single_responses_are_checked_too(lines):
    path = lines(*({"prompt": "q", "response": text, "ratings": [{"harmful": False}]} for text in "xyy"))
    report = check(path).json()
    assert (report["read_as"], report["rows"], report["distinct"], report["judged"]) == ("responses", 3, 2, 3)
    assert report["responses"] == {"1": 3}


@pytest.mark.parametrize(
    ("row", "named", "kind"),
    [
        ({"q": "q", "l": "x", "r": "y", "v": "l"}, "prompt=q,a=l,b=r,human=v", "comparisons"),
        ({"q": "q", "t": "x"}, "prompt=q,response=t", "responses"),
    ],
)
def test_named_columns_are_checked(lines, row, named, kind):
    report = check(lines(row), named).json()
    assert (report["read_as"], report["usable"]) == (kind, 1)


def test_a_file_that_is_neither_says_what_comparisons_would_need(lines):
    with pytest.raises(FileError, match="cannot be read as comparisons: it has the columns body"):
        check(lines({"body": "x"}))


@pytest.mark.parametrize("name", ["missing.jsonl", "rows.txt"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(FileError, match=name):
        check(str(tmp_path / name))
