"""What the evaluator's tests share: labels, human rows and games in a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data.games import Game
from data.records import Comparison, Label, Order, Vote
from evaluator.alignment import Alignment, evaluate
from evaluator.results import Results, collect


def label(identity: str, p: float, second: float | None = None) -> Label:
    """A label; with `second`, `p` and `second` are the two orders' probabilities of what is shown first."""
    firsts = [p] if second is None else [p, second]
    p = p if second is None else 0.5 + (p - second) / 2
    same = None if second is None or 0.5 in firsts else (firsts[0] > 0.5) == (firsts[1] > 0.5)
    fields: dict[str, Any] = {"tokens_in": 1, "tokens_out": 1, "usd": 0.0, "seconds": 0.0, "method": "logprobs"}
    return Label(
        **fields,
        id=identity,
        p=p,
        choice=None if p == 0.5 else int(p < 0.5),
        orders=tuple(Order(p_first=each, mass=1.0) for each in firsts),
        mass=1.0,
        same_position=same,
        model="fake:x",
        task="helpfulness",
        digest="d",
    )


def human(identity: str, votes: str, responses: tuple[str, ...] = ("first", "second"), **meta: Any) -> Comparison:
    """A row with votes such as `"001t"`: raters r0, r1, ... said 0, 0, 1, tie."""
    cast = tuple(Vote(rater=f"r{n}", choice="tie" if said == "t" else int(said)) for n, said in enumerate(votes))
    return Comparison(id=identity, prompt="p", responses=responses, votes=cast, meta=meta)


def compare(table: Mapping[str, tuple[Label | float, str]], **options: Any) -> Alignment:
    """Alignment of a small table: id to (p or a whole label, votes)."""
    labels = [said if isinstance(said, Label) else label(name, said) for name, (said, _) in table.items()]
    return evaluate(labels, {name: human(name, votes) for name, (_, votes) in table.items()}, **options)


def played(games: Iterable[tuple[Any, ...]]) -> Results:
    """Games such as `("a", "b", 1.0)`, each with a prompt of its own, or `(first, second, score, prompt, chars)`."""
    return collect(_game(at, *each) for at, each in enumerate(games))


def _game(
    at: int, first: str, second: str, score: float, prompt: object = None, chars: tuple[int, int] | None = None
) -> Game:
    return Game(first, second, score, str(at) if prompt is None else str(prompt), str(at), chars=chars)
