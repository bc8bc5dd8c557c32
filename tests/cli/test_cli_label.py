"""`rlaif label`, `score` and `rank` from a file to a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from data import tables
from labeler import fake
from labeler.fake import RULES

ASK = ("--task", "helpfulness", "--model", "fake:longer")
COUNTS = {"rows", "answered", "resumed", "failed", "repeats", "left_out", "other_jobs", "asked"}


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["o.jsonl", "o.parquet", "o.jsonl.gz"])
def test_labels_are_written_in_the_order_of_the_file(cli, file: Path, name: str):
    said = cli("label", file, *ASK, "--out", name)
    assert (said.status, said.out) == (0, "")
    assert said.last.startswith(f"5 of 5 rows answered in {name}: 5 now")
    read = pl.read_parquet(name) if name.endswith("parquet") else pl.read_ndjson(name)
    assert read["id"].to_list() == [f"row {n}" for n in range(1, 6)]
    assert read["choice"].to_list() == [1, 1, None, 0, 0]


def test_json_is_one_object_on_standard_output(cli, file: Path):
    said = cli("label", file, *ASK, "--out", "o.jsonl", "--json")
    assert said.json.keys() >= COUNTS
    assert {name: said.json[name] for name in COUNTS} == {
        "rows": 5,
        "answered": 5,
        "resumed": 0,
        "failed": 0,
        "repeats": 0,
        "left_out": 0,
        "other_jobs": 0,
        "asked": 10,
    }


def test_a_second_run_resumes_and_says_so(cli, file: Path, tmp_path: Path):
    cli("label", file, *ASK, "--out", "o.jsonl", "--limit", "3")
    assert len(written(tmp_path / "o.jsonl")) == 3
    said = cli("label", file, *ASK, "--out", "o.jsonl", "--json")
    assert (said.status, said.json["asked"], said.json["resumed"]) == (0, 4, 3)
    again = cli("label", file, *ASK, "--out", "o.jsonl")
    assert again.status == 0
    assert "5 of 5 rows answered" in again.err
    assert "0 now" in again.err
    assert "5 before" in again.err


def test_answers_to_rows_that_a_run_does_not_read_stay_in_the_journal_and_are_told(cli, file: Path, tmp_path: Path):
    cli("label", file, *ASK, "--out", "o.jsonl")
    fewer = cli("label", file, *ASK, "--out", "o.jsonl", "--limit", "2")
    assert "3 answers of an earlier run, to rows that were not read now, stay in o.jsonl.journal" in fewer.err
    assert len(written(tmp_path / "o.jsonl")) == 2
    said = cli("label", file, *ASK, "--out", "o.jsonl", "--json").json
    assert (said["asked"], said["left_out"]) == (0, 0)
    assert len(written(tmp_path / "o.jsonl")) == 5


def test_a_terminal_sees_how_far_the_job_is(cli, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli("label", file, *ASK, "--out", "o.jsonl", "--limit", "2")
    said = cli("label", file, *ASK, "--out", "o.jsonl")
    assert (said.status, said.out) == (0, "")
    assert "5/5" in said.err
    assert "0 failed" in said.err


def test_fresh_asks_again(cli, file: Path):
    cli("label", file, *ASK, "--out", "o.jsonl")
    assert cli("label", file, *ASK, "--out", "o.jsonl", "--fresh", "--json").json["asked"] == 10


@pytest.mark.parametrize(
    "words",
    [
        ("--task", "harmlessness", "--model", "fake:longer"),
        ("--task", "helpfulness", "--model", "fake:second"),
        (*ASK, "--one-order"),
        (*ASK, "--cot"),
    ],
    ids=["task", "model", "one order", "cot"],
)
def test_another_job_on_the_same_file_never_mixes(cli, file: Path, tmp_path: Path, words: tuple[str, ...]):
    cli("label", file, *ASK, "--out", "o.jsonl")
    first = written(tmp_path / "o.jsonl")
    said = cli("label", file, *words, "--out", "o.jsonl")
    assert said.last.startswith("1 other job(s) stay in o.jsonl.journal")
    other = written(tmp_path / "o.jsonl")
    assert len(other) == 5
    assert {row["digest"] for row in other}.isdisjoint(row["digest"] for row in first)
    assert cli("label", file, *ASK, "--out", "o.jsonl", "--json").json["asked"] == 0
    assert written(tmp_path / "o.jsonl") == first


def test_an_own_task_that_was_edited_is_another_job(cli, file: Path, tmp_path: Path):
    own = tmp_path / "own.toml"
    text = (Path(fake.__file__).parents[1] / "prompts" / "tasks" / "helpfulness.toml").read_text()
    own.write_text(text)
    words = ("--task", own, "--model", "fake:noise", "--out", "o.jsonl", "--json")
    cli("label", file, *words)
    assert cli("label", file, *words).json["asked"] == 0
    own.write_text(text.replace("You are an expert rater", "You are a careful rater"))
    assert cli("label", file, *words).json["asked"] == 10


def test_a_model_that_says_nan_fails_every_row_and_is_status_3(cli, file: Path, tmp_path: Path):
    said = cli("label", file, "--task", "helpfulness", "--model", "fake:nan", "--out", "o.parquet")
    assert (said.status, said.last) == (3, "5 rows failed; see o.parquet.failures.jsonl")
    failures = written(tmp_path / "o.parquet.failures.jsonl")
    assert [(row["id"], row["reason"]) for row in failures] == [(f"row {n}", "nan") for n in range(1, 6)]
    assert pl.read_parquet("o.parquet").height == 0


def test_rows_that_failed_are_asked_again_and_their_file_goes(
    cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setitem(RULES, "noise", RULES["nan"])
        assert cli("label", file, "--task", "helpfulness", "--model", "fake:noise", "--out", "o.jsonl").status == 3
    said = cli("label", file, "--task", "helpfulness", "--model", "fake:noise", "--out", "o.jsonl")
    assert said.status == 0
    assert not (tmp_path / "o.jsonl.failures.jsonl").exists()


def test_repeated_rows_are_told(cli, lines):
    row = {"id": "a", "prompt": "p", "responses": ["a", "b"]}
    said = cli("label", lines([row, row, row]), *ASK, "--out", "o.jsonl")
    assert said.last.startswith("1 of 1 rows answered")
    assert "2 repeated rows counted once" in said.last


def test_columns_name_the_columns_of_other_tables(cli, tmp_path: Path):
    (tmp_path / "in.csv").write_text('question,left,right,verdict\nq,aaaa,"b\nc",left\n')
    words = ("--columns", "prompt=question,a=left,b=right,human=verdict")
    assert cli("label", "in.csv", *ASK, "--out", "o.jsonl", *words).status == 0
    said = cli("evaluate", "alignment", "o.jsonl", "--human", "in.csv", *words, "--json")
    assert said.json["alignment"]["value"] == 1.0


def test_options_reach_the_labels(cli, file: Path, tmp_path: Path):
    words = (
        "--cot",
        "--samples",
        "2",
        "--clamp",
        "0.45",
        "0.55",
        "--shots",
        "1",
        "--max-rationale",
        "20",
        "--seed",
        "3",
    )
    said = cli("label", file, "--task", "helpfulness", "--model", "fake:noise", *words, "--out", "o.jsonl", "--json")
    orders, samples = 2, 2
    texts, choices = 5 * orders * samples, 5 * orders  # the fake's rationales are all alike: one choice for all samples
    assert (said.status, said.json["asked"]) == (0, texts + choices)
    rows = written(tmp_path / "o.jsonl")
    assert all(0.45 <= float(str(row["p"])) <= 0.55 for row in rows)
    assert all(order["rationale"] for row in rows for order in row["orders"])  # pyright: ignore


def test_scores_are_written(cli, lines, tmp_path: Path):
    rows = lines({"id": str(n), "prompt": "p", "response": "r" * n} for n in range(3))
    said = cli("score", rows, "--task", "summarization", "--model", "fake:uniform", "--out", "o.jsonl", "--json")
    assert (said.status, said.json["asked"]) == (0, 3)
    scores = written(tmp_path / "o.jsonl")
    assert [(row["id"], row["score"]) for row in scores] == [(str(n), pytest.approx(5.5)) for n in range(3)]
    assert [row["reward"] for row in scores] == pytest.approx([0, 0, 0])


def test_rankings_are_written(cli, lines, tmp_path: Path):
    rows = lines([{"id": "a", "prompt": "p", "responses": ["x" * n for n in (10, 400, 90, 200)]}])
    said = cli("rank", rows, *ASK, "--out", "o.parquet", "--json")
    assert (said.status, said.json["asked"]) == (0, 12)
    (ranking,) = pl.read_parquet(tmp_path / "o.parquet").to_dicts()
    assert ranking["order"] == [1, 3, 2, 0]
    assert len(ranking["p"]) == len(ranking["strengths"]) == 4


def test_three_kinds_of_jobs_share_a_name_without_mixing(cli, lines, tmp_path: Path):
    rows = lines([{"id": "a", "prompt": "p", "responses": ["x", "yy"], "response": "x"}])
    for command in ("label", "rank", "score"):
        said = cli(command, rows, "--task", "helpfulness", "--model", "fake:uniform", "--out", "o.jsonl")
        assert said.status == 0
        (record,) = written(tmp_path / "o.jsonl")
        assert {"label": "choice", "rank": "order", "score": "reward"}[command] in record


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
import rlaif
rlaif.main(sys.argv[1:])
"""


def test_a_full_disk_is_one_line_and_nothing_kept_is_asked_again(cli, process, lines, tmp_path: Path):
    rows = lines({"id": str(n), "prompt": f"Question {n}?", "responses": ["a", "bb"]} for n in range(400))
    words = ("label", rows, *ASK, "--out", tmp_path / "o.parquet")
    assert "the disk is full" in process("-c", LIMITED, *words).complaint
    assert not (tmp_path / "o.parquet").exists()
    said = cli(*words, "--json")
    assert (said.status, said.json["rows"]) == (0, 400)
    assert said.json["resumed"] > 0
    assert said.json["answered"] == 400 - said.json["resumed"]
    assert said.json["asked"] <= 2 * said.json["answered"]
    assert pl.read_parquet(tmp_path / "o.parquet").height == 400


SLOW = """
import sys
from dataclasses import replace
from labeler import fake
opened = fake.open_fake
fake.open_fake = lambda rule: replace(opened(rule), seconds=0.05)
import rlaif
rlaif.main(sys.argv[1:])
"""


def test_control_c_says_where_the_work_is_and_loses_none(cli, lines, tmp_path: Path):
    rows = lines({"id": str(n), "prompt": f"Question {n}?", "responses": ["a", "bb"]} for n in range(400))
    words = ["label", str(rows), *ASK, "--out", str(tmp_path / "o.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words], env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "o.jsonl.journal-wal"
    while not (log.exists() and log.stat().st_size > 150_000):  # some batches are in it
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the same command goes on there" in err
    assert "Traceback" not in err
    said = cli(*words, "--json")
    assert said.json["resumed"] + said.json["answered"] == 400
    assert said.json["resumed"] > 0


@pytest.mark.parametrize("name", ["o.parquet", "o.jsonl"])
def test_an_output_of_many_pieces_is_written(cli, lines, tmp_path: Path, name: str):
    rows = lines([{"id": str(at), "prompt": f"p {at}", "responses": ["a", "b"]} for at in range(5000)])
    said = cli("label", rows, "--task", "helpfulness", "--model", "fake:noise", "--out", name)
    assert said.status == 0
    assert sum(1 for _ in tables.read(str(tmp_path / name))) == 5000
