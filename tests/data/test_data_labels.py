import pytest

from data import tables
from data.errors import FileError
from data.labels import failures, labels
from data.records import Label, make


def label(identity, **changes):
    fields = {
        "id": identity,
        "p": 0.75,
        "choice": 0,
        "orders": [{"p_first": 0.5, "mass": 0.9, "rationale": "why"}, {"p_first": 0, "mass": 1}],
        "mass": 0.9,
        "same_position": False,
        "model": "m",
        "task": "t",
        "digest": "d",
        "tokens_in": 3,
        "tokens_out": 1,
        "usd": None,
        "seconds": 0.5,
        "method": "logprobs",
    }
    return make(Label, {**fields, **changes})


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_labels_are_read_back_whole(tmp_path, name):
    written = [label("a"), label("b", p=0.5, choice=None, same_position=None, usd=0.01, truncated=True)]
    tables.write(tmp_path / name, (each.model_dump(mode="json") for each in written))
    assert list(labels(str(tmp_path / name))) == written


def test_columns_of_others_do_not_disturb_a_label(lines):
    assert list(labels(lines({**label("a").model_dump(mode="json"), "note": "x"}))) == [label("a")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "responses": ["x", "y"]}, "not a label (made by `rlaif label`): id: missing"),
        ({**label("a").model_dump(mode="json"), "p": 1.5}, "not a label (made by `rlaif label`): p: "),
        ({**label("a").model_dump(mode="json"), "choice": 2}, "not a label (made by `rlaif label`): choice: "),
        ("{", "broken JSON"),
    ],
    ids=["comparison", "p", "choice", "broken"],
)
def test_a_row_that_is_no_label_is_named_with_its_place(lines, row, reason):
    path = lines(label("a").model_dump(mode="json"), row)
    with pytest.raises(FileError) as error:
        list(labels(path))
    assert str(error.value).startswith(f"{path}:2: {reason}")


def test_failures_beside_labels_are_counted_by_reason(lines):
    path = lines(label("a").model_dump(mode="json"))
    rows = [{"id": str(n), "reason": reason} for n, reason in enumerate(["too_long", "bad_row", "too_long"])]
    lines(*rows, "{", name="rows.jsonl.failures.jsonl")
    assert failures(path) == {"too_long": 2, "bad_row": 1}


@pytest.mark.parametrize("beside", [None, ""], ids=["missing", "empty"])
def test_without_a_failures_file_nothing_failed(tmp_path, beside):
    if beside is not None:
        (tmp_path / "t.parquet.failures.jsonl").write_text(beside)
    assert failures(str(tmp_path / "t.parquet")) == {}
