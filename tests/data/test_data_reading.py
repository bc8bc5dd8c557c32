import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import FileError
from data.reading import PEEK, comparisons, merged_votes, open_comparisons, open_responses, responses
from data.records import Comparison, Failure, Vote

GOOD = {"prompt": "q", "responses": ["x", "y"]}


def row(identity, *votes, responses=("x", "y"), prompt="q"):
    return Comparison(id=identity, prompt=prompt, responses=responses, votes=votes)


def test_an_unusable_row_names_its_file_and_line_and_the_rest_is_read(lines):
    found = list(comparisons(lines(GOOD, "{", "", {**GOOD, "responses": []}, {"other": 1}, GOOD)))
    assert [type(each) for each in found] == [Comparison, Failure, Failure, Failure, Comparison]
    assert [each.id for each in found[1:4]] == ["rows.jsonl:2", "rows.jsonl:4", "rows.jsonl:5"]
    broken, short, other = (each.message for each in found[1:4])
    assert broken.startswith("rows.jsonl:2: broken JSON: ")
    assert short == "rows.jsonl:4: responses: expected 2 to 9 responses, got 0"
    assert other == "rows.jsonl:5: columns other; expected prompt, responses, votes (our own shape)"
    assert {(each.stage, each.reason, each.attempts) for each in found[1:4]} == {("read", "bad_row", 1)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", json.dumps([GOOD, 5, {"prompt": "q"}])),
        ("t.csv", "prompt,response_a,response_b,human\nq,x,y,a\nq,x,y,z\n,x,y,a\n"),
    ],
    ids=["json", "csv"],
)
def test_where_there_are_no_lines_the_row_is_counted(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    good, *bad = comparisons(str(tmp_path / name))
    assert isinstance(good, Comparison)
    assert [each.id for each in bad] == [f"{name}:2", f"{name}:3"]
    assert all(each.message.startswith(f"{each.id}: ") for each in bad)


def test_the_shape_is_that_of_the_first_row_that_has_one(lines):
    found = list(comparisons(lines("{", {"other": 1}, GOOD)))
    assert [isinstance(each, Failure) for each in found] == [True, True, False]


@pytest.mark.parametrize("broken", ["{", {"other": 1}], ids=["broken", "other-columns"])
def test_a_file_is_given_up_on_after_many_rows_without_a_shape(lines, broken):
    *failures, last = comparisons(lines(*[broken] * (PEEK - 1), GOOD))
    assert len(failures) == PEEK - 1
    assert isinstance(last, Comparison)
    with pytest.raises(FileError):
        list(comparisons(lines(*[broken] * PEEK, GOOD)))


def test_a_file_of_broken_lines_names_the_first(lines):
    with pytest.raises(FileError, match=r"rows\.jsonl:1: no usable row: broken JSON"):
        open_comparisons(lines("{", "["))


@pytest.mark.parametrize(
    ("opening", "what", "hint"),
    [
        (open_comparisons, "comparisons", "--columns prompt=COLUMN,a=COLUMN,b=COLUMN,human=COLUMN"),
        (open_responses, "responses", "--columns prompt=COLUMN,response=COLUMN"),
    ],
)
def test_an_unknown_table_is_refused_with_its_columns_and_what_would_do(lines, opening, what, hint):
    path = lines({"text": "x", "score": 1})
    with pytest.raises(
        FileError, match=f"cannot be read as {what}: it has the columns score, text; expected "
    ) as error:
        opening(path)
    assert str(error.value).endswith(f"{hint} (in training: --data.columns)")


@pytest.mark.parametrize("reader", [comparisons, responses])
def test_a_missing_file_is_refused(tmp_path, reader):
    with pytest.raises(FileError, match="no such file"):
        list(reader(str(tmp_path / "missing.jsonl")))


def test_rows_are_read_only_as_they_are_asked_for(lines):
    reading = open_comparisons(lines(*[{**GOOD, "id": str(n)} for n in range(50)]))
    assert next(reading.rows).id == "0"
    assert len(list(reading.rows)) == 49


def test_votes_of_rows_with_one_id_are_put_together():
    first, second, third = Vote(rater="a", choice=0), Vote(rater="b", choice="tie"), Vote(rater="c", choice=1)
    found = merged_votes(iter([row("1", first), row("2", second), row("1", second, third)]))
    assert found == {"1": row("1", first, second, third), "2": row("2", second)}


def test_failures_have_no_votes_to_merge():
    failure = Failure(id="t:1", stage="read", reason="bad_row", message="")
    assert merged_votes(iter([failure, row("1")])) == {"1": row("1")}


@pytest.mark.parametrize("other", [{"responses": ("x", "z")}, {"prompt": "else"}], ids=["responses", "prompt"])
def test_of_an_id_that_names_two_comparisons_the_first_counts_as_in_a_job(other):
    assert merged_votes(iter([row("1"), row("1", **other)])) == {"1": row("1")}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, "tie"]))))
def test_merging_keeps_every_vote_in_the_order_of_the_file(given_votes):
    found = merged_votes(row(name, Vote(choice=choice)) for name, choice in given_votes)
    for name in "abc":
        expected = [choice for each, choice in given_votes if each == name]
        assert [vote.choice for vote in found[name].votes] == expected if expected else name not in found
