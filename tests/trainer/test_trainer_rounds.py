"""The recipes of examples/ as they stand, but for a tiny model, short texts and a rater by rule."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PROJECT, compared, environment, written

pytestmark = pytest.mark.training

SMALLER = {
    '"smollm2"': '"tiny"',
    "lr = 1e-6": "lr = 1e-3",
    "prompts = 32": "prompts = 8",
    "max_tokens = 64": "max_tokens = 12",
    "max_tokens = 512": "max_tokens = 240",
}


@pytest.fixture
def here(tmp_path, tiny):
    """A folder with the examples and the tiny model."""
    shutil.copytree(tiny, tmp_path / "tiny")
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    files = [tmp_path / f"examples/{name}.toml" for name in ("sft", "ppo")]
    for old, new in SMALLER.items():
        assert any(old in file.read_text() for file in files)
        for file in files:
            file.write_text(file.read_text().replace(old, new))
    return tmp_path


def run(folder: Path, name: str) -> str:
    """What the recipe told at its end."""
    recipe = (PROJECT / f"examples/{name}.toml").read_text()
    recipe = re.sub(r"((?:label|revise) .*) --model local:smollm2", r"\1 --model fake:longer", recipe)
    recipe = re.sub(r"--max-tokens \d+", "--max-tokens 12", recipe.replace("local:smollm2", "local:tiny"))
    recipe = recipe.replace("train reward ", "train reward --model.name tiny --optim.steps 2 ")
    (folder / "recipe.toml").write_text(recipe)
    command = [sys.executable, "-m", "rlaif", "run", "recipe.toml"]
    settings = environment(folder / "cache")
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def learned(run: Path) -> int:
    """How many rows a run read, those that it held out among them."""
    counts = re.findall(r"(?:rows|prompts): .*?(\d+), and (\d+) held out", (run / "card.md").read_text())
    return sum(map(int, counts[0]))


def test_rounds_of_online_rlhf_run_as_a_recipe(here):
    for name, count in (("prompts", 20), ("unseen", 8)):
        written(here / f"{name}.jsonl", [{"prompt": f"{name} number {at}, is it good?"} for at in range(count)])
    assert "local:runs/round2/policy/model" in run(here, "rounds")
    assert learned(here / "runs/round2/reward") == sum(len(rows(here / f"round{n}-pairs.jsonl")) for n in (1, 2))
    first, second = (rows(here / f"round{n}-comparisons.jsonl")[0] for n in (1, 2))
    assert first["models"] == ["local:tiny"] * 2
    assert second["models"] == ["local:runs/round1/policy/model"] * 2
    assert first["meta"]["identity"] != second["meta"]["identity"]
    assert first["meta"]["prompt_id"] == second["meta"]["prompt_id"]


def test_constitutional_ai_runs_as_a_recipe(here):
    for name, count in (("red", 12), ("helpful", 8)):
        written(here / f"prompts-{name}.jsonl", [{"prompt": f"{name} {at}: is it good?"} for at in range(count)])
    sides = [(row["prompt"], row["responses"], row["votes"][0]["choice"]) for row in compared(10)]
    human = [{"prompt": prompt, "chosen": two[at], "rejected": two[1 - at]} for prompt, two, at in sides]
    written(here / "pairs-helpful.jsonl", human)
    run(here, "constitutional")
    revised, answered = rows(here / "sft-revisions.jsonl"), rows(here / "sft-answers.jsonl")
    assert Counter(row["prompt"] for row in revised) == {f"red {at}: is it good?": 4 for at in range(12)}
    assert learned(here / "runs/constitutional/sft") == len(revised) + len(answered)
    assert {row["meta"]["step"] for row in revised} == {1, 2, 3, 4}
    labels = rows(here / "harmless-labels.jsonl")
    assert len(labels) == 12
    assert len({row["task"] for row in labels}) > 1  # a principle is drawn for each
    pairs = rows(here / "pairs-harmless.jsonl")
    assert 0 < learned(here / "runs/constitutional/reward") <= len(pairs) + len(human)
    assert learned(here / "runs/constitutional/policy") == 20
    config = (here / "runs/constitutional/policy/config.toml").read_text()
    assert 'name = "runs/constitutional/sft/model"' in config
