"""The pairs of several rows as tensors: which answers are compared, how surely, and what each pair weighs.

Shapes: B pairs, R rows, A answers of all rows one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.rows import Branches, branches
from trainer.rows import Row


@dataclass(frozen=True)
class Paired:
    """`first` and `second` (B,) index answers; `p` and `margin` (B,); `counts` says how many pairs each row has."""

    first: Tensor
    second: Tensor
    p: Tensor
    margin: Tensor
    counts: list[int]

    def per_row(self, values: Tensor) -> Tensor:
        """The mean of each row's pairs, (B,) -> (R,): every prompt weighs the same (Ouyang et al. 2022, eq. 1)."""
        return torch.stack([each.mean() for each in values.split(self.counts)])


def laid_out(rows: Sequence[Row]) -> Branches:
    """All answers of the rows in one pack."""
    return branches((row.prompt, row.answers) for row in rows)


def paired(rows: Sequence[Row], device: torch.device, *, hard: bool) -> Paired:
    """The rows' pairs. `hard` rounds what is known to 1: the first is better."""
    first: list[int] = []
    second: list[int] = []
    p: list[float] = []
    margin: list[float] = []
    start = 0
    for row in rows:
        for pair in row.pairs:
            first.append(start + pair.first)
            second.append(start + pair.second)
            p.append(1.0 if hard else pair.p)
            margin.append(pair.margin)
        start += len(row.answers)
    index = torch.tensor([first, second], device=device)
    known = torch.tensor([p, margin], device=device, dtype=torch.float32)
    return Paired(index[0], index[1], known[0], known[1], [len(row.pairs) for row in rows])
