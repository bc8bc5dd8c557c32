"""Which settings are refused before a run begins, and which may be others when it goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from trainer import folder
from trainer.config import (
    Config,
    Data,
    Dpo,
    Grpo,
    Hir,
    Judged,
    Model,
    Optim,
    Ppo,
    Rest,
    Reward,
    Rollout,
    Run,
    Sft,
    TrainingError,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [NAN, INF, -INF, -0.5])
@pytest.mark.parametrize(
    ("section", "name"),
    [
        (Ppo, "algorithm.target"),
        (Ppo, "algorithm.stop"),
        (Ppo, "algorithm.horizon"),
        (Judged, "reward.patience"),
        (Optim, "optim.weight_decay"),
        (Optim, "optim.clip"),
        (Optim, "optim.lr"),
        (Rollout, "rollout.temperature"),
    ],
)
def test_what_is_no_number_or_below_zero_is_refused_by_its_name(section, name, value):
    with pytest.raises(TrainingError, match=rf"^[^\n]*{name}[^\n]*$"):
        section(**{name.partition(".")[2]: value})


@pytest.mark.parametrize("value", [0, 0.0])
@pytest.mark.parametrize("name", ["target", "stop"])
def test_ppo_has_nothing_to_aim_at_in_zero(name, value):
    with pytest.raises(TrainingError, match=rf"^algorithm\.{name} 0: expected more than 0$"):
        Ppo(**{name: value})


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("section", "name"), [(Rollout, "rollout.unended"), (Hir, "algorithm.threshold")])
def test_what_may_be_below_zero_is_a_number_still(section, name, value):
    field = name.partition(".")[2]
    assert getattr(section(**{field: -0.5}), field) == -0.5
    with pytest.raises(TrainingError, match=rf"^{name} -?(nan|inf): expected a number$"):
        section(**{field: value})


@pytest.mark.parametrize("value", [NAN, INF, 0, -1])
def test_adapters_have_a_scale_that_is_a_number(value):
    with pytest.raises(TrainingError, match=r"^model\.lora_alpha \S+: expected more than 0$"):
        Model(lora=4, lora_alpha=value)


@pytest.mark.parametrize("weights", [(NAN, 1.0), (1.0, INF), (-INF, 1.0)])
def test_weights_of_rewards_are_numbers(weights):
    assert Judged(of=("a:b", "c:d"), weights=(-1.0, 0.0)).weights == (-1.0, 0.0)  # one may take away
    with pytest.raises(TrainingError, match=r"^reward\.weights: expected numbers$"):
        Judged(of=("a:b", "c:d"), weights=weights)


def test_without_a_penalty_there_is_nothing_to_adapt():
    assert Ppo(beta=0.0).target is None
    with pytest.raises(TrainingError, match=r"^algorithm\.beta 0: there is nothing to adapt to algorithm\.target"):
        Ppo(beta=0.0, target=6.0)


def config(algorithm=None, *, run=None, reward=None, rollout=None, **data):
    return Config(
        algorithm=algorithm or Ppo(),
        data=Data(train="prompts.jsonl", **data),
        run=run or Run(out=Path("run")),
        rollout=rollout or Rollout(prompts=8, samples=3),
        reward=reward or Judged(of=("http://one:8000",)),
    )


@pytest.mark.parametrize(
    ("algorithm", "lora", "rate"),
    [(Dpo(), 0, 1e-6), (Dpo(), 8, 1e-5), (Sft(), 0, 1e-5), (Reward(), 8, 1e-4), (Ppo(), 0, 1e-6), (Rest(), 0, 1e-5)],
)
def test_the_rate_suits_the_algorithm_unless_it_is_said(algorithm, lora, rate):
    made = Config(algorithm=algorithm, data=Data(), run=Run(), model=Model(lora=lora))
    assert made.optim.lr == pytest.approx(rate)
    assert replace(made, optim=Optim(lr=3e-4, batch=2)).optim == Optim(lr=3e-4, batch=2)


def test_a_round_is_no_longer_than_the_horizon_of_an_adapted_penalty():
    """Else one round would move the coefficient by more than a fifth, and at last below zero."""
    assert config(Ppo(horizon=23)).algorithm.horizon == 23  # which no penalty is adapted over
    assert config(Ppo(horizon=24, target=6.0)).algorithm.horizon == 24
    with pytest.raises(TrainingError, match=r"^algorithm\.horizon 23: a round has 24 responses already"):
        config(Ppo(horizon=23, target=6.0))


@pytest.fixture
def goes_on(tmp_path):
    """Whether a run of one configuration may be resumed with another: None, or the complaint."""

    def call(first: Config, then: Config) -> str | None:
        folder.begin(tmp_path / "run", first, [])
        try:
            folder.check(tmp_path / "run", then, lambda _: None, resume=True)
        except TrainingError as error:
            return str(error).partition("run/config.toml: another run's settings: ")[2]
        return None

    return call


TWO = Judged(of=("http://one:8000", "tests.trainer.taste:vowels"), task="helpfulness")


@pytest.mark.parametrize(
    "reward",
    [
        replace(TWO, of=("https://two.example/rewards", "tests.trainer.taste:vowels")),
        replace(TWO, patience=5.0),
        replace(TWO, of=("http://two", "tests.trainer.taste:vowels"), patience=0.0),
        replace(TWO, base_url="http://three/v1", budget=2.0, price="1,2"),
    ],
)
def test_a_run_goes_on_with_a_server_that_moved_and_with_more_patience(goes_on, reward):
    assert goes_on(config(reward=TWO), config(reward=reward)) is None
    assert goes_on(config(reward=reward), config(reward=TWO)) is None


def test_a_run_goes_on_with_an_engine_that_moved(goes_on):
    here, there = (config(rollout=Rollout(engine=each)) for each in ("http://one:8000", "http://two:8000"))
    assert goes_on(here, there) is None
    assert goes_on(here, config()) is not None


@pytest.mark.parametrize(
    "of",
    [
        ("reward:judge", "tests.trainer.taste:vowels"),
        ("http://one:8000", "tests.trainer.taste:mostly"),
        ("tests.trainer.taste:vowels", "http://one:8000"),
        ("http://one:8000", "http://one:8000"),
        ("http://one:8000",),
        ("openai:gpt-4o", "tests.trainer.taste:vowels"),
    ],
)
def test_a_run_does_not_go_on_with_another_reward(goes_on, of):
    complaint = goes_on(config(reward=TWO), config(reward=replace(TWO, of=of)))
    assert complaint is not None
    assert complaint.count("reward.of is [") == 1


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"run": Run(out=Path("run"), patience=2)}, "run.patience is not set there, 2 here"),
        ({"run": Run(out=Path("run"), seed=1)}, "run.seed is 0 there, 1 here"),
        ({"max_tokens": 99}, "data.max_tokens is 1024 there, 99 here"),
        ({"reward": replace(TWO, task="harmlessness")}, 'reward.task is "helpfulness" there, "harmlessness" here'),
        ({"reward": replace(TWO, unsafe=0.2)}, "reward.unsafe is 0.15 there, 0.2 here"),
        ({"rollout": Rollout(prompts=8, samples=3, max_tokens=9)}, "rollout.max_tokens is 128 there, 9 here"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings_of_the_same_name(goes_on, other, named):
    """Two sections have a `patience`, and two a `max_tokens`."""
    assert (
        goes_on(config(reward=TWO), config(**{"reward": TWO, **other}))
        == f"{named}; say those, or choose another --run.out"
    )


def test_a_run_does_not_go_on_as_another_algorithm(goes_on):
    assert goes_on(config(), config(Grpo())) is not None
    offline = Config(algorithm=Dpo(), data=Data(train="prompts.jsonl"), run=Run(out=Path("run")))
    assert goes_on(config(), offline) is not None


def test_a_folder_whose_run_had_learned_nothing_may_be_used_again(tmp_path):
    """Its first command was wrong, say; but no reward that was paid for and no checkpoint is ever lost."""
    run, said = tmp_path / "run", []
    folder.begin(run, config(), [])
    (run / "samples.jsonl").touch()
    folder.check(run, config(Grpo()), said.append, resume=False)
    assert said == [f"{run}: held a run that ended before it had learned anything: this one begins anew"]
    (run / "samples.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match="holds a run already"):
        folder.check(run, config(Grpo()), said.append, resume=False)
    (run / "samples.jsonl").unlink()
    (run / "checkpoints/00000001").mkdir(parents=True)
    with pytest.raises(TrainingError, match="holds a run already"):
        folder.check(run, config(Grpo()), said.append, resume=False)
