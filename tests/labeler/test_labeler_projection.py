"""What a job would ask and cost, before it is run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from running import provider

from data.errors import RlaifError
from data.records import Comparison, Failure, Label, Response, Score
from labeler.commands import execute, project
from labeler.fake import RULES, FakeBackend
from labeler.here import Job
from labeler.opening import Reach
from labeler.options import Options, Running
from labeler.preference import Labeler
from labeler.prices import FREE, Price
from labeler.projection import Counted, Counting
from labeler.projection import project as counted_on
from labeler.score import Scorer
from prompts.task import load

PRICE = Price(1.0, 5.0)


def rows(count: int) -> list[Comparison]:
    """Of very different lengths."""
    return [
        Comparison(id=f"row {n}", prompt=f"Question {n}? " * (1 + n % 17), responses=("yes " * (n % 5), f"no {n}"))
        for n in range(count)
    ]


def job(model: str, out: Path, url: str | None, **options: Any) -> Job:
    own = None if model.startswith("fake:") else url
    reach = Reach(own, {"openai": "sk-test", "anthropic": "sk-test"}, price=PRICE)
    running = Running(dry_run=options.pop("dry_run", None))
    return Job("rows", "helpfulness", model, out, out.parent, Options(**options), running, reach)


@pytest.fixture(scope="module")
def url():
    with provider() as it:
        yield f"{it.url}/v1"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("openai:gpt-4o", {}),
        ("openai:gpt-4o", {"one_order": True, "shots": 1}),
        ("openai:gpt-4o", {"needs": "votes"}),
        ("anthropic:claude-sonnet", {}),
        ("fake:longer", {}),
    ],
    ids=str,
)
def test_within_5_percent_of_what_is_metered(tmp_path: Path, url: str, model: str, options: dict[str, Any]):
    found, prompt = project(Labeler, rows(200), job(model, tmp_path / "o.jsonl", url, dry_run=30, **options))
    done = execute(Labeler, Label, rows(200), job(model, tmp_path / "o.jsonl", url, **options), 200)
    usage = done.meter.usage
    assert (found.rows, found.sampled, found.exact) == (200, 30, True)
    assert found.tokens_in == pytest.approx(usage.tokens_in, rel=0.01)
    assert found.tokens_in + found.tokens_out == pytest.approx(usage.tokens_in + usage.tokens_out, rel=0.05)
    price = FREE if model.startswith("fake") else PRICE
    assert found.usd == pytest.approx(price.usd(found.tokens_in, found.tokens_out))
    assert "Preferred Response=" in prompt


def test_scores_are_counted_too(tmp_path: Path, url: str):
    single = [Response(id=str(n), prompt=f"Question {n}?", response="well " * (n % 9 + 1)) for n in range(60)]
    found, _ = project(Scorer, single, job("openai:gpt-4o", tmp_path / "o.jsonl", url, dry_run=20))
    done = execute(Scorer, Score, single, job("openai:gpt-4o", tmp_path / "o.jsonl", url), 60)
    assert found.requests == 60
    assert found.tokens_in == pytest.approx(done.meter.usage.tokens_in, rel=0.01)


def test_a_rationale_counts_as_long_as_it_may_be(tmp_path: Path, url: str):
    options = {"cot": True, "samples": 2, "max_rationale": 100}
    found, _ = project(Labeler, rows(20), job("openai:gpt-4o", tmp_path / "o.jsonl", url, dry_run=20, **options))
    done = execute(Labeler, Label, rows(20), job("openai:gpt-4o", tmp_path / "o.jsonl", url, **options), 20)
    assert found.tokens_in >= done.meter.usage.tokens_in
    assert found.tokens_out >= 20 * 2 * 2 * 100
    assert any("at most" in line for line in found.lines(cot=True))


def test_nothing_is_asked(tmp_path: Path):
    with provider() as it:
        project(Labeler, rows(5), job("openai:gpt-4o", tmp_path / "o.jsonl", f"{it.url}/v1", dry_run=5))
        assert it.seen()["asked"] == 0
        assert "POST /v1/chat/completions" not in it.seen()["requests"]
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_used_do_not_count(tmp_path: Path, url: str):
    bad = Failure(id="x", stage="read", reason="bad", message="no")
    found, _ = project(Labeler, [bad, *rows(3), bad], job("openai:gpt-4o", tmp_path / "o.jsonl", url, dry_run=9))
    assert (found.rows, found.sampled) == (3, 3)
    with pytest.raises(RlaifError, match="no row is usable"):
        project(Labeler, [bad], job("openai:gpt-4o", tmp_path / "o.jsonl", url, dry_run=9))


def test_without_a_tokenizer_characters_are_counted_and_it_says_so():
    class Mute(FakeBackend):
        async def count(self, request: object) -> int | None:
            return None

    backend = Counting(Mute("fake:mute", RULES["longer"], price=None), Counted())

    found = asyncio.run(counted_on(rows(30), Labeler(load("helpfulness"), backend, Options()), backend, 10))
    assert not found.exact
    assert found.usd is None
    assert any("from characters" in line for line in found.lines(cot=False))
    assert any("--price" in line for line in found.lines(cot=False))
