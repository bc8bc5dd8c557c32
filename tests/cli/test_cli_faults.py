"""With a tenth of all requests failing in every way that the stand-in knows, a job ends as if none did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_cli_openai as other
from provider_settings import BATCHES, CONTENT, REFUSALS, ROWS, WIRE
from running import Provider
from test_cli_openai import KEY, judged

it, stand_in = other.it, other.stand_in

PASSES = [*(name for name in REFUSALS if name != "quota"), *WIRE]
"""An account without money is no fault that passes: it ends a job."""

SAYS = {"openai:gpt-4o": CONTENT, "anthropic:claude-sonnet": ("null_content",)}
"""What a model says and is asked again for."""

Label = Callable[..., Any]

pytestmark = pytest.mark.slow


@pytest.fixture
def label(process: Callable[..., Any], it: Provider, lines: Callable[..., Path], tmp_path: Path) -> Label:
    """The outcome of a job of so many comparisons, and its labels."""

    def call(count: int, model: str, *more: object) -> tuple[dict[str, Any], list[Any]]:
        rows = ({"id": f"{n}", "prompt": f"Question {n}?", "responses": [f"one {n}", f"two {n}"]} for n in range(count))
        words = ["-m", "rlaif", "label", lines(rows), "--task", "helpfulness", "--model", model, "--fresh", "--json"]
        words += ["--base-url", f"{it.url}/v1", "--out", "labels.jsonl", *more]
        said = process(*words, OPENAI_API_KEY=KEY, ANTHROPIC_API_KEY=KEY)
        assert said.status == 0, said.err[-1000:]
        return said.json, judged(tmp_path / "labels.jsonl")

    return call


def test_of_requests_asked_one_by_one(it, label):
    names = [*PASSES, *CONTENT]
    options = [2_000, "openai:gpt-4o", "--timeout", 2, "--longest-wait", 0.1]
    _, expected = label(*options)
    it.control(reset=True, faults=dict.fromkeys(names, 0.1 / len(names)), fault_seconds=3)
    outcome, found = label(*options)
    assert found == expected
    assert (outcome["answered"], outcome["failed"]) == (2_000, 0)
    seen = it.seen(answers=False)
    assert seen["faults"].keys() == {*names}
    assert (seen["asked_again"], seen["answered_total"]) == (0, 4_000)


@pytest.mark.parametrize("model", SAYS)
def test_of_batches(it, label, model):
    names = [*ROWS, *BATCHES, *SAYS[model]]
    it.control(batch_seconds=0.2)
    options = [300, model, "--batch", "--votes", 1]
    _, expected = label(*options)
    it.control(reset=True, faults=dict.fromkeys(names, 0.1 / len(names)))
    outcome, found = label(*options)
    assert found == expected
    assert (outcome["answered"], outcome["failed"]) == (300, 0)
    seen = it.seen(answers=False)
    assert sum(seen["faults"].values()) > 20
    assert (seen["asked_again"], seen["answered_total"]) == (0, 600)
