"""Advantages, penalties and the losses on samples, against the papers' printed numbers and sums over all outcomes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import losses
from trainer.advantages import (
    adapted,
    divergence,
    gae,
    leave_one_out,
    placed,
    spread,
    standardised,
    to_go,
    whitened,
)

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("lam", "expected"), [(0.95, (0.82675, 0.765, 0.7)), (1.0, (0.9, 0.8, 0.7))])
def test_gae_of_three_tokens_with_the_reward_at_the_end(lam, expected):
    advantages, returns = gae(placed(numbers(1.0), [3]), numbers(0.1, 0.2, 0.3), [3], gamma=1.0, lam=lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert (returns - advantages).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_gae_discounts_what_comes_later():
    """Reward and value 1 at the end: returns are g^3 l^2, g^2 l, g, 1 when the values before are 0."""
    g, lam = 0.9, 0.95
    _, returns = gae(numbers(0, 0, 0, 1), numbers(0, 0, 0, 1), [4], gamma=g, lam=lam)
    assert returns.tolist() == pytest.approx([g**3 * lam**2, g**2 * lam, g, 1.0])


@given(LENGTHS, st.integers(0, 1000))
def test_gae_of_several_answers_is_that_of_each(lengths, seed):
    torch.manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), dtype=torch.float64)
    both = gae(rewards, values, lengths, gamma=0.9, lam=0.8)
    alone = [
        gae(r, v, [len(r)], gamma=0.9, lam=0.8)
        for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True)
    ]
    for at in (0, 1):
        assert torch.allclose(both[at], torch.cat([each[at] for each in alone]))


@given(LENGTHS, st.integers(0, 1000))
def test_gae_at_its_ends_is_reward_to_go_or_one_step(lengths, seed):
    torch.manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), dtype=torch.float64)
    _, returns = gae(rewards, values, lengths, gamma=1.0, lam=1.0)
    assert torch.allclose(returns, to_go(rewards, lengths))
    by_hand = torch.cat([each.flip(0).cumsum(0).flip(0) for each in rewards.split(lengths)])
    assert torch.allclose(returns, by_hand)
    advantages, _ = gae(rewards, values, lengths, gamma=0.5, lam=0.0)
    after = torch.cat([torch.cat([each[1:], each.new_zeros(1)]) for each in values.split(lengths)])
    assert torch.allclose(advantages, rewards + 0.5 * after - values)


def test_whitening_has_mean_0_and_variance_1_and_may_leave_the_mean():
    x = numbers(1, 2, 4, 9)
    assert float(whitened(x).mean()) == pytest.approx(0)
    assert float(whitened(x).var()) == pytest.approx(1, abs=1e-6)
    assert float(whitened(x, shift=False).mean()) == pytest.approx(4.0)
    assert whitened(numbers(3, 3, 3)).tolist() == pytest.approx([0, 0, 0])
    assert whitened(numbers(3)).tolist() == [0.0]


def test_the_baseline_of_a_response_is_the_mean_of_the_others():
    assert leave_one_out(numbers(1, 2, 6, 5), [3, 1]).tolist() == pytest.approx([-3, -1.5, 4.5, 0])


def test_leave_one_out_is_unbiased_and_a_group_mean_is_not():
    """A bandit of two arms, all pairs of draws by their chance: the mean gradient is that of the reward."""
    p, reward = 0.3, numbers(1.0, 0.0)
    exact = p * (1 - p) * float(reward[0] - reward[1])  # d E[r] / d logit
    found = 0.0
    for first in (0, 1):
        for second in (0, 1):
            chance = math.prod(p if each == 0 else 1 - p for each in (first, second))
            slopes = numbers(*((1 - p) if each == 0 else -p for each in (first, second)))
            held = leave_one_out(torch.stack([reward[first], reward[second]]), [2])
            found += chance * float((held * slopes).mean())
    assert found == pytest.approx(exact, abs=1e-12)


def test_equal_rewards_teach_nothing():
    for scale in ("group", "batch", "none"):
        assert standardised(numbers(2, 2, 2), [3], scale).tolist() == [0, 0, 0]
        assert standardised(torch.full((8,), 9.99), [8], scale).tolist() == [0.0] * 8  # whose mean is another number


@given(
    st.lists(st.tuples(st.integers(1, 33), st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.1, 0.3, 9.99, 1 / 3]))),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_equal_rewards_have_no_advantage_over_one_another_at_all(groups, dtype):
    """Not even in the last digit, which a scale would blow up; beside a group that has something to tell."""
    sizes = [2, *(size for size, _ in groups)]
    values = torch.tensor([1.0, 3.0, *(value for size, value in groups for _ in range(size))], dtype=dtype)
    assert leave_one_out(values, sizes).tolist() == [-2.0, 2.0] + [0.0] * (len(values) - 2)


def test_standardised_rewards_of_a_group():
    rewards = numbers(1, 3, 5, 0)
    assert standardised(rewards, [3, 1], "group").tolist() == pytest.approx([-2 / 2.0001, 0, 2 / 2.0001, 0])
    deviation = float(rewards.std()) + 1e-4
    assert standardised(rewards, [3, 1], "batch").tolist() == pytest.approx([-2 / deviation, 0, 2 / deviation, 0])
    assert standardised(rewards, [3, 1], "none").tolist() == [-2, 0, 2, 0]
    assert spread(numbers(1, 2), [2, 3]).tolist() == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.5, 1, -1.2), (0.5, 1, -0.5), (1.5, -1, 1.5), (0.5, -1, 0.8), (math.e, 1, -1.2), (1 / math.e, -1, 0.8)],
)
def test_the_clipped_surrogate(ratio, advantage, loss):
    found = losses.clipped(numbers(math.log(ratio)), numbers(advantage), 0.2)
    assert float(found) == pytest.approx(loss, abs=1e-12)


def test_a_value_may_move_so_far_only():
    old, returns = numbers(0, 0, 0), numbers(1, 1, -1)
    found = losses.value_clipped(numbers(0.9, 0.1, 0.5), old, returns, 0.2)
    assert found.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 1.5**2])


def test_kl_estimators_by_summing_over_a_policy_of_three_tokens():
    """E[k1] = E[k3] = KL; the gradient of k2 is that of KL, of k1 is 0, of k3 that of the other direction."""
    logits = numbers(0.3, -0.5, 1.1).requires_grad_()
    reference = numbers(-0.2, 0.4, 0.1).log_softmax(0)
    policy = logits.log_softmax(0)
    chance = policy.exp().detach()
    log_ratio = policy - reference
    kl = (policy.exp() * log_ratio).sum()
    told = log_ratio.detach()
    for estimator in ("k1", "k3"):
        assert float((chance * divergence(told, estimator)).sum()) == pytest.approx(float(kl.detach()), abs=1e-12)
    assert bool((divergence(told, "k3") >= 0).all())

    def slope(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    right = slope(kl)
    other = slope((reference.exp() * (reference - policy)).sum())
    assert torch.allclose(slope((chance * divergence(log_ratio, "k2")).sum()), right)
    assert torch.allclose(slope((chance * divergence(log_ratio, "k1")).sum()), torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(slope((chance * divergence(log_ratio, "k3")).sum()), other)


def test_reinforce_has_the_gradient_of_the_expected_reward():
    logits = numbers(0.3, -0.5, 1.1).requires_grad_()
    rewards = numbers(1, 0, 2)
    policy = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((policy.exp() * rewards).sum(), logits, retain_graph=True)
    found = (policy.exp().detach() * losses.reinforce(policy, rewards - 0.7)).sum()  # any baseline
    assert torch.allclose(torch.autograd.grad(found, logits)[0], -exact)


@pytest.mark.parametrize(("kl", "factor"), [(12.0, 1.01024), (6.0, 1.0), (4.0, 0.98976), (0.1, 0.98976)])
def test_an_adapted_coefficient_moves_by_a_fifth_of_the_answers_over_the_horizon(kl, factor):
    assert adapted(1.0, kl, target=6.0, horizon=10000, count=512) == pytest.approx(factor)


def test_the_coefficient_of_twice_the_target():
    assert adapted(0.1, 12.0, target=6.0, horizon=10000, count=256) == pytest.approx(0.1 * (1 + 0.2 * 256 / 10000))


def test_hindsight_at_no_difference_is_ln_2():
    assert float(losses.hindsight(numbers(-1.5), numbers(-1.5), 0.2)) == pytest.approx(math.log(2))
