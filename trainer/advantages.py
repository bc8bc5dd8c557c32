"""How much better was an action than expected? Pure functions of rewards, values and log-ratios.

Tensors are (T,), the tokens of all answers one after another, with `lengths` saying how many each answer has; or (A,),
one number an answer. Nothing is padded, so nothing has to be masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def divergence(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """Schulman's estimators of KL[pi || ref] (2020) from log pi - log ref of what pi sampled; with r = ref / pi: k1 =
    -ln r, k2 = (ln r)^2 / 2, k3 = r - 1 - ln r. k1 and k3 are unbiased, k3 is never negative.

    As a reward k1 has the right gradient, as a loss k2; that of k3 is of the other direction, KL[ref || pi].
    """
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return torch.expm1(-log_ratio) + log_ratio


def placed(scores: Tensor, lengths: Sequence[int]) -> Tensor:
    """One score an answer, (A,), as rewards of tokens, (T,): it stands on the answer's last token."""
    rewards = scores.new_zeros(sum(lengths))
    rewards[torch.tensor(lengths).cumsum(0) - 1] = scores
    return rewards


def gae(rewards: Tensor, values: Tensor, lengths: Sequence[int], *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (T,) each: generalised advantage estimation (Schulman et al. 2016, eq. 16), with
    delta_t = r_t + gamma V_{t+1} - V_t and no value after the last token.
    """
    grid, real = _grid(torch.stack([rewards, values]), lengths)
    advantage = grid.new_zeros(len(lengths))
    after = grid.new_zeros(len(lengths))
    found = torch.zeros_like(grid[0])
    for at in reversed(range(grid.shape[-1])):
        advantage = torch.where(
            real[:, at], grid[0, :, at] + gamma * after - grid[1, :, at] + gamma * lam * advantage, 0
        )
        after = torch.where(real[:, at], grid[1, :, at], 0)
        found[:, at] = advantage
    advantages = found[real]
    return advantages, advantages + values


def to_go(rewards: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum of each token's reward and those after it, (T,)."""
    return gae(rewards, torch.zeros_like(rewards), lengths, gamma=1.0, lam=1.0)[0]


def whitened(x: Tensor, *, shift: bool = True) -> Tensor:
    """Variance 1, and mean 0 unless it is not to be shifted (LMHP whitens rewards so)."""
    mean, scale = x.mean(), torch.rsqrt(x.var(unbiased=len(x) > 1) + 1e-8)
    return (x - mean) * scale + (0 if shift else mean)


def leave_one_out(rewards: Tensor, groups: Sequence[int]) -> Tensor:
    """Each answer's reward less the mean of the others to its prompt, (A,): RLOO (Ahmadian et al. 2024). An answer that
    stands alone, or is worth what all others are, teaches nothing: 0.
    """
    return torch.cat(
        [
            torch.zeros_like(each) if equal(each) else each - (each.sum() - each) / (len(each) - 1)
            for each in rewards.split(list(groups))
        ]
    )


def standardised(rewards: Tensor, groups: Sequence[int], scale: Literal["group", "batch", "none"]) -> Tensor:
    """Each answer's reward less its prompt's mean, over the deviation of its prompt's, or of all: GRPO (Shao et al.
    2024, section 4.1.2); without a scale Dr. GRPO (Liu et al. 2025). A group of equal rewards teaches nothing: 0.
    """
    centered = torch.cat(
        [torch.zeros_like(each) if equal(each) else each - each.mean() for each in rewards.split(list(groups))]
    )
    if scale == "none":
        return centered
    if scale == "batch":
        return centered / (_deviation(rewards) + 1e-4)
    deviations = [_deviation(each).expand(len(each)) for each in rewards.split(list(groups))]
    return centered / (torch.cat(deviations) + 1e-4)


def equal(rewards: Tensor) -> bool:
    """Whether all are the same: their mean may be rounded to another number, and what is then left is no signal."""
    return bool((rewards == rewards[0]).all())


def spread(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """One number an answer, (A,), for each of its tokens, (T,)."""
    return values.repeat_interleave(torch.tensor(lengths, device=values.device))


def adapted(coefficient: float, kl: float, *, target: float, horizon: float, count: int) -> float:
    """The next KL coefficient (Ziegler et al. 2019, section 2.2): it grows while the summed KL of an answer is above
    the target, at most by a fifth in `horizon` answers.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * count / horizon)


def _deviation(x: Tensor) -> Tensor:
    return x.std() if len(x) > 1 else x.new_zeros(())


def _grid(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(..., T) -> (..., A, longest), and which of its places are real, (A, longest)."""
    counts = torch.tensor(lengths, device=x.device)
    real = torch.arange(int(counts.max()), device=x.device) < counts[:, None]
    grid = x.new_zeros(*x.shape[:-1], *real.shape)
    grid[..., real] = x
    return grid, real
