"""Labels and texts joined into training rows: prompt, chosen, rejected, p (that chosen is better), margin (Llama 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from data.errors import RlaifError
from data.records import Comparison, Failure, Label
from labeler.preference import MARGINS, strength
from prompts.render import transcript

Form: TypeAlias = Literal["trl", "pairs"]


@dataclass
class Counts:
    """What became of the comparisons; filled while the rows are drawn."""

    written: int = 0
    ties: int = 0
    unlabelled: int = 0


def rows(
    comparisons: Iterable[Comparison | Failure], labels: Iterable[Label], form: Form, counts: Counts
) -> Iterator[dict[str, Any]]:
    """Training rows in the order of the comparisons. An exact tie has no chosen side and is left out, and counted.

    `trl` keeps conversations as messages; `pairs` writes every prompt as one text. Raises RlaifError for mixed prompts
    under `trl`, which no trainer could read.
    """
    p_of = {label.id: label.p for label in labels}
    kinds: set[bool] = set()
    used: set[str] = set()
    for row in comparisons:
        if isinstance(row, Failure) or row.id in used:
            continue
        used.add(row.id)
        if row.id not in p_of:
            counts.unlabelled += 1
            continue
        p = p_of[row.id]
        if p == 0.5:
            counts.ties += 1
            continue
        kinds.add(isinstance(row.prompt, str))
        if form == "trl" and len(kinds) > 1:
            raise RlaifError(f"row {row.id}: some prompts are texts and some are conversations; use --to pairs")
        counts.written += 1
        yield _row(row, p, form)


def _row(row: Comparison, p: float, form: Form) -> dict[str, Any]:
    best = int(p < 0.5)
    sides = {"chosen": row.responses[best], "rejected": row.responses[1 - best]}
    numbers = {"p": max(p, 1 - p), "margin": MARGINS[strength(p)]}
    if form == "pairs" or isinstance(row.prompt, str):
        return {"id": row.id, "prompt": transcript(row.prompt), **sides, **numbers}
    turns: dict[str, list[Mapping[str, str]]] = {
        name: [{"role": "assistant", "content": text}] for name, text in sides.items()
    }
    return {"id": row.id, "prompt": [message.model_dump() for message in row.prompt], **turns, **numbers}
