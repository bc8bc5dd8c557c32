"""What is minimised? Pure functions of scores or log-probabilities, one implementation each, soft labels first.

Of preferences all tensors are (B,), one number a pair, and so are the results: whoever calls takes the mean. In a pair,
`first` is the response that the data prefers and `p` >= .5 how surely (1: a hard label); nothing here needs that order
but the margin. Of samples they are (T,), one number a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Hard = Callable[[Tensor], Tensor]
"""A loss of the difference between first and second, made for first being the better one."""


def soft(hard: Hard, difference: Tensor, p: Tensor) -> Tensor:
    """A hard loss under a soft label: its expectation over which response is better, linear in p.

    With `logistic` it is the cross-entropy of RLAIF's reward model (Lee et al. 2023, section 2.2.1) and of conservative
    DPO: minimal where the difference is logit(p).
    """
    return p * hard(difference) + (1 - p) * hard(-difference)


def logistic(difference: Tensor) -> Tensor:
    """-log sigmoid: Bradley-Terry (Ouyang et al. 2022, eq. 1, for one pair) and DPO (Rafailov et al. 2023, eq. 7)."""
    return -F.logsigmoid(difference)


def hinge(difference: Tensor) -> Tensor:
    """max(0, 1 - difference): SLiC (Zhao et al. 2023) and RSO (Liu et al. 2023)."""
    return F.relu(1 - difference)


def robust(noise: float) -> Hard:
    """DPO made unbiased where labels are flipped with chance `noise` < .5 (Chowdhury et al. 2024, eq. 12)."""
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise {noise:g}: expected 0 to less than .5")
    return lambda difference: ((1 - noise) * logistic(difference) - noise * logistic(-difference)) / (1 - 2 * noise)


def squared(beta: float) -> Hard:
    """IPO: (h - 1 / (2 beta))^2 for the unscaled difference h of log-ratios (Azar et al. 2023, eq. 17)."""
    return lambda difference: (difference - 1 / (2 * beta)).square()


def scaled(hard: Hard, beta: float) -> Hard:
    """The same loss of beta times the difference."""
    return lambda difference: hard(beta * difference)


def shifted(hard: Hard, margin: float) -> Hard:
    """The same loss with first `margin` ahead of second before it is content (SimPO's gamma, Meng et al. 2024)."""
    return lambda difference: hard(difference - margin)


def smoothed(p: Tensor, noise: float) -> Tensor:
    """Labels that are wrong with chance `noise`: cDPO (Mitchell 2023) where p is 1."""
    return p * (1 - noise) + (1 - p) * noise


def bradley_terry(first: Tensor, second: Tensor, p: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Cross-entropy between p and sigmoid(first - second - margin) of two scores.

    Lee et al. 2023, section 2.2.1; the margin, at least 0 and on first's side: Llama 2 (Touvron et al. 2023, eq. 2).
    The gradient in first is sigmoid(first - second - margin) - p.
    """
    return soft(logistic, first - second - margin, p)


def centering(first: Tensor, second: Tensor) -> Tensor:
    """(first + second)^2: keeps scores around 0, which pairs alone leave open (Eisenstein et al. 2023)."""
    return (first + second).square()


def cpl(first: Tensor, second: Tensor, p: Tensor, conservative: float = 1.0) -> Tensor:
    """Contrastive preference learning on A = alpha * sum of log pi, no reference (Hejna et al. 2023, eq. 5).

    -log e^A+ / (e^A+ + e^(lambda A-)); `conservative` lambda in (0, 1] below 1 also raises both segments' likelihood.
    """

    def hard(good: Tensor, bad: Tensor) -> Tensor:
        return F.softplus(conservative * bad - good)

    return p * hard(first, second) + (1 - p) * hard(second, first)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's surrogate, as a loss: max(-A rho, -A clip(rho, 1 - eps, 1 + eps)), with rho = pi / pi_old (Schulman et al.
    2017, eq. 7).
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def value_clipped(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the larger of two squared errors: of V, and of V kept within eps of what it was."""
    near = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def reinforce(log_probabilities: Tensor, advantage: Tensor) -> Tensor:
    """-A log pi, whose gradient is that of the expected reward (Williams 1992)."""
    return -advantage * log_probabilities


def hindsight(right: Tensor, wrong: Tensor, noise: float) -> Tensor:
    """HIR's contrast of an answer's mean log-probability under the instruction that it fulfils and under the opposite:
    -(1 - eps) log(p+ / (p+ + p-)) - eps log(p- / (p+ + p-)) (Zhang et al. 2023, released code).
    """
    return soft(logistic, right - wrong, torch.full_like(right, 1 - noise))
