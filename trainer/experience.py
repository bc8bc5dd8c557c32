"""What is known of sampled responses when learning from them begins: rows with one number a token, or an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lm.branches import Actor, Told, Values
from trainer import parallel
from trainer.loop import Algorithm, Beside, Passes
from trainer.pairs import laid_out
from trainer.rollouts import Group
from trainer.rows import Row, pieces

NOTHING = torch.empty(0)


@dataclass(frozen=True, eq=False)
class Experience(Row):
    """A prompt and the samples that have a reward, T tokens in all and A of them.

    `sampled` are log-probabilities (T,) as they were when sampling; `old` and `reference` those of the policy that is
    about to learn, and of the reference, in the rows that are learned from; `values` (T,) is what the critic expected;
    `advantages` (T,) and `returns` (T,) are what an algorithm makes of them.
    """

    rewards: Tensor = NOTHING
    sampled: Tensor = NOTHING
    old: Tensor = NOTHING
    entropies: Tensor = NOTHING
    reference: Tensor = NOTHING
    values: Tensor = NOTHING
    advantages: Tensor = NOTHING
    returns: Tensor = NOTHING

    @property
    def lengths(self) -> list[int]:
        return [len(each) for each in self.answers]

    @property
    def tokens(self) -> float:
        """What it weighs where every token weighs the same."""
        return float(sum(self.lengths))


@dataclass(frozen=True)
class Players:
    """The policy, and who it is held against: a critic of its own, a reference; `passes` is how rows go through."""

    actor: Actor
    critic: Values | None
    reference: Callable[[Sequence[Row]], Tensor] | None
    passes: Passes


@dataclass(frozen=True)
class Lesson:
    """Batches to learn from one after another, at a part of the round's rate."""

    batches: Iterator[Sequence[Row]]
    rate: float = 1.0


@dataclass(frozen=True)
class Round:
    """What a round's samples come to: its lessons, and what is worth logging of them."""

    lessons: Iterator[Lesson]
    metrics: dict[str, float]


@dataclass
class Method:
    """An algorithm that learns from its own samples.

    `prepare` makes a round of its number and groups; `algorithm` learns from the rows; `enough` ends a round's updates
    early; `state` is what a run that goes on has to know.
    """

    algorithm: Algorithm[Any]
    prepare: Callable[[int, Sequence[Group]], Round]
    enough: Callable[[dict[str, float]], bool] = lambda _metrics: False
    state: dict[str, float] | None = None
    beside: Beside | None = None
    recall: Callable[[Sequence[Group]], None] | None = None
    """Told the groups of earlier rounds when a run goes on, where they matter."""


def experiences(groups: Sequence[Group]) -> list[Experience]:
    """Groups as rows, without the samples that have no reward."""
    rows: list[Experience] = []
    for group in groups:
        kept = group.rewarded
        if kept:
            rewards = torch.tensor([each.reward for each in kept], dtype=torch.float32)
            answers = tuple(each.tokens for each in kept)
            sampled = torch.tensor([value for each in kept for value in each.likelihoods])
            question = group.question
            rows.append(Experience(question.id, question.tokens, answers, rewards=rewards, sampled=sampled))
    return rows


@torch.no_grad()
def told(rows: Sequence[Experience], players: Players) -> list[Experience]:
    """The same rows with what policy, critic and reference say of them."""
    for module in (players.actor, players.critic):
        if module is not None:
            module.eval()
    found: dict[int, Experience] = {}
    place = {id(row): at for at, row in enumerate(rows)}
    for piece in parallel.mine(pieces(rows, players.passes.tokens, parallel.world())):
        some = piece or rows[:1]
        with players.passes.room(some), players.passes.precision():
            said: Told = players.actor(laid_out(some))
            values = said.values if players.critic is None else players.critic(laid_out(some))
        reference = None if players.reference is None else players.reference(some)
        tensors = {"old": said.likelihoods, "entropies": said.entropies, "reference": reference, "values": values}
        for row, own in zip(piece, _split(tensors, some), strict=bool(piece)):
            found[place[id(row)]] = replace(row, **own)
    for module in (players.actor, players.critic):
        if module is not None:
            parallel.settle(module)
            module.train()
    whole = parallel.joined(found)
    return [whole[at] for at in range(len(rows))]


def _split(tensors: dict[str, Tensor | None], rows: Sequence[Experience]) -> list[dict[str, Any]]:
    sizes = [sum(row.lengths) for row in rows]
    made: list[dict[str, Any]] = [{} for _ in rows]
    for name, tensor in tensors.items():
        if tensor is not None:
            for own, each in zip(made, tensor.float().cpu().split(sizes), strict=True):
                own[name] = each
    return made


def joined(rows: Sequence[Experience], name: str, device: torch.device | str = "cpu") -> Tensor:
    """One field of all rows, (T,) or (A,)."""
    return torch.cat([getattr(row, name) for row in rows]).to(device)


def log_ratios(rows: Sequence[Experience]) -> Tensor:
    """log pi - log ref of what was sampled, (T,); 0 where there is no reference."""
    old, reference = joined(rows, "old"), joined(rows, "reference")
    return old - reference if len(reference) else torch.zeros_like(old)


def lengths(rows: Sequence[Experience]) -> list[int]:
    """Of all answers of the rows, (A,)."""
    return [each for row in rows for each in row.lengths]


def with_fields(rows: Sequence[Experience], **tensors: Tensor) -> list[Experience]:
    """The rows with new (T,) tensors, each row its part."""
    return [replace(row, **own) for row, own in zip(rows, _split({**tensors}, rows), strict=True)]


def per_row(values: Tensor, rows: Sequence[Row]) -> Tensor:
    """The mean over each row's tokens, (T,) -> (R,)."""
    sizes = [sum(map(len, row.answers)) for row in rows]
    return torch.stack([each.mean() for each in values.split(sizes)])


def over(rows: Sequence[Row], size: int, epochs: int, order: Callable[[int], Sequence[int]]) -> Iterator[Lesson]:
    """Several passes over rows, each in its own order, in batches of `size`."""
    for epoch in range(epochs):
        ordered = [rows[at] for at in order(epoch)]
        yield Lesson(iter([ordered[at : at + size] for at in range(0, len(ordered), size)]))


def drift(rows: Sequence[Experience]) -> float:
    """How far, in nats a token, the log-probabilities while sampling are from those while learning."""
    return float((joined(rows, "sampled") - joined(rows, "old")).abs().mean())


def seen(rows: Sequence[Experience]) -> dict[str, float]:
    """What every algorithm logs of a round."""
    rewards, counts = joined(rows, "rewards").double(), lengths(rows)  # of equal ones the deviation is 0
    summed = torch.stack([each.sum() for each in log_ratios(rows).split(counts)])
    return {
        "reward": float(rewards.mean()),
        "reward_deviation": float(rewards.std(unbiased=False)),
        **({"kl": float(summed.mean())} if len(rows[0].reference) else {}),
        "entropy": float(joined(rows, "entropies").mean()),
        "length": sum(counts) / len(counts),
        "drift": drift(rows),
    }
