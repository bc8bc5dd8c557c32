"""What goes wrong is one line that says why and what to do, and an exit status that a script can tell apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import rlaif
from labeler.journal import Journal

ASK = ("--task", "helpfulness", "--model", "fake:noise")

GOOD = {"id": "good", "prompt": "p", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("label", "none.jsonl", *ASK, "--out", "o.jsonl"), "none.jsonl: no such file"),
        (("label", ".", *ASK, "--out", "o.jsonl"), "is a folder"),
        (("label", "{file}", "--task", "nosuch", "--model", "fake:noise", "--out", "o.jsonl"), "unknown task 'nosuch'"),
        (("label", "{file}", "--task", "helpfulness:no", "--model", "fake:noise", "--out", "o.jsonl"), "no preamble"),
        (("label", "{file}", "--task", "own.toml", "--model", "fake:noise", "--out", "o.jsonl"), "no such task file"),
        (("label", "{file}", "--task", "helpfulness", "--model", "oracle:x", "--out", "o.jsonl"), "unknown kind"),
        (("label", "{file}", "--task", "helpfulness", "--model", "smollm2", "--out", "o.jsonl"), "KIND:NAME"),
        (("label", "{file}", "--task", "helpfulness", "--model", "fake:nosuch", "--out", "o.jsonl"), "unknown rule"),
        (("label", "{file}", *ASK, "--out", "no/o.jsonl"), "the folder no does not exist"),
        (("label", "{file}", *ASK, "--out", "o.xlsx"), "ends in .parquet, .jsonl or .jsonl.gz"),
        (("label", "{file}", *ASK, "--out", "."), "expected a name"),
        (("label", "{file}", *ASK, "--out", "o.jsonl", "--samples", "4"), "--samples needs --cot"),
        (("label", "{file}", *ASK, "--out", "o.jsonl", "--shots", "99"), "exemplars"),
        (("label", "{file}", *ASK, "--out", "o.jsonl", "--cot", "--clamp", "0.6", "0.4"), "--clamp expects LOW HIGH"),
        (("label", "{file}", *ASK, "--out", "o.jsonl", "--columns", "nonsense"), "NAME=COLUMN"),
        (("label", "{file}", *ASK, "--out", "o.jsonl", "--columns", "prompt=x"), "also needed: a=COLUMN, b=COLUMN"),
        (("score", "{file}", *ASK, "--out", "o.jsonl", "--cot"), "for comparisons"),
        (("tasks", "nosuch"), "unknown task"),
        (("tasks", "helpfulness", "--shots", "99"), "exemplars"),
        (("check", "none.jsonl"), "no such file"),
        (("demo", "--model", "fake:first", "--task", "nosuch"), "the samples are for"),
        (("evaluate", "alignment", "none.parquet", "--human", "{file}"), "none.parquet: no such file"),
        (("evaluate", "alignment", "{file}", "--human", "{file}"), "not a label"),
        (("export", "{file}", "none.parquet", "--to", "trl", "--out", "o.jsonl"), "none.parquet: no such file"),
        (("export", "{file}", "{file}", "--to", "trl", "--out", "o.txt"), "ends in .parquet"),
    ],
    ids=lambda each: " ".join(map(str, each))[:70] if isinstance(each, tuple) else "",
)
def test_what_cannot_be_done_is_one_line_and_status_1(cli, file: Path, words: tuple[str, ...], message: str):
    assert message in cli(*(word.replace("{file}", str(file)) for word in words)).complaint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b"", "the file is empty"),
        ("in.jsonl", b"\n \n", "no rows in it"),
        ("in.json", b"[]", "no rows in it"),
        ("in.json", b'{"prompt": "p"}', "expected a JSON array"),
        ("in.json", b'[{"prompt": ', "broken JSON"),
        ("in.jsonl", b"{broken\n", "in.jsonl:1: no usable row: broken JSON"),
        ("in.jsonl", b"\xff\xfe\n", "not UTF-8"),
        ("in.jsonl", b'{"id": 1, "prompt": "p"}\n', "cannot be read as comparisons"),
        ("in.jsonl", b'{"question": "p", "left": "a", "right": "b"}\n', "--columns prompt=COLUMN,a=COLUMN,b=COLUMN"),
        ("in.parquet", b"PAR1 not really", "cannot be read as parquet"),
        ("in.jsonl.gz", b"not zipped", "cannot be read"),
        (
            "in.jsonl.gz",
            gzip.compress(b'{"prompt": "p", "responses": ["a", "b"]}\n' * 9, mtime=0)[:-9],
            "cannot be read",
        ),
        ("in.xlsx", b"x", "unknown format"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_file_that_cannot_be_read_is_one_line_and_status_1(
    cli, tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    assert message in cli("label", name, *ASK, "--out", "o.jsonl").complaint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "prompt": "p"}, "columns id, prompt"),
        ({"id": "x", "prompt": "p", "responses": ["only"]}, "expected 2 to 9 responses, got 1"),
        ({"id": "x", "prompt": "p", "responses": list("abcdefghij")}, "expected 2 to 9 responses, got 10"),
        ({"id": "x", "prompt": "p", "responses": ["a", "b", "c"]}, "needs exactly 2"),
        ({"id": "x", "prompt": "p", "responses": "ab"}, "expected a list of texts"),
        ({"id": "x", "prompt": None, "responses": ["a", "b"]}, "expected a text or a list of messages"),
        ({"id": "x", "prompt": "p", "responses": ["a", None]}, "responses.1"),
        ({"id": "x", "prompt": "p", "responses": ["a", "b"], "votes": [{"choice": 2}]}, "names no response"),
        ("[1, 2]", "expected a JSON object, got list"),
        ("{broken", "broken JSON"),
        (json.dumps({**GOOD, "responses": ["b", "a"]}), "id 'good' already stands for another prompt"),
        ('{"id": "\\ud800", "prompt": "p", "responses": ["a", "b"]}', ""),
        ('{"id": "x", "prompt": "\\ud83d cut in half", "responses": ["a", "b"]}', ""),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=[
        "no responses", "one response", "ten responses", "three responses", "a text for responses", "no prompt",
        "a response is null", "a vote for none", "a list", "broken JSON", "an id taken", "half a character in the id",
        "half a character in the prompt", "nested",
    ],
)  # fmt: skip
def test_a_bad_row_is_a_failure_that_stops_nothing(cli, lines, tmp_path: Path, row: Any, message: str):
    said = cli("label", lines([GOOD, row, {**GOOD, "id": "last"}]), *ASK, "--out", "o.jsonl", "--json")
    assert said.status in ({3} if message else {0, 3}), said
    labelled = [json.loads(line)["id"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert (labelled[0], labelled[-1]) == ("good", "last")
    assert said.json["answered"] + said.json["failed"] == 3
    if message:
        (failure,) = map(json.loads, (tmp_path / "o.jsonl.failures.jsonl").read_text().splitlines())
        assert message in failure["message"]
        assert said.last == "1 rows failed; see o.jsonl.failures.jsonl"


def test_a_failure_names_its_file_and_line(cli, lines, tmp_path: Path):
    rows = [{**GOOD, "id": str(n)} for n in range(1, 10)]
    said = cli("label", lines([*rows[:6], "{broken", *rows[6:]], "mine.jsonl"), *ASK, "--out", "o.parquet")
    assert (said.status, said.out) == (3, "")
    assert said.err.splitlines()[0].startswith("9 of 10 rows answered in o.parquet")
    (failure,) = map(json.loads, (tmp_path / "o.parquet.failures.jsonl").read_text().splitlines())
    assert failure["id"] == "mine.jsonl:7"
    assert failure["message"].startswith("mine.jsonl:7: broken JSON")
    assert (failure["stage"], failure["reason"]) == ("read", "bad_row")


def test_strict_stops_at_the_first_bad_row(cli, lines, tmp_path: Path):
    said = cli("label", lines([GOOD, "{broken"]), *ASK, "--out", "o.jsonl", "--strict")
    assert "in.jsonl:2: broken JSON" in said.complaint
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("label", "{file}", *ASK, "--out", "o.jsonl", "--smaples", "3"),
        ("label", "{file}", "--task", "helpfulness", "--out", "o.jsonl"),
        ("label", "{file}", *ASK),
        ("label", *ASK, "--out", "o.jsonl"),
        ("label", "{file}", *ASK, "--out", "o.jsonl", "--limit", "many"),
        ("label", "{file}", *ASK, "--out", "o.jsonl", "--dtype", "int3"),
        ("export", "{file}", "{file}", "--to", "csv", "--out", "o.jsonl"),
        ("evaluate", "alignment", "{file}"),
        ("nosuch",),
        ("evaluate", "nosuch"),
    ],
    ids=[
        "a typo", "no model", "no out", "no file", "a word for a number", "unknown dtype", "unknown form", "no human",
        "unknown command", "unknown evaluation",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2_and_asks_nothing(cli, file: Path, tmp_path: Path, words: tuple[str, ...]):
    said = cli(*(word.replace("{file}", str(file)) for word in words))
    assert (said.status, said.out) == (2, "")
    assert said.err
    assert "Traceback" not in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_limit_below_0_is_refused(cli, file: Path, tmp_path: Path):
    said = cli("label", file, *ASK, "--out", "o.jsonl", "--limit", "-1")
    assert said.status in {1, 2}
    assert "unexpected" not in said.err
    assert "limit" in said.err
    assert not (tmp_path / "o.jsonl").exists()


def test_labels_of_another_file_are_refused(cli, file: Path, lines):
    cli("label", file, *ASK, "--out", "o.jsonl")
    other = lines([{"id": "other", "prompt": "p", "responses": ["a", "b"], "votes": [{"choice": 0}]}], "other.jsonl")
    assert "same file" in cli("evaluate", "alignment", "o.jsonl", "--human", other).complaint


def test_human_rows_without_votes_are_refused(cli, lines):
    rows = lines([GOOD])
    cli("label", rows, *ASK, "--out", "o.jsonl")
    assert "have no votes" in cli("evaluate", "alignment", "o.jsonl", "--human", rows).complaint


def test_an_unknown_column_is_refused(cli, file: Path):
    cli("label", file, *ASK, "--out", "o.jsonl")
    assert "--by knid" in cli("evaluate", "alignment", "o.jsonl", "--human", file, "--by", "knid").complaint


def test_a_journal_in_use_is_one_line(cli, file: Path, tmp_path: Path):
    journal = Journal(tmp_path / "o.jsonl.journal", "somebody's")
    assert "in use by another run" in cli("label", file, *ASK, "--out", "o.jsonl").complaint
    journal.close()
    assert cli("label", file, *ASK, "--out", "o.jsonl").status == 0


def test_a_foreign_file_in_the_journals_place_is_one_line(cli, file: Path, tmp_path: Path):
    (tmp_path / "o.jsonl.journal").write_text("my diary\n" * 1000)
    assert "is not a journal of this program" in cli("label", file, *ASK, "--out", "o.jsonl").complaint
    assert (tmp_path / "o.jsonl.journal").read_text() == "my diary\n" * 1000


@pytest.mark.parametrize("command", ["label", "export"])
def test_an_output_in_place_of_an_input_is_refused(cli, file: Path, command: str):
    before = file.read_bytes()
    cli("label", file, *ASK, "--out", "labels.jsonl")
    words = {"label": (file, *ASK), "export": (file, "labels.jsonl", "--to", "trl")}[command]
    said = cli(command, *words, "--out", file)
    assert file.read_bytes() == before
    assert said.status == 1


def test_an_export_of_nothing_leaves_what_was_there(cli, file: Path, lines, tmp_path: Path):
    cli("label", file, *ASK, "--out", "labels.jsonl")
    (tmp_path / "train.jsonl").write_text("yesterday's work\n")
    other = lines([GOOD], "other.jsonl")
    said = cli("export", other, "labels.jsonl", "--to", "trl", "--out", "train.jsonl")
    assert said.status == 1
    assert "no comparison has a label that decides" in said.last
    assert (tmp_path / "train.jsonl").read_text() == "yesterday's work\n"


def test_what_nobody_expected_is_one_line_too(cli, monkeypatch: pytest.MonkeyPatch):
    def broken(text: str) -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("prompts.task.names", broken)
    said = cli("tasks")
    assert said.status == 1
    assert len(said.err.splitlines()) == 1
    assert "--debug" in said.err


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Exception, match="no such file"):
        rlaif.main(["check", "none.jsonl", "--debug"])
