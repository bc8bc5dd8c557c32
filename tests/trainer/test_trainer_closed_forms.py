"""Numbers that papers print, found by integrating and by counting: estimators of KL, the best of N, token rewards."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from trainer.advantages import divergence
from trainer.config import Ppo
from trainer.experience import Experience
from trainer.ppo import advantages
from trainer.rejection import best
from trainer.rollouts import Group, Question, Sample

# Schulman's estimators: x ~ q = N(0, 1), p = N(mu, 1)

GAUSSIANS = {
    (0.1, "k1"): (0.0, 20.0),
    (0.1, "k2"): (0.0025, 1.4177),
    (0.1, "k3"): (0.0, 1.4166),
    (1.0, "k1"): (0.0, 2.0),
    (1.0, "k2"): (0.25, 1.7321),
    (1.0, "k3"): (0.0, 1.6950),
}
"""The bias and the deviation of each, over the true KL, mu^2 / 2."""


@pytest.mark.parametrize(("case", "expected"), GAUSSIANS.items(), ids=lambda each: " ".join(map(str, each)))
def test_estimators_of_the_kl_of_two_gaussians_have_the_printed_moments(case, expected):
    mu, estimator = case
    x = torch.linspace(-14, 14, 280_001, dtype=torch.float64)
    q, p = (torch.distributions.Normal(torch.tensor(at, dtype=torch.float64), 1.0).log_prob(x) for at in (0.0, mu))
    found = divergence(q - p, estimator)  # q samples, as the policy does
    mean = float(torch.trapezoid(q.exp() * found, x))
    deviation = math.sqrt(float(torch.trapezoid(q.exp() * found.square(), x)) - mean**2)
    true, (bias, printed) = mu**2 / 2, expected
    assert mean / true - 1 == pytest.approx(bias, abs=1e-7)
    assert deviation / true == pytest.approx(printed, abs=5e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_two_estimators_of_kl_are_never_negative_and_one_may_be(estimator):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert bool((divergence(x, estimator) >= 0).all())
    assert bool((divergence(x, "k1") < 0).any())
    near = torch.linspace(1e-4, 1e-3, 100, dtype=torch.float64)  # where the two are alike
    assert (divergence(near, estimator) / near.square()).tolist() == pytest.approx([0.5] * 100, abs=1e-3)


# The best of N


def group(rewards: tuple[float, ...]) -> Group:
    """Each response says what it is worth."""
    samples = tuple(Sample("", (int(each),), (0.0,), True, each) for each in rewards)
    return Group(Question("a", "a", (1,), "a"), samples)


def chosen(draws: tuple[int, ...], rounds: int) -> int:
    """Which of the draws is imitated, where they came in so many rounds."""
    known: dict[str, tuple[Group, Sample]] = {}
    size = len(draws) // rounds
    rows = []
    for start in range(0, len(draws), size):
        rows = best([group(tuple(float(each) for each in draws[start : start + size]))], known)
    ((answer,),) = (row.answers for row in rows)
    return answer[0]


def kl(chances: list[float]) -> float:
    """From the even policy."""
    return sum(each * math.log(each * len(chances)) for each in chances if each)


@pytest.mark.parametrize(("n", "arms", "rounds"), [(2, 24, 1), (2, 24, 2), (4, 6, 1), (4, 6, 2), (3, 9, 3), (1, 9, 1)])
def test_the_best_of_all_draws_has_the_chance_that_counting_gives(n, arms, rounds):
    """All draws of n from an even policy, in one round or several: the arm of rank k is the best of k^n - (k - 1)^n."""
    counts = [0] * arms
    for draws in product(range(arms), repeat=n):
        counts[chosen(draws, rounds)] += 1
    assert counts == [(k + 1) ** n - k**n for k in range(arms)]
    assert kl([each / arms**n for each in counts]) <= math.log(n) - (n - 1) / n + 1e-12


@pytest.mark.parametrize(("n", "printed"), [(2, 0.1931), (4, 0.6363), (8, 1.2044), (16, 1.8351)])
def test_what_counting_gives_goes_as_far_as_is_printed(n, printed):
    """ln N - (N - 1) / N, where no two responses are worth the same."""
    far = math.log(n) - (n - 1) / n
    assert far == pytest.approx(printed, abs=5e-5)
    found = [kl([((k + 1) / arms) ** n - (k / arms) ** n for k in range(arms)]) for arms in (100, 1000, 20_000)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(far, abs=1e-3)
    assert found[-1] <= far


# Rewards of tokens


@pytest.mark.parametrize("at", range(3))
def test_a_score_stands_on_the_last_token_and_the_kl_on_each_as_in_torchtune(at):
    """Its example get_rewards_ppo: where a token's return is its own reward (lambda 0, no values), they can be read."""
    scores = (1.0, 2.0, 3.0)
    policy = [(0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.6, 0.7, 0.8)]
    reference = [(0.2, 0.3, 0.4), (0.6, 0.7, 0.8), (0.9, 1.0, 1.1)]
    expected = [(0.05, 0.05, 1.05), (0.1, 0.1, 2.1), (0.15, 0.15, 3.15)]
    rows = [
        Experience(
            str(each),
            (1,),
            ((2, 3, 4),),
            rewards=torch.tensor([scores[each]], dtype=torch.float64),
            old=torch.tensor(policy[each], dtype=torch.float64),
            reference=torch.tensor(reference[each], dtype=torch.float64),
            values=torch.zeros(3, dtype=torch.float64),
        )
        for each in range(3)
    ]
    for some in (rows, rows[at : at + 1]):
        found, metrics = advantages(some, Ppo(lam=0.0), 0.5, lambda rewards: rewards)
        (own,) = [row for row in found if row.id == str(at)]
        assert own.returns.tolist() == pytest.approx(expected[at], abs=1e-6)
        assert metrics["return"] == pytest.approx(sum(sum(expected[int(row.id)]) for row in some) / 3 / len(some))
