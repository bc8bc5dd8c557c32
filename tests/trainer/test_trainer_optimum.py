"""Do the algorithms reach the policy that is known to be the best? On a bandit, and on texts of two tokens.

The optimum of E[r] - beta KL[pi || ref] is pi* ~ ref exp(r / beta) (Ziegler et al. 2019). A tiny real model is sampled
and trained through the same rollouts, rows, passes and loop as any run.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lm import tree
from lm.branches import Actor
from lm.rows import branches
from lm.sample import Draw, write
from trainer.config import Grpo, Optim, Ppo, Reinforce
from trainer.experience import Players
from trainer.grpo import grpo
from trainer.loop import Passes, adamw, fit, rate
from trainer.pairs import laid_out
from trainer.ppo import ppo
from trainer.reinforce import reinforce
from trainer.rollouts import Group, Question, Sample

WORDS = 10
PROMPT = (WORDS,)
"""A token of its own begins every text; it may be written too, like the others."""
SAMPLES, ROUNDS = 1024, 120
PASSES = Passes(torch.device("cpu"), 4096)


class Tokenizer:
    """Nothing is ever decoded to words."""

    eos_token_id = None

    def decode(self, tokens: list[int], **_: object) -> str:
        return " ".join(map(str, tokens))


def policy(*, valued: bool) -> Actor:
    config = LlamaConfig(
        vocab_size=WORDS + 1,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=None)
    return Actor(model, valued=valued)


@torch.no_grad()
def chances(actor: Actor, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every text of so many tokens."""
    texts = list(product(range(WORDS + 1), repeat=length))
    found = actor(branches([(PROMPT, texts)])).likelihoods.view(-1, length).sum(1).exp()
    return dict(zip(texts, found.tolist(), strict=True))


def best(reference: dict[tuple[int, ...], float], rewards: dict[tuple[int, ...], float], beta: float):
    weights = {text: chance * torch.tensor(rewards[text] / beta).exp().item() for text, chance in reference.items()}
    total = sum(weights.values())
    return {text: each / total for text, each in weights.items()}


def distance(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    """Total variation."""
    return sum(abs(one[text] - other[text]) for text in one) / 2


def order(count: int, number: int, epoch: int) -> list[int]:
    places = list(range(count))
    random.Random(f"{number} {epoch}").shuffle(places)
    return places


def rows(actor: Actor, rewards: dict[tuple[int, ...], float], length: int, number: int) -> list[Group]:
    draws = [Draw(PROMPT, length, 1.0, 0, number * SAMPLES + at, ()) for at in range(SAMPLES)]
    written = write(actor.model, Tokenizer(), draws, batch=SAMPLES)
    samples = [Sample(each.text, each.drawn, each.likelihoods, True, rewards[each.drawn]) for each in written]
    question = Question("the bandit", "", PROMPT, "topic")
    return [Group(question, tuple(samples))]


METHODS = {
    "ppo": (Ppo(beta=0.5, epochs=2, value_weight=1.0, lam=1.0), 0.5),
    "reinforce": (Reinforce(beta=1 / 3, value_weight=1.0), 0.5),
    "rloo": (Grpo(advantage="rloo", aggregate="token", beta=0.5, penalty="reward", estimator="k1"), 0.5),
    "dr. grpo": (Grpo(advantage="centered", aggregate="constant", beta=0.5, penalty="reward", estimator="k1"), 0.5),
}


def learned(config, rewards, length, actor=None):
    """The policy after a run, the one before, and the largest ratio, share clipped and KL that the first round saw."""
    actor = policy(valued=not isinstance(config, Grpo)) if actor is None else actor
    reference = copy.deepcopy(actor).requires_grad_(False)

    @torch.no_grad()
    def ask(some):
        return reference(laid_out(some)).likelihoods

    players = Players(actor, None, ask, PASSES)
    plain = lambda x: x  # noqa: E731
    made = {
        Ppo: partial(ppo, players, config, 1, order, plain),
        Reinforce: partial(reinforce, players, config, 1, order, plain),
        Grpo: lambda: grpo(players, config, 1, order, plain, length),
    }[type(config)]()
    optim = Optim(lr=0.003, warmup=0.05, floor=0.01)
    optimizer, schedule = adamw(actor, optim), rate(optim, ROUNDS)
    first = None
    for number in range(1, ROUNDS + 1):
        for lesson in made.prepare(number, rows(actor, rewards, length, number)).lessons:
            updates = fit(
                made.algorithm, enumerate(lesson.batches, 1), optimizer, PASSES, lambda _, n=number: schedule(n), 1.0
            )
            for update in updates:
                first = first or update.metrics
    return actor, reference, first


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.training
@pytest.mark.parametrize("length", [1, 2], ids=["bandit", "two tokens"])
def test_the_optimum_is_reached(name, length):
    config, beta = METHODS[name]
    texts = list(product(range(WORDS + 1), repeat=length))
    rewards = {text: text[0] % 3 / 2 + float(text[0] % 2 == text[-1] % 2) for text in texts}
    actor, reference, first = learned(config, rewards, length)
    wanted = best(chances(reference, length), rewards, beta)
    assert distance(chances(reference, length), wanted) > 0.2, "there is something to learn"
    assert distance(chances(actor, length), wanted) < 0.02
    if not isinstance(config, Reinforce):
        assert first["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert first["clipped"] == 0
        assert first["policy_kl"] == pytest.approx(0.0, abs=1e-6)


# The bandit of three arms whose optimum is printed

ARMS = {(0,): 0.5, (1,): 0.3, (2,): 0.2}
"""The reference."""
WORTH = {(0,): 1.0, (1,): 0.0, (2,): 2.0}
PRINTED = {
    1.0: ((0.433268, 0.095634, 0.471098), 1.143252, 0.232212),
    0.5: ((0.247720, 0.020115, 0.732165), 1.351155, 0.721790),
}
"""By beta: the best policy, what it is worth, beta ln Z, and its KL from the reference."""


def kl(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    return sum(chance * math.log(chance / other[text]) for text, chance in one.items())


def worth(chosen: dict[tuple[int, ...], float], beta: float) -> float:
    """E[r] - beta KL[pi || ref]."""
    return sum(chance * WORTH[text] for text, chance in chosen.items()) - beta * kl(chosen, ARMS)


@pytest.mark.parametrize("beta", PRINTED)
def test_papers_bandit_has_its_printed_optimum(beta):
    chosen, most, apart = PRINTED[beta]
    found = best(ARMS, WORTH, beta)
    assert list(found.values()) == pytest.approx(chosen, abs=1e-6)
    assert worth(found, beta) == pytest.approx(most, abs=1e-6)
    assert kl(found, ARMS) == pytest.approx(apart, abs=1e-6)
    total = sum(chance * math.exp(WORTH[text] / beta) for text, chance in ARMS.items())
    assert worth(found, beta) == pytest.approx(beta * math.log(total), abs=1e-12)


def test_papers_bandit_is_worth_so_much_at_a_small_beta():
    assert worth(best(ARMS, WORTH, 0.1), 0.1) == pytest.approx(1.839068, abs=1e-6)


def armed(*, valued: bool) -> Actor:
    """A language model that pulls each arm with the chance that the papers' reference has, and says nothing else."""
    actor = policy(valued=valued)
    with torch.no_grad():
        asked = branches([(PROMPT, [(0,)])])
        laid = tree.lay(asked.pack, torch.device("cpu"))
        said = actor.model.model(input_ids=laid.input_ids, position_ids=laid.position_ids, tree=laid.tree)
        state = said.last_hidden_state[0, asked.places[0]]
        wanted = torch.full((WORDS + 1,), -40.0)
        wanted[: len(ARMS)] = torch.tensor(list(ARMS.values())).log()
        actor.model.lm_head.weight.copy_(wanted[:, None] * state / state.square().sum())
    return actor


def pulled(actor: Actor) -> dict[tuple[int, ...], float]:
    """How likely each arm is, of which nothing is left for other words."""
    found = {text: chance for text, chance in chances(actor, 1).items() if text in ARMS}
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    return found


def methods(beta: float) -> dict[str, Ppo | Reinforce | Grpo]:
    """Each at this weight of the KL; REINFORCE has the reward weigh 1 - beta (Lee et al. 2023)."""
    loss = Grpo(advantage="centered", aggregate="token", beta=beta, penalty="loss", estimator="k2")
    return {
        "ppo": Ppo(beta=beta, epochs=2, value_weight=1.0, lam=1.0),
        "reinforce": Reinforce(beta=beta / (1 + beta), value_weight=1.0),
        "grpo, k2 in the loss": loss,
        "rloo, k2 in the loss": replace(loss, advantage="rloo"),
    }


@pytest.mark.training
@pytest.mark.parametrize("name", methods(1.0))
@pytest.mark.parametrize("beta", PRINTED)
def test_the_printed_optimum_is_reached(name, beta):
    config = methods(beta)[name]
    actor = armed(valued=not isinstance(config, Grpo))
    assert pulled(actor) == pytest.approx(ARMS, abs=1e-5)
    actor, _, _ = learned(config, WORTH, 1, actor)
    found, (chosen, most, apart) = pulled(actor), PRINTED[beta]
    assert distance(found, dict(zip(ARMS, chosen, strict=True))) < 0.02
    assert worth(found, beta) == pytest.approx(most, abs=0.005)
    assert worth(found, beta) <= most + 1e-6
    assert kl(found, ARMS) == pytest.approx(apart, abs=0.03)


@pytest.mark.training
def test_k3_in_the_loss_ends_elsewhere():
    """Its gradient is that of the other direction, KL[ref || pi]. It ends where r - E[r] = beta (1 - ref / pi), so pi
    is ref / (1 - (r - E[r]) / beta), which is no tilted reference.
    """
    beta = 2.0
    config = replace(methods(beta)["grpo, k2 in the loss"], estimator="k3")
    found = pulled(learned(config, WORTH, 1, armed(valued=False))[0])
    mean = sum(chance * WORTH[text] for text, chance in found.items())
    wanted = {text: chance / (1 - (WORTH[text] - mean) / beta) for text, chance in ARMS.items()}
    assert sum(wanted.values()) == pytest.approx(1.0, abs=0.02)
    assert distance(found, wanted) < 0.02
    assert distance(found, best(ARMS, WORTH, beta)) > 0.02


def test_a_coefficient_that_is_adapted_rises_while_the_kl_is_above_its_target():
    config = replace(METHODS["ppo"][0], target=1e-3, horizon=SAMPLES)
    actor = policy(valued=True)
    reference = copy.deepcopy(actor).requires_grad_(False)
    with torch.no_grad():
        actor.model.lm_head.weight += 0.5 * torch.randn(actor.model.lm_head.weight.shape)
    players = Players(actor, None, lambda some: reference(laid_out(some)).likelihoods.detach(), PASSES)
    made = ppo(players, config, 1, order, lambda x: x)
    rewards = {(at,): float(at) for at in range(WORDS + 1)}
    round_ = made.prepare(1, rows(actor, rewards, 1, 1))
    assert round_.metrics["kl"] > 1e-3
    assert round_.metrics["beta"] == config.beta
    assert made.state == {"beta": pytest.approx(config.beta * 1.2)}
