"""What do others make of samples? TRL's PPO and GRPO find the same losses and gradients.

PPO is that of TRL 1.12, the last that has it, in a process of its own. It puts the score of a response that has ended
on the first padding after it, and asks the critic for a value there. Apart from that one line both are the same; with
it, ours are the same where the test puts the score there too.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from test_trl_oracle import (
    Found,
    gradients,
    llama,
    one_thread,  # noqa: F401  for every test
    perturbed,
    tokens,
    words,
)
from tiny_runs import PROJECT
from torch import Tensor

from lm.branches import Actor, Scores, Values
from trainer import grpo, ppo
from trainer.advantages import divergence, gae, whitened
from trainer.config import Grpo, Ppo
from trainer.experience import Experience, Players, joined, lengths, seen, told, with_fields
from trainer.loop import Algorithm, Passes, fit
from trainer.pairs import laid_out

pytestmark = pytest.mark.clients
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed here: make test-clients")

PAD, END = 0, 2
TEMPERATURE = 0.7
RATE = 0.05
NEAR = 1e-4
PASSES = Passes(torch.device("cpu"), tokens=64)
"""So few tokens at once that an update takes several passes."""


def plain(scores: Tensor) -> Tensor:
    return scores


def asking(model: Any) -> Callable[[Sequence[Any]], Tensor]:
    """The reference, as players ask it."""
    actor = Actor(copy.deepcopy(model), temperature=TEMPERATURE)

    @torch.no_grad()
    def ask(rows: Sequence[Any]) -> Tensor:
        return actor(laid_out(rows)).likelihoods

    return ask


def learned(
    aim: Algorithm, part: Any, batch: Sequence[Experience], *, updates: int = 1, rate: float = 0.0
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What some updates of the loop log, in the mean, and the first gradient of a part."""
    optimizer = torch.optim.SGD(part.parameters(), lr=rate)
    first: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, each in gradients(part).items():
            first.setdefault(name, each)

    optimizer.register_step_pre_hook(keep)
    numbered = ((number, batch) for number in range(1, updates + 1))
    logged = [each.metrics for each in fit(aim, numbered, optimizer, PASSES, lambda _: rate, clip=0.0)]
    return {name: fmean(each[name] for each in logged) for name in logged[0]}, first


# PPO


LONGEST = 9


def response(count: int, seed: int, *, ends: bool = True) -> tuple[int, ...]:
    return (*tokens(count - 1, seed), END) if ends else tokens(count, seed)


RAGGED = [
    (tokens(5, 1), (response(4, 2), response(LONGEST, 3, ends=False))),
    (tokens(11, 4), (response(LONGEST, 5), response(LONGEST - 1, 6))),
    (tokens(1, 7), (response(1, 8), response(6, 9), response(2, 10))),
    (tokens(8, 11), (response(7, 12),)),
    (tokens(3, 13), (response(LONGEST, 14, ends=False), response(5, 15))),
]
FULL = [(prompt, tuple(response(LONGEST, sum(each), ends=False) for each in answers)) for prompt, answers in RAGGED]
BATCHES = {"ragged": RAGGED, "full": FULL}


@dataclass(frozen=True)
class Case:
    """`index` is where TRL's score stands: `after` a response that has ended, as released, or on its `last` token."""

    batch: str
    index: str
    whiten: bool
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.batch}-{self.index}-{'whitened' if self.whiten else 'plain'}-{self.epochs}"

    @property
    def config(self) -> Ppo:
        return Ppo(whiten=self.whiten, critic="model")


CASES = [
    Case(batch, index, whiten, epochs)
    for batch, index in (("ragged", "after"), ("ragged", "last"), ("full", "after"))
    for whiten in (False, True)
    for epochs in (1, 2)
]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    policy, scorer = llama(), llama("SequenceClassification", num_labels=1)
    return {
        "policy": policy,
        "reference": perturbed(policy),
        "sampler": perturbed(policy, 0.01, seed=9),
        "value": perturbed(scorer, seed=10),
        "reward": perturbed(scorer, seed=11),
    }


@dataclass(frozen=True)
class Theirs:
    logged: Mapping[str, float]
    gradients: Mapping[str, Tensor]


@pytest.fixture(scope="module")
def theirs(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Theirs]:
    """What TRL comes to in each case."""
    from safetensors.torch import load_file

    python = Path(os.environ.get("RLAIF_TRL_PPO") or PROJECT / ".venv-trl-ppo/bin/python")
    if not python.exists():
        pytest.skip(f"TRL 1.12 is not installed at {python}: make test-clients, or give RLAIF_TRL_PPO")
    folder = tmp_path_factory.mktemp("trl")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    jobs = [
        {
            "name": case.name,
            "prompts": [prompt for prompt, answers in BATCHES[case.batch] for _ in answers],
            "responses": [answer for _, answers in BATCHES[case.batch] for answer in answers],
            "epochs": case.epochs,
            "whiten": case.whiten,
            "index": case.index,
        }
        for case in CASES
    ]
    given = {"pad": PAD, "end": END, "temperature": TEMPERATURE, "rate": RATE, "jobs": jobs}
    (folder / "jobs.json").write_text(json.dumps(given), "utf-8")
    worker = Path(__file__).with_name("trl_ppo_worker.py")
    done = subprocess.run(
        [str(python), str(worker), str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        case.name: Theirs(
            json.loads((folder / f"{case.name}.json").read_text("utf-8")),
            load_file(folder / f"{case.name}.safetensors"),
        )
        for case in CASES
    }


def sampled(models: dict[str, Any], batch: str) -> list[Experience]:
    """The rows as a round begins: the sampler's likelihoods, the reference's, the critic's values, the scores."""
    score = Scores(copy.deepcopy(models["reward"])).eval()
    rows = [Experience(str(at), prompt, answers) for at, (prompt, answers) in enumerate(BATCHES[batch])]
    with torch.no_grad():
        rows = [replace(row, rewards=score(laid_out([row]))) for row in rows]
    sampler = Actor(copy.deepcopy(models["sampler"]), temperature=TEMPERATURE)
    critic = Values(copy.deepcopy(models["value"]))
    return told(rows, Players(sampler, critic, asking(models["reference"]), PASSES))


def after_the_end(
    models: dict[str, Any], rows: Sequence[Experience], config: Ppo
) -> tuple[list[Experience], list[Experience]]:
    """TRL's place for the score: rows for the policy, and rows for the critic, whose answers go on by one padding.

    There the policy is nobody's and the KL 0; the critic is asked for the value of the whole answer. An answer that
    fills all tokens has its score on the last one.
    """
    longer = [
        replace(row, answers=tuple(each if len(each) == LONGEST else (*each, PAD) for each in row.answers))
        for row in rows
    ]
    critic, counts = Values(copy.deepcopy(models["value"])).eval(), lengths(longer)
    real = torch.cat([torch.arange(most) < own for own, most in zip(lengths(rows), counts, strict=True)])

    def stretched(found: Tensor) -> Tensor:
        return torch.zeros(len(real)).masked_scatter(real, found)

    with torch.no_grad():
        values = critic(laid_out(longer))
    rewards = stretched(-config.beta * divergence(joined(rows, "old") - joined(rows, "reference"), config.estimator))
    rewards[torch.tensor(counts).cumsum(0) - 1] += joined(rows, "rewards")
    if config.whiten:
        rewards = whitened(rewards, shift=False)
    advantage, returns = gae(rewards, values, counts, gamma=config.gamma, lam=config.lam)
    nothing = torch.zeros(len(real))
    return (
        with_fields(rows, advantages=whitened(advantage[real]), returns=returns[real]),
        with_fields(longer, old=nothing, advantages=nothing, values=values, returns=returns),
    )


@dataclass(frozen=True)
class Ours:
    policy: dict[str, float]
    critic: dict[str, float]
    gradients: dict[str, Tensor]


def ours(models: dict[str, Any], case: Case, acting: Sequence[Experience], valued: Sequence[Experience]) -> Ours:
    """What the algorithm's updates come to: the policy learns from some rows, the critic from others."""
    logged, found = [], {}
    for name, batch in (("policy", acting), ("value", valued)):
        actor = Actor(copy.deepcopy(models["policy"]), temperature=TEMPERATURE)
        critic = Values(copy.deepcopy(models["value"]))
        aim = ppo.algorithm(Players(actor, critic, None, PASSES), case.config)
        part = {"policy": actor, "value": critic}[name].model
        metrics, first = learned(aim, part, batch, updates=case.epochs, rate=RATE)
        logged.append(metrics)
        found |= {f"{name}.{at}": each for at, each in first.items()}
    return Ours(logged[0], logged[1], found)


def apart(found: Ours, wanted: Theirs, rows: Sequence[Experience]) -> dict[str, float]:
    """How far both are from each other, in each number."""
    counts = lengths(rows)
    places, real = len(counts) * LONGEST, sum(counts)
    numbers = {
        "loss/policy_avg": found.policy["policy_loss"],
        "loss/value_avg": found.critic["value_loss"],
        "val/ratio": (found.policy["ratio"] * real + places - real) / places,  # its mean is of padding too
        "objective/kl": seen(with_fields(rows, sampled=joined(rows, "old")))["kl"],
        "objective/scores": float(joined(rows, "rewards").mean()),
    }
    assert found.gradients.keys() == wanted.gradients.keys()
    print({name: (each, wanted.logged[name]) for name, each in numbers.items()})
    far = {name: abs(each - wanted.logged[name]) for name, each in numbers.items()}
    for part in ("policy", "value"):
        names = [name for name in found.gradients if name.startswith(part)]
        assert max(float(found.gradients[name].abs().max()) for name in names) > 1e-3
        far[f"{part} gradient"] = max(float((found.gradients[at] - wanted.gradients[at]).abs().max()) for at in names)
    print({name: f"{each:.2g}" for name, each in far.items()})
    return far


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ppo_is_trls(models, theirs, case):
    rows = sampled(models, case.batch)
    ready, _ = ppo.advantages(rows, case.config, case.config.beta, plain)
    acting, valued = ready, ready
    if case.index == "after":
        acting, valued = after_the_end(models, rows, case.config)
    wanted = theirs[case.name]
    far = apart(ours(models, case, acting, valued), wanted, rows)
    assert max(far.values()) <= NEAR, far
    assert wanted.logged["policy/clipfrac_avg"] > 0
    if case.epochs > 1:
        assert wanted.logged["val/clipfrac_avg"] > 0, "in the first epoch no value has moved"


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
def test_trls_place_of_the_score_is_a_difference(models, theirs, whiten):
    case = Case("ragged", "after", whiten, 1)
    rows = sampled(models, case.batch)
    ready, _ = ppo.advantages(rows, case.config, case.config.beta, plain)
    far = apart(ours(models, case, ready, ready), theirs[case.name], rows)
    assert max(far[name] for name in ("val/ratio", "objective/kl", "objective/scores")) <= NEAR
    assert min(far[f"loss/{name}_avg"] for name in ("policy", "value")) > 2 * NEAR
    assert min(far[f"{name} gradient"] for name in ("policy", "value")) > 10 * NEAR


# GRPO


SAMPLES = 4
GROUPS = [
    (tokens(5, 21), (response(4, 22), response(LONGEST, 23, ends=False), response(6, 24), response(1, 25))),
    (tokens(12, 26), (response(LONGEST, 27), response(2, 28), response(3, 29), response(7, 30))),
    (tokens(1, 31), (response(5, 32), response(8, 33), response(2, 34), response(4, 35))),
]
REWARDS = [[1.0, -0.5, 0.25, 2.0], [0.5, 0.5, 0.5, 0.5], [3.0, 0.0, -1.0, 0.125]]
"""All of the second group's are equal."""
KINDS = {"grpo": "response", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}
SCALES = {"group": "grpo", "batch": "batch", "none": "centered"}


@pytest.fixture(scope="module")
def folder(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference, where TRL finds it."""
    place = tmp_path_factory.mktemp("reference")
    models["reference"].save_pretrained(place)
    return place


def trls_grpo(
    models: dict[str, Any], folder: Path, scratch: Path, groups: Any, rewards: Any, *, parts: int = 1, **own: Any
) -> Found:
    """TRL's loss of samples that the sampler has written, in so many passes, and its gradient."""
    import trl
    from datasets import Dataset
    from trl.trainer.utils import split_tensor_dict

    written = [(prompt, answer) for prompt, answers in groups for answer in answers]

    def rollout(prompts: list[str], _trainer: Any) -> dict[str, list[Any]]:
        assert len(prompts) == len(written)
        asked, answered = ([list(each) for each in side] for side in zip(*written, strict=True))
        return {"prompt_ids": asked, "completion_ids": answered, "logprobs": None}

    model = copy.deepcopy(models["sampler"])
    model.config._name_or_path = model.name_or_path = str(folder)
    args = trl.GRPOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=len(written) // parts,
        gradient_accumulation_steps=parts,
        num_generations=SAMPLES,
        num_iterations=2,  # the likelihoods of the first are kept for the second
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        use_bias_correction_kl=False,  # the paper's KL; by default it is weighed by the ratio
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **own,
    )
    rows = [{"prompt": f"w{at + 3}"} for at in range(len(groups)) for _ in range(SAMPLES)]
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda **_: [each for group in rewards for each in group],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=words(pad_token="<a>", unk_token="<b>", eos_token="<c>"),
        rollout_func=rollout,
    )
    trainer.current_gradient_accumulation_steps = parts
    trainer.model.train()
    inputs = trainer._generate_and_score_completions(rows)
    assert "old_per_token_logps" in inputs
    trainer.model.load_state_dict(models["policy"].state_dict())
    losses = [trainer.compute_loss(trainer.model, part) for part in split_tensor_dict(inputs, parts)]
    sum(losses).backward()
    return Found(sum(losses).item(), gradients(trainer.model))


def our_grpo(models: dict[str, Any], groups: Any, rewards: Any, config: Grpo) -> Found:
    sampler, policy = (Actor(copy.deepcopy(models[name]), temperature=TEMPERATURE) for name in ("sampler", "policy"))
    rows = [
        Experience(str(at), prompt, answers, rewards=torch.tensor(own))
        for at, ((prompt, answers), own) in enumerate(zip(groups, rewards, strict=True))
    ]
    rows = told(rows, Players(sampler, None, asking(models["reference"]), PASSES))
    ready = grpo.advantages(rows, config, plain)
    aim = grpo.algorithm(Players(policy, None, None, PASSES), config, LONGEST)
    metrics, first = learned(aim, policy.model, ready)
    assert metrics["clipped"] > 0
    return Found(metrics["loss"], first)


@needs_trl
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_grpo_is_trls(models, folder, tmp_path, kind, scale, beta):
    found = our_grpo(models, GROUPS, REWARDS, Grpo(advantage=SCALES[scale], aggregate=KINDS[kind], beta=beta))
    own = {"loss_type": kind, "scale_rewards": scale, "beta": beta}
    found.agrees(trls_grpo(models, folder, tmp_path, GROUPS, REWARDS, **own))


@needs_trl
@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
def test_grpo_is_trls_in_several_passes(models, folder, tmp_path, kind):
    """All but BNPO's, which is the mean over the tokens of each pass: there it is not what is computed at once."""
    found = our_grpo(models, GROUPS, REWARDS, Grpo(aggregate=KINDS[kind]))
    for parts in (2, 3):
        own = {"loss_type": kind, "scale_rewards": "group", "beta": 0.04}
        found.agrees(trls_grpo(models, folder, tmp_path, GROUPS, REWARDS, parts=parts, **own))


@needs_trl
@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_teach_nothing(models, folder, tmp_path, scale):
    groups, rewards = GROUPS[1:2], REWARDS[1:2]
    own = {"loss_type": "grpo", "scale_rewards": scale, "beta": 0.0}
    wanted = trls_grpo(models, folder, tmp_path, groups, rewards, **own)
    for found in (our_grpo(models, groups, rewards, Grpo(advantage=SCALES[scale], beta=0.0)), wanted):
        assert found.loss == 0
        assert max(float(each.abs().max()) for each in found.gradients.values()) == 0
