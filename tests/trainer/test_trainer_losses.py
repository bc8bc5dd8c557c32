"""Are the losses those of the papers, to their printed digits, with the gradients that follow?"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import losses
from trainer.config import Dpo
from trainer.dpo import objective
from trainer.examples import Pair
from trainer.pairs import paired
from trainer.rows import Row

LN2 = math.log(2)
DIFFERENCES = st.floats(-30, 30, allow_nan=False)
CHANCES = st.floats(0, 1)
HARD = {
    "logistic": losses.logistic,
    "hinge": losses.hinge,
    "robust": losses.robust(0.1),
    "squared": losses.squared(0.5),
    "scaled": losses.scaled(losses.logistic, 0.1),
    "shifted": losses.shifted(losses.logistic, 0.5),
}


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def variables(*values):
    return numbers(*values).requires_grad_()


def gradient(loss, *of):
    return [each.tolist() for each in torch.autograd.grad(loss.sum(), of)]


def ranked(count, p=1.0):
    """All pairs of responses that are ordered best first."""
    return tuple(Pair(i, j, p) for i in range(count) for j in range(i + 1, count))


def row(count, pairs=None):
    return Row(f"{count}", (1,), tuple((2 + at,) for at in range(count)), ranked(count) if pairs is None else pairs)


def of_rows(scores, *rows, hard=False):
    """The Bradley-Terry loss of each row."""
    pairs = paired(rows, torch.device("cpu"), hard=hard)
    found = losses.bradley_terry(scores[pairs.first], scores[pairs.second], pairs.p.double(), pairs.margin.double())
    return pairs.per_row(found)


# Soft labels: papers.md section 1.3


@pytest.mark.parametrize(("p", "at", "least"), [(0.6, 0.40547, 0.67301), (0.9, 2.19722, 0.32508)])
def test_a_soft_label_is_least_at_its_logit(p, at, least):
    first, second = variables(at), variables(0.0)
    loss = losses.bradley_terry(first, second, numbers(p))
    assert loss.item() == pytest.approx(least, abs=1e-5)
    assert gradient(loss, first, second)[0] == pytest.approx([0], abs=1e-5)


@given(DIFFERENCES, CHANCES)
def test_a_soft_label_is_the_cross_entropy_of_both_answers(difference, p):
    first, second = variables(difference), variables(0.0)
    loss = losses.bradley_terry(first, second, numbers(p))
    both = torch.stack([first, second]).log_softmax(0)
    assert loss.item() == pytest.approx(float(-(p * both[0] + (1 - p) * both[1]).item()), rel=1e-9, abs=1e-12)
    ((of_first,), (of_second,)) = gradient(loss, first, second)
    assert of_first == pytest.approx(1 / (1 + math.exp(-difference)) - p, abs=1e-12)
    assert of_second == pytest.approx(-of_first, abs=1e-15)


@given(DIFFERENCES)
def test_a_hard_label_is_bradley_terry(difference):
    first, second = numbers(difference), numbers(0.0)
    expected = math.log1p(math.exp(-difference)) if difference > -30 else -difference
    assert losses.bradley_terry(first, second, numbers(1.0)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert losses.bradley_terry(second, first, numbers(0.0)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


# All pairs of a ranking: section 4


def test_equal_scores_cost_ln_2():
    assert of_rows(numbers(3, 3, 3, 3), row(4)).tolist() == pytest.approx([LN2])


def test_a_ranking_of_four_is_the_mean_of_its_six_pairs_and_no_plackett_luce():
    found = of_rows(numbers(2, 1, 0, -1), row(4))
    assert found.tolist() == pytest.approx([0.2070381], abs=5e-8)
    differences = [j - i for i in range(4) for j in range(i + 1, 4)]
    assert found.item() == pytest.approx(sum(math.log1p(math.exp(-each)) for each in differences) / 6)


def test_a_ranking_of_two_is_bradley_terry():
    assert of_rows(numbers(0.7, -0.2), row(2)).item() == pytest.approx(math.log1p(math.exp(-0.9)), abs=1e-9)


def test_a_constant_added_to_all_scores_leaves_loss_and_gradients():
    scores = variables(2, 1, 0, -1, 0.3, 0.1)
    moved = (scores.detach() + 5).requires_grad_()
    one, other = (of_rows(each, row(4), row(2)) for each in (scores, moved))
    assert one.tolist() == pytest.approx(other.tolist(), abs=1e-12)
    assert gradient(one, scores)[0] == pytest.approx(gradient(other, moved)[0], abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_a_prompt_weighs_the_same_however_many_responses_it_has(count):
    scores = variables(*([0.0] * (count + 2)))
    found = of_rows(scores, row(count), row(2)).mean()
    assert found.item() == pytest.approx(LN2)
    own = gradient(found, scores)[0]
    assert own[-2:] == pytest.approx([-0.25, 0.25])
    weights = [-(count - 1 - 2 * at) / (count * (count - 1)) for at in range(count)]
    assert own[:-2] == pytest.approx([each / 2 for each in weights])


def test_pairs_are_those_of_their_own_row():
    pairs = (Pair(1, 0, 0.8, 0.5), Pair(2, 0))
    found = paired([row(2, (Pair(0, 1, 0.6),)), row(3, pairs)], torch.device("cpu"), hard=False)
    assert (found.first.tolist(), found.second.tolist(), found.counts) == ([0, 3, 4], [1, 2, 2], [1, 2])
    assert found.p.tolist() == pytest.approx([0.6, 0.8, 1])
    assert found.margin.tolist() == [0, 0.5, 0]
    assert found.per_row(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1, 3]
    assert paired([row(2, (Pair(1, 0, 0.6),))], torch.device("cpu"), hard=True).p.tolist() == [1]


# Margins: section 5

MARGINS = [0, 1 / 3, 2 / 3, 1, 2, 3]


def test_margins_cost_what_llama_2_prints():
    found = losses.bradley_terry(numbers(0), numbers(0), numbers(1), numbers(*MARGINS)).tolist()
    assert found == pytest.approx([0.693147, 0.873639, 1.081037, 1.313262, 2.126928, 3.048587], abs=5e-7)


def test_a_larger_margin_pulls_harder():
    first = variables(*([1.0] * 6))
    loss = losses.bradley_terry(first, numbers(0), numbers(1), numbers(*MARGINS))
    assert gradient(loss, first)[0] == pytest.approx([-0.2689, -0.3392, -0.4174, -0.5, -0.7311, -0.8808], abs=5e-5)


@given(DIFFERENCES, st.floats(0, 3), CHANCES)
def test_a_margin_moves_the_difference(difference, margin, p):
    moved = losses.bradley_terry(numbers(difference - margin), numbers(0), numbers(p))
    found = losses.bradley_terry(numbers(difference), numbers(0), numbers(p), numbers(margin))
    assert found.item() == pytest.approx(moved.item(), abs=1e-12)


def test_centering_is_the_square_of_the_sum():
    first, second = variables(1.5), variables(-0.5)
    loss = losses.centering(first, second)
    assert loss.item() == 1
    assert gradient(loss, first, second) == [[2], [2]]


# DPO and its relatives: section 7


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_a_policy_that_is_its_reference_costs_ln_2_and_is_pulled_by_half_of_beta(beta):
    chosen, rejected = variables(-10.0), variables(-11.0)
    hard = objective(Dpo(beta=beta)).hard
    loss = losses.soft(hard, (chosen + 10) - (rejected + 11), numbers(1))
    assert loss.item() == pytest.approx(LN2)
    assert gradient(loss, chosen, rejected) == [[pytest.approx(-beta / 2)], [pytest.approx(beta / 2)]]


def test_dpo_of_known_log_probabilities():
    policy, reference = numbers(-10, -11), numbers(-12, -11)
    chosen, rejected = policy - reference
    loss = losses.soft(objective(Dpo(beta=0.1)).hard, chosen - rejected, numbers(1))
    assert loss.item() == pytest.approx(0.598139, abs=5e-7)


def test_dpo_of_three_pairs():
    chosen = numbers(-0.5, -10, -1) - numbers(-0.5, -10.1, -0.1)
    rejected = numbers(-0.1, -30, -21) - numbers(-0.1, -20.1, -0.1)
    loss = losses.soft(objective(Dpo(beta=0.1)).hard, chosen - rejected, numbers(1))
    assert loss.tolist() == pytest.approx([0.693147, 0.313262, 0.126928], abs=5e-7)


@pytest.mark.parametrize("h", [-3.0, 0.0, 1.0, 25.0])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_pulls_by_beta_times_how_wrong_it_is(beta, h):
    difference = variables(h)
    loss = objective(Dpo(beta=beta)).hard(difference)
    assert gradient(loss, difference)[0] == pytest.approx([-beta / (1 + math.exp(beta * h))])


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("loss", ["ipo", "ipo-averaged"])
def test_ipo_is_zero_at_its_distance(loss, beta):
    difference = variables(1 / (2 * beta))
    found = objective(Dpo(loss=loss, beta=beta)).hard(difference)
    assert (found.item(), gradient(found, difference)) == (0, [[0]])
    assert objective(Dpo(loss=loss, beta=beta)).hard(numbers(0)).item() == pytest.approx(1 / (4 * beta**2))
    assert objective(Dpo(loss=loss, beta=beta)).averaged == (loss == "ipo-averaged")


@pytest.mark.parametrize(
    ("h", "expected", "slope"), [(0.0, 1.0, -0.5), (1.0, 0.5, -0.5), (3.0, 0.0, 0.0)], ids=["even", "near", "content"]
)
def test_hinge_is_content_one_ahead(h, expected, slope):
    difference = variables(h)
    loss = objective(Dpo(loss="hinge", beta=0.5)).hard(difference)
    assert (loss.item(), gradient(loss, difference)) == (expected, [[slope]])


def test_simpo_wants_its_margin_of_averages_and_no_reference():
    aim = objective(Dpo(loss="simpo", beta=2.0, gamma=0.5))
    assert aim.averaged
    assert not aim.referenced
    assert aim.hard(numbers(0.25)).item() == pytest.approx(LN2)
    assert aim.hard(numbers(1.0)).item() == pytest.approx(math.log1p(math.exp(-1.5)))


@given(DIFFERENCES)
def test_robust_becomes_dpo_without_noise(difference):
    exact = losses.logistic(numbers(difference)).item()
    assert losses.robust(0)(numbers(difference)).item() == exact
    assert losses.robust(1e-7)(numbers(difference)).item() == pytest.approx(exact, abs=1e-5)


@given(DIFFERENCES, st.floats(0, 0.49))
def test_robust_is_unbiased_under_its_noise(difference, noise):
    hard = losses.robust(noise)
    d = numbers(difference)
    seen = (1 - noise) * hard(d) + noise * hard(-d)
    assert seen.item() == pytest.approx(losses.logistic(d).item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("noise", [0.5, 0.7, -0.1])
def test_robust_refuses_labels_that_say_nothing(noise):
    with pytest.raises(ValueError, match="expected 0 to less than"):
        losses.robust(noise)


@given(DIFFERENCES)
def test_labels_that_are_wrong_half_of_the_time_favour_neither(difference):
    p = losses.smoothed(numbers(1), 0.5)
    one, other = (losses.soft(losses.logistic, numbers(each), p).item() for each in (difference, -difference))
    assert one == pytest.approx(other)


@given(CHANCES, st.floats(0, 0.5))
def test_smoothing_is_the_chance_after_a_flip(p, noise):
    found = losses.smoothed(numbers(p), noise).item()
    assert found == pytest.approx((1 - 2 * noise) * p + noise)
    assert losses.smoothed(numbers(1), noise).item() == pytest.approx(1 - noise)


# What holds for every loss of a difference


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_a_loss_is_linear_in_its_label(hard):
    d = numbers(-1.3, 0.0, 2.1)
    zero, one, some = (losses.soft(hard, d, numbers(p)) for p in (0, 1, 0.3))
    assert some.tolist() == pytest.approx((0.3 * one + 0.7 * zero).tolist())
    assert one.tolist() == hard(d).tolist()
    assert zero.tolist() == hard(-d).tolist()


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
@given(difference=DIFFERENCES, p=CHANCES)
def test_a_swapped_pair_with_the_other_label_costs_the_same(hard, difference, p):
    one, other = variables(difference), variables(-difference)
    here, there = losses.soft(hard, one, numbers(p)), losses.soft(hard, other, numbers(1) - numbers(p))
    assert here.item() == pytest.approx(there.item(), rel=1e-12, abs=1e-12)
    assert gradient(here, one)[0][0] == pytest.approx(-gradient(there, other)[0][0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_an_even_label_pulls_nowhere_at_no_difference(hard):
    difference = variables(0.0)
    assert gradient(losses.soft(hard, difference, numbers(0.5)), difference) == [[pytest.approx(0, abs=1e-15)]]


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_gradients_are_those_of_finite_differences(hard):
    d, p = variables(-2.0, -0.4, 0.3, 1.7), variables(0.1, 0.5, 0.8, 1.0)
    assert torch.autograd.gradcheck(lambda d, p: losses.soft(hard, d, p), (d, p))


@pytest.mark.parametrize("p", [0.55, 0.7, 0.95])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_soft_dpo_is_least_where_beta_h_is_the_labels_logit(beta, p):
    at = math.log(p / (1 - p)) / beta
    difference = variables(at)
    loss = losses.soft(objective(Dpo(beta=beta)).hard, difference, numbers(p))
    assert gradient(loss, difference)[0] == pytest.approx([0], abs=1e-12)
    assert loss.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("name", ["logistic", "robust", "shifted"])
def test_extreme_differences_stay_finite(name, value):
    difference = torch.tensor([value], requires_grad=True)
    loss = losses.soft(HARD[name], difference, torch.tensor([0.9]))
    assert torch.isfinite(loss).all()
    assert math.isfinite(gradient(loss, difference)[0][0])


# CPL: section 10


def test_cpl_of_equal_segments():
    assert losses.cpl(numbers(-2), numbers(-2), numbers(1)).item() == pytest.approx(LN2)
    assert losses.cpl(numbers(-2), numbers(-2), numbers(1), 0.5).item() == pytest.approx(1.313262, abs=5e-7)


@given(DIFFERENCES, DIFFERENCES, st.floats(0.01, 1))
def test_cpl_is_a_stable_softmax_of_the_good_and_the_scaled_bad(good, bad, conservative):
    found = losses.cpl(numbers(good), numbers(bad), numbers(1), conservative)
    expected = torch.logaddexp(numbers(0), numbers(conservative * bad - good))
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


@given(DIFFERENCES, DIFFERENCES, CHANCES, st.floats(0.01, 1))
def test_cpl_of_a_swapped_pair_with_the_other_label_costs_the_same(first, second, p, conservative):
    here = losses.cpl(numbers(first), numbers(second), numbers(p), conservative).item()
    there = losses.cpl(numbers(second), numbers(first), numbers(1) - numbers(p), conservative).item()
    assert here == pytest.approx(there, rel=1e-12, abs=1e-12)


def test_more_likely_segments_cost_less_only_where_cpl_is_conservative():
    first, second = numbers(-2.0, -7.0), numbers(-3.0, -6.0)
    for conservative, cheaper in ((1.0, False), (0.5, True)):
        before = losses.cpl(first, second, numbers(1), conservative)
        after = losses.cpl(first + 1.5, second + 1.5, numbers(1), conservative)
        if cheaper:
            assert (after < before).all()
        else:
            torch.testing.assert_close(after, before)


def test_cpl_without_conservatism_is_dpo_with_a_flat_reference():
    first, second, p = numbers(-2.0, -7.0), numbers(-3.0, -6.0), numbers(0.9, 0.6)
    torch.testing.assert_close(
        losses.cpl(0.1 * first, 0.1 * second, p),
        losses.soft(objective(Dpo(beta=0.1)).hard, first - second, p),
    )


@pytest.mark.parametrize("conservative", [0.5, 1.0])
def test_cpls_gradients_are_those_of_finite_differences(conservative):
    first, second, p = variables(-2.0, 0.4), variables(0.3, -1.7), variables(0.2, 0.9)
    assert torch.autograd.gradcheck(lambda *each: losses.cpl(*each, conservative), (first, second, p))
