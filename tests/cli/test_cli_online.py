"""Sampling, revising and training on rewards, from the command line, with a model that is tiny but real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs
import torch

ALL = ("ppo", "reinforce", "grpo", "rejection", "rest", "hir")
USUAL = {
    "--optim.steps": 2,
    "--optim.batch": 4,
    "--optim.lr": 3e-3,
    "--rollout.prompts": 8,
    "--rollout.samples": 3,
    "--rollout.max-tokens": 8,
    "--reward.of": "tests.trainer.taste:mostly",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, and no picture."""
    from trainer import curves

    monkeypatch.setattr(curves, "draw", lambda *_: None)
    monkeypatch.setattr("sys.path", [str(tiny_runs.PROJECT), *__import__("sys").path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    rows = [{"prompt": f"question number {n}, is it good?"} for n in range(30)]
    rows.append(
        {
            "prompt": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Is it?"},
            ]
        }
    )
    return tiny_runs.written(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def words(algorithm: str, model: Path, prompts: Path, *more: object) -> list[object]:
    usual = [word for name, value in USUAL.items() if name not in more for word in (name, value)]
    return ["train", algorithm, "--data.train", prompts, "--model.name", model, "--run.out", "run", *usual, *more]


@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_runs_to_a_model(cli, tiny, prompts, algorithm, tmp_path):
    said = cli(*words(algorithm, tiny, prompts))
    assert said.status == 0, said.err
    assert "held-out reward now" in said.out
    assert (tmp_path / "run/model/model.safetensors").is_file()
    again = cli(*words(algorithm, tiny, prompts), "--resume")
    assert again.status == 0, again.err
    assert "going on after round 2" in again.err


@pytest.mark.parametrize(
    "more",
    [
        ("--algorithm.critic", "model", "--algorithm.target", 0.1, "--algorithm.whiten"),
        ("--model.freeze", 2, "--algorithm.entropy", 0.01, "--algorithm.stop", 0.001),
        ("--model.lora", 4, "--rollout.temperature", 0.7, "--rollout.unended", 1.0, "--rollout.stop", "zz"),
        ("--reward.of", "tests.trainer.taste:vowels", "tests.trainer.taste:short_of", "--reward.rule", "safety-first"),
        ("--reward.of", "fake:longer", "--reward.task", "helpfulness"),
    ],
    ids=["critic", "hydra", "adapters", "safety first", "labeler"],
)
def test_ppo_with_its_settings(cli, tiny, prompts, more):
    said = cli(*words("ppo", tiny, prompts, *more), "--json")
    assert said.status == 0, said.err
    assert said.json["rounds"] == 2


def test_a_reward_model_is_reward_and_rater(cli, tiny, prompts, tmp_path):
    votes = tiny_runs.written(tmp_path / "votes.jsonl", tiny_runs.compared(24))
    made = cli("train", "reward", "--data.train", votes, "--model.name", tiny, "--run.out", "judge", "--optim.steps", 3)
    assert made.status == 0, made.err
    of = ("--reward.of", "reward:judge/model", "--algorithm.critic", "reward")
    said = cli(*words("ppo", tiny, prompts, *of))
    assert said.status == 0, said.err
    scored = cli("score", votes, "--model", "reward:judge/model", "--out", "scores.jsonl")
    assert scored.status == 0, scored.err
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == sum(
        len(r["responses"]) for r in tiny_runs.compared(24)
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--reward.of", "tests.trainer.taste:nothing"), "no held-out response has a reward"),
        (("--reward.of", "tests.trainer.taste:broken"), "RuntimeError: the judge is out"),
        (("--reward.of", "tests.trainer.taste:nobody"), "tests.trainer.taste has no function nobody"),
        (("--reward.of", "no_such_module:judge"), "no module no_such_module in this folder or installed"),
        (("--reward.of", "http://127.0.0.1:9", "--reward.patience", 0), "no answer for 0 s"),
        (("--reward.of", "local:smollm2"), "which question is it asked? Say reward.task"),
        (("--rollout.max-tokens", 255), "leaves no room for a prompt"),
    ],
)
def test_what_cannot_go_on_says_why(cli, tiny, prompts, more, said):
    found = cli(*words("ppo", tiny, prompts, *more))
    assert found.status == 1
    assert found.last.startswith("rlaif: ")
    assert said in found.last


def test_samples_revisions_and_what_they_train(cli, tiny, prompts, tmp_path):
    said = cli("sample", prompts, "--model", f"local:{tiny}", "--samples", 2, "--max-tokens", 6, "--out", "two.jsonl")
    assert said.status == 0, said.err
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert (len(rows), {len(row["responses"]) for row in rows}) == (31, {2})
    said = cli("sample", prompts, "--model", f"local:{tiny}", "--max-tokens", 6, "--out", "one.jsonl", "--limit", 4)
    assert said.status == 0, said.err
    both = ("sample", prompts, "--model", f"local:{tiny}", "--max-tokens", 6, "--limit", 4, "--beside", "one.jsonl")
    assert cli(*both, "--seed", 1, "--out", "beside.jsonl").status == 0
    assert (
        cli("label", "beside.jsonl", "--task", "helpfulness", "--model", "fake:longer", "--out", "l.jsonl").status == 0
    )
    asked = (
        "revise",
        prompts,
        "--model",
        "fake:longer",
        "--rounds",
        2,
        "--shots",
        0,
        "--out",
        "rev.jsonl",
        "--limit",
        3,
    )
    said = cli(*asked)
    assert said.status in {0, 3}, said.err
    assert cli("check", prompts).out.startswith(f"{prompts}: prompts alone")


def test_a_recipe_runs_its_steps(cli, tiny, prompts, tmp_path):
    steps = f"""
        [[step]]
        run = "sample {prompts} --model local:{tiny} --samples 2 --max-tokens 6 --out a.jsonl"
        [[step]]
        run = "label a.jsonl --task helpfulness --model fake:longer --out labels.jsonl"
    """
    (tmp_path / "recipe.toml").write_text(steps)
    said = cli("run", "recipe.toml")
    assert said.status == 0, said.err
    assert (tmp_path / "labels.jsonl").is_file()
    assert "finished" in cli("run", "recipe.toml").err
