"""`rlaif label` with a model behind a server: the stand-in provider, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "provider"))

from provider_settings import Settings
from running import Provider, provider

PROJECT = Path(__file__).parents[2]
KEY = "sk-recognisable-0f3a9c77d1e24b58"
ROWS = 60
MIXED = (
    *("rate_limit", "rate_limit_bare", "rate_limit_ms", "http_500", "http_503", "disconnect", "truncated"),
    *("html_502", "no_logprobs", "nan", "no_top", "fewer"),
)
ASKED = "POST /v1/chat/completions"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Provider]:
    with provider() as it:
        yield it


@pytest.fixture
def it(stand_in: Provider, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    stand_in.control(reset=True, **asdict(Settings(keys=[KEY], retry_after=0.1)))
    return stand_in


@pytest.fixture
def rows(lines: Callable[..., Path]) -> Path:
    return lines(
        {"id": f"row {n}", "prompt": f"Question {n}?", "responses": [f"one {n}", f"two {n}"]} for n in range(ROWS)
    )


@pytest.fixture
def words(it: Provider, rows: Path) -> Callable[..., list[str]]:
    """The command line for an output and more options."""

    def make(out: str, *more: object) -> list[str]:
        found = ["-m", "rlaif", "label", str(rows), "--task", "helpfulness", "--model", "openai:gpt-4o"]
        return [*found, "--base-url", f"{it.url}/v1", "--out", out, *map(str, more)]

    return make


@pytest.fixture
def label(process: Callable[..., Any], words: Callable[..., list[str]]) -> Callable[..., Any]:
    return lambda out, *more, key=KEY: process(*words(out, *more), OPENAI_API_KEY=key)


def judged(path: Path) -> list[tuple[Any, ...]]:
    """What the labels say, without what they cost."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [(each["id"], each["p"], each["choice"], each["orders"]) for each in found]


def nowhere(text: str, folder: Path) -> None:
    """The text is in no file of the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert text.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_faults_change_no_label_and_the_key_is_nowhere(it, label, tmp_path):
    clean = label("clean.jsonl", "--price", "1,1", "--json")
    assert clean.status == 0, clean.err
    assert (clean.json["rows"], clean.json["asked"], clean.json["failed"]) == (ROWS, 2 * ROWS, 0)
    assert clean.json["usd"] == pytest.approx((clean.json["tokens_in"] + clean.json["tokens_out"]) / 1e6)
    it.control(reset=True, faults=dict.fromkeys(MIXED, 0.1 / len(MIXED)), fault_attempts=3)
    faulty = label("faulty.jsonl", "--json")
    assert faulty.status == 0, faulty.err
    assert sum(it.seen()["faults"].values()) > 3
    assert judged(tmp_path / "faulty.jsonl") == judged(tmp_path / "clean.jsonl")
    assert it.seen()["asked_again"] == 0
    for said in (clean, faulty):
        assert KEY not in said.out + said.err
    nowhere(KEY, tmp_path)


def test_the_key_is_not_in_failures(it, label, tmp_path):
    it.control(faults={"http_500": 0.3})
    said = label("labels.jsonl", "--attempts", "1")
    assert said.status == 3
    failures = [json.loads(line) for line in (tmp_path / "labels.jsonl.failures.jsonl").read_text().splitlines()]
    assert {(each["stage"], each["reason"], each["attempts"]) for each in failures} == {("label", "server_error", 1)}
    assert KEY not in said.out + said.err
    nowhere(KEY, tmp_path)


def test_failed_rows_alone_are_asked_again(it, label, tmp_path):
    it.control(faults={"http_500": 0.3}, fault_attempts=1)
    assert label("labels.jsonl", "--attempts", "1").status == 3
    done = label("labels.jsonl", "--json")
    assert done.status == 0, done.err
    assert done.json["answered"] + done.json["resumed"] == len(judged(tmp_path / "labels.jsonl")) == ROWS
    assert it.seen()["asked_again"] == 0


def test_a_refused_key_is_one_line_without_it(label, tmp_path):
    wrong = "sk-wrong-" + "8d02b1" * 5
    said = label("labels.jsonl", key=wrong)
    assert "key was refused" in said.complaint
    assert wrong not in said.err


def test_no_server_is_one_line(it, process, words):
    command = ["http://127.0.0.1:9/v1" if word == f"{it.url}/v1" else word for word in words("labels.jsonl")]
    assert "is a server running there?" in process(*command, OPENAI_API_KEY=KEY).complaint


def test_no_money_is_one_line(it, label):
    it.control(next=[*[None] * 20, "quota"])
    assert "nothing more can be asked" in label("labels.jsonl", "--in-flight", "2").complaint
    done = label("labels.jsonl", "--json")
    assert done.json["answered"] + done.json["resumed"] == ROWS
    assert it.seen()["asked_again"] <= 2  # a row is two requests, kept together


class TestBudget:
    @pytest.mark.slow
    def test_it_stops_and_a_larger_one_goes_on(self, it, label, tmp_path):
        stopped = label("labels.jsonl", "--price", "100,100", "--budget", "0.2", "--in-flight", "4")
        assert "--budget 0.2" in stopped.complaint
        assert not (tmp_path / "labels.jsonl").exists()
        seen = it.seen()
        assert 4 <= seen["asked"] < ROWS
        done = label("labels.jsonl", "--price", "100,100", "--budget", "1000", "--in-flight", "4", "--json")
        assert done.status == 0, done.err
        assert done.json["asked"] == 2 * ROWS - seen["asked"]
        assert len(judged(tmp_path / "labels.jsonl")) == ROWS
        assert it.seen()["asked_again"] == 0
        assert it.seen()["asked"] == 2 * ROWS

    def test_nothing_is_asked_where_no_price_is_known(self, it, label):
        assert "no price is known for openai:gpt-4o; give --price" in label("labels.jsonl", "--budget", "1").complaint
        assert ASKED not in it.seen()["requests"]

    def test_nothing_may_be_spent(self, it, label):
        assert "--budget 0" in label("labels.jsonl", "--price", "1,1", "--budget", "0").complaint
        assert ASKED not in it.seen()["requests"]


@pytest.mark.slow
def test_killed_it_goes_on(it, label, words, tmp_path):
    it.control(latency=0.05)
    at_once = 4
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OPENAI_API_KEY": KEY, "RLAIF_CACHE": str(tmp_path / "c")}
    command = [sys.executable, *words("labels.jsonl", "--in-flight", at_once)]
    job = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while it.seen(answers=False)["answered_distinct"] < ROWS // 2:
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    it.control(latency=0)
    time.sleep(0.1)
    before = it.seen()["answered_distinct"]
    assert before < 2 * ROWS
    done = label("labels.jsonl", "--in-flight", at_once, "--json")
    assert done.status == 0, done.err
    assert done.json["answered"] + done.json["resumed"] == len(judged(tmp_path / "labels.jsonl")) == ROWS
    assert it.seen()["answered_distinct"] == 2 * ROWS
    assert it.seen()["asked_again"] <= 2 * at_once  # a row is two requests, kept together
    nowhere(KEY, tmp_path)


def test_a_grid_has_models_of_a_server_beside_those_of_this_process(it, lines, process, tmp_path):
    """--base-url is the server's; with a single local model it is a mistake."""
    voted = lines(
        {"id": f"{n}", "prompt": f"Question {n}?", "responses": ["one", f"two {n}"], "votes": [{"choice": n % 2}]}
        for n in range(8)
    )
    address = ["--base-url", f"{it.url}/v1", "--out"]
    grid = ["-m", "rlaif", "ablate", voted, "--tasks", "helpfulness", "--models", "openai:gpt-4o,fake:longer"]
    done = process(*grid, *address, "grid", OPENAI_API_KEY=KEY)
    assert done.status == 0, done.err
    assert len(list((tmp_path / "grid").glob("*.parquet"))) == 2
    alone = process(
        "-m", "rlaif", "label", voted, "--task", "helpfulness", "--model", "fake:longer", *address, "x.jsonl"
    )
    assert alone.status == 1
    assert "--base-url: fake:longer runs in this process" in alone.err
