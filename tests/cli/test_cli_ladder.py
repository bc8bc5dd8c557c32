"""`rlaif label` with models that tell no log-probabilities, behind the stand-in provider."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import test_cli_openai as other
from running import Provider
from test_cli_openai import KEY, nowhere

ASKED = "POST /v1/messages"

it, stand_in = other.it, other.stand_in


@pytest.fixture
def words(it: Provider, file: Path) -> list[object]:
    """The command line, but for the model."""
    return ["label", file, "--task", "helpfulness", "--base-url", f"{it.url}/v1", "--out", "labels.jsonl"]


@pytest.fixture
def label(cli, words: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The key is neither said nor written, whatever happens."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)

    def call(*more: object) -> Any:
        said = cli(*words, "--model", "anthropic:claude-sonnet", *more)
        assert KEY not in said.out + said.err
        nowhere(KEY, tmp_path)
        return said

    return call


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def test_log_probabilities_that_are_needed_are_missed_before_anything_is_asked(it, label, tmp_path):
    complaint = label("--needs", "logprobs").complaint
    assert "--needs logprobs: anthropic:claude-sonnet tells none" in complaint
    assert ASKED not in it.seen()["requests"]
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.parametrize(("more", "votes"), [(["--needs", "votes", "--votes", 3], 3), (["--votes", 2], 2), ([], 5)])
def test_votes_are_counted_in_each_order(it, label, tmp_path, more, votes):
    assert label(*more).status == 0
    labels = written(tmp_path)
    assert [each["method"] for each in labels] == ["votes"] * 5
    assert {order["votes"] for each in labels for order in each["orders"]} == {votes}
    assert it.seen()["requests"][ASKED] == {"200": 5 * 2 * votes}


def test_probabilities_are_stated(it, label, tmp_path):
    assert label("--needs", "stated").status == 0
    labels = written(tmp_path)
    assert {(each["method"], each["orders"][0]["votes"]) for each in labels} == {("stated", None)}
    assert len({each["p"] for each in labels}) == 5
    assert it.seen()["requests"][ASKED] == {"200": 10}


def test_another_rung_is_another_job(label):
    asked = [label(*more, "--json").json["asked"] for more in (["--votes", 3], ["--votes", 3], ["--needs", "stated"])]
    assert asked == [30, 0, 10]


def test_rows_without_votes_are_failures(it, label, tmp_path):
    it.control(faults={"outside": 1.0})
    assert label("--votes", 2).status == 3
    failures = [json.loads(line) for line in (tmp_path / "labels.jsonl.failures.jsonl").read_text().splitlines()]
    assert {each["reason"] for each in failures} == {"unparsable"}
    assert {each["message"] for each in failures} == {"none of 2 votes named an option; one said 'Both'"}


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [(["--votes", 0], 1, "--votes 0: expected 1 to 100"), (["--needs", "luck"], 2, "--needs")],
)
def test_what_is_no_rung_is_refused(it, label, more, status, message):
    said = label(*more)
    assert (said.status, message in said.err) == (status, True)
    assert it.seen()["requests"] == {}


@pytest.mark.clients
@pytest.mark.skipif(find_spec("litellm") is None, reason="litellm is not installed here: make test-clients")
class TestLiteLLM:
    @pytest.mark.parametrize(("model", "method"), [("openai/gpt-4o", "logprobs"), ("openai/gpt-5-mini", "votes")])
    def test_it_says_nothing_and_the_key_is_nowhere(self, process, words, tmp_path, model, method):
        said = process("-m", "rlaif", *words, "--model", f"litellm:{model}", OPENAI_API_KEY=KEY)
        assert (said.status, said.out) == (0, "")
        (line,) = said.err.splitlines()
        assert line.startswith("5 of 5 rows answered in labels.jsonl")
        assert {each["method"] for each in written(tmp_path)} == {method}
        nowhere(KEY, tmp_path)

    def test_its_errors_are_one_line_without_the_key(self, it, process, words, tmp_path):
        it.control(keys=["sk-another"])
        said = process("-m", "rlaif", *words, "--model", "litellm:openai/gpt-4o", OPENAI_API_KEY=KEY)
        assert "key was refused" in said.complaint
        assert KEY not in said.err
        nowhere(KEY, tmp_path)
