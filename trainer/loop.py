"""The one loop: a generator of updates. Who calls it decides to log, evaluate, save or stop.

An algorithm is what its rows come to, a tensor a row, and what each row weighs. An update is the weighted mean over its
rows, however they are split into passes or over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor, nn

from trainer import parallel
from trainer.config import Optim, TrainingError
from trainer.rows import R, Row, pieces

Values = Mapping[str, Tensor]
"""What rows come to, (rows,) each: first `loss`, with its gradient, then what else is worth logging."""


@dataclass(frozen=True)
class Algorithm(Generic[R]):
    """What is trained, on what: `values` of some rows, and what a row `weighs` in an update's mean."""

    module: nn.Module
    values: Callable[[Sequence[R]], Values]
    weigh: Callable[[R], float] = lambda _row: 1.0


@dataclass(frozen=True)
class Passes:
    """How rows go through a model: on which device, in what precision, how many tokens at once."""

    device: torch.device
    tokens: int
    bfloat16: bool = False

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    @contextmanager
    def room(self, rows: Sequence[Row]) -> Generator[None]:
        """Where memory may run out, for these rows: raises TrainingError with what to do."""
        try:
            yield
        except RuntimeError as error:
            if not exhausted(error):
                raise
            size = sum(row.size for row in rows)
            raise TrainingError(
                f"out of memory on {self.device} with {size} tokens at once: give a smaller --run.tokens "
                f"(now {self.tokens}), --model.checkpointing, or --model.lora 16; the last checkpoint stays"
            ) from error


@dataclass(frozen=True)
class Beside:
    """What is learned in the same updates: its gradients are added, `weight` times (Ouyang et al. 2022, eq. 2)."""

    name: str
    algorithm: Algorithm[Any]
    rows: Callable[[int], Sequence[Row]]
    weight: float


@dataclass(frozen=True)
class Update:
    """What one step of the optimizer did. `number` counts from 1."""

    number: int
    metrics: dict[str, float]


def fit(
    algorithm: Algorithm[R],
    batches: Iterable[tuple[int, Sequence[R]]],
    optimizer: torch.optim.Optimizer,
    passes: Passes,
    rate: Callable[[int], float],
    clip: float,
    beside: Beside | None = None,
) -> Iterator[Update]:
    """Take one step for each numbered batch and yield what happened. Raises TrainingError where a loss is no number."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    algorithm.module.train()
    for number, batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        metrics = _accumulate(algorithm, batch, passes)
        if beside is not None:
            more = _accumulate(beside.algorithm, beside.rows(number), passes, beside.weight)
            metrics |= {f"{beside.name}_{name}": value for name, value in more.items()}
        norm = float(_whole(nn.utils.clip_grad_norm_(parameters, clip or math.inf)))
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
            raise TrainingError(f"update {number}: the gradient is not a number; rows: {_named(batch)}")
        with passes.room(batch):  # the first step makes AdamW's state
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield Update(number, {**metrics, "grad_norm": norm, "lr": rate(number)})


def _accumulate(algorithm: Algorithm[R], batch: Sequence[R], passes: Passes, times: float = 1.0) -> dict[str, float]:
    """Gradients of the batch's weighted mean, so many times, and the means of what was logged."""
    weight = sum(map(algorithm.weigh, batch))
    sums: dict[str, float] = {}
    for rows in parallel.mine(pieces(batch, passes.tokens, parallel.world())):
        with passes.room(rows), passes.precision():
            values = algorithm.values(rows or batch[:1])
        loss = values["loss"]
        weights = torch.tensor([algorithm.weigh(row) for row in rows] or [0.0], device=loss.device)
        logged = torch.stack([(each.detach().float() * weights).sum() for each in values.values()]).tolist()
        if rows and not math.isfinite(logged[0]):
            broken = [row for row, each in zip(rows, loss.tolist(), strict=True) if not math.isfinite(each)]
            raise TrainingError(f"the loss is not a number; rows: {_named(broken)}")
        with passes.room(rows):  # FSDP averages gradients over processes; their sum is what is meant.
            ((loss * weights).sum() * (times * parallel.world() / weight)).backward()
        for name, each in zip(values, logged, strict=True):
            sums[name] = sums.get(name, 0.0) + each
    return {name: each / weight for name, each in parallel.summed(sums).items()}


@torch.no_grad()
def look(algorithm: Algorithm[R], rows: Sequence[R], passes: Passes) -> dict[str, list[float]]:
    """What each row comes to, row by row, without learning from it. Raises TrainingError where a loss is no number."""
    algorithm.module.eval()
    found: dict[int, dict[str, float]] = {}
    place = {id(row): at for at, row in enumerate(rows)}
    for piece in parallel.mine(pieces(rows, passes.tokens, parallel.world())):
        with passes.room(piece), passes.precision():
            values = algorithm.values(piece or rows[:1])
        for at, row in enumerate(piece):
            found[place[id(row)]] = {name: float(each[at]) for name, each in values.items()}
    parallel.settle(algorithm.module)
    algorithm.module.train()
    whole = parallel.joined(found)
    broken = [row for at, row in enumerate(rows) if not math.isfinite(whole[at]["loss"])]
    if broken:
        raise TrainingError(f"the held-out loss is not a number; rows: {_named(broken)}")
    return {name: [whole[at][name] for at in range(len(rows))] for name in whole[0]}


def rate(optim: Optim, total: int) -> Callable[[int], float]:
    """The learning rate of update 1, 2, ..., total: a straight rise, then half a cosine down to the floor."""
    rise = round(total * optim.warmup)

    def at(number: int) -> float:
        if number <= rise:
            return optim.lr * number / rise
        done = (number - rise - 1) / max(1, total - rise - 1)
        return optim.lr * (optim.floor + (1 - optim.floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    return at


def adamw(module: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW over what is trained; decay on matrices only."""
    trained = [each for each in module.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=optim.lr, betas=optim.betas, fused=True)


def _whole(norm: Tensor) -> Tensor:
    """The norm over all processes' parts."""
    whole = getattr(norm, "full_tensor", None)
    return norm if whole is None else whole()


def _named(rows: Sequence[Row]) -> str:
    names = ", ".join(row.id for row in rows[:5])
    return names if len(rows) <= 5 else f"{names} and {len(rows) - 5} more"


def exhausted(error: RuntimeError) -> bool:
    """Whether it was memory."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
