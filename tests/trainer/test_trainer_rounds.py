"""examples/rounds.toml, as it stands but for a tiny model, short texts and a rater by rule."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from tiny_runs import PROJECT, environment, written

pytestmark = pytest.mark.training


def test_rounds_of_online_rlhf_run_as_a_recipe(tmp_path, tiny):
    for name, count in (("prompts", 20), ("unseen", 8)):
        written(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} number {at}, is it good?"} for at in range(count)])
    shutil.copytree(tiny, tmp_path / "tiny")
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    policy = tmp_path / "examples/ppo.toml"
    smaller = {
        "prompts = 32": "prompts = 8",
        "max_tokens = 64": "max_tokens = 12",
        "max_tokens = 512": "max_tokens = 99",
    }
    smaller |= {'"smollm2"': '"tiny"', "lr = 1e-6": "lr = 1e-3"}
    text = policy.read_text()
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    policy.write_text(text)
    recipe = (PROJECT / "examples/rounds.toml").read_text()
    recipe = re.sub(r"(label .*) --model local:smollm2", r"\1 --model fake:longer", recipe)
    recipe = recipe.replace("local:smollm2", "local:tiny").replace("--max-tokens 64", "--max-tokens 12")
    recipe = recipe.replace("train reward ", "train reward --model.name tiny --optim.steps 2 ")
    (tmp_path / "rounds.toml").write_text(recipe)
    command = [sys.executable, "-m", "rlaif", "run", "rounds.toml"]
    settings = environment(tmp_path / "cache")
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "local:runs/round2/policy/model" in done.stdout
    rounds = [(tmp_path / f"round{n}-pairs.jsonl").read_text().splitlines() for n in (1, 2)]
    card = (tmp_path / "runs/round2/reward/card.md").read_text()
    kept = [int(each) for each in re.findall(r"rows: (\d+), and (\d+) held out", card)[0]]
    assert sum(kept) == sum(map(len, rounds))
    first, second = (json.loads((tmp_path / f"round{n}-comparisons.jsonl").read_text().splitlines()[0]) for n in (1, 2))
    assert first["models"] == ["local:tiny"] * 2
    assert second["models"] == ["local:runs/round1/policy/model"] * 2
    assert first["meta"]["identity"] != second["meta"]["identity"]
    assert first["meta"]["prompt_id"] == second["meta"]["prompt_id"]
