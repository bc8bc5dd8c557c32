"""Labels and texts joined into training rows: prompt, chosen, rejected, p (that chosen is better), margin (Llama 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.records import MARGINS_SMALL, Comparison, Failure, Label, Message
from labeler.preference import strength
from prompts.render import transcript


@dataclass
class Counts:
    """What became of the comparisons; filled while the rows are drawn."""

    written: int = 0
    ties: int = 0
    unlabelled: int = 0


def conversational(comparisons: Iterable[Comparison | Failure]) -> bool:
    """Whether any prompt is a conversation: then all are written as messages, since a trainer reads one kind only."""
    return any(isinstance(row, Comparison) and not isinstance(row.prompt, str) for row in comparisons)


def rows(
    comparisons: Iterable[Comparison | Failure], labels: Iterable[Label], counts: Counts, *, messages: bool
) -> Iterator[dict[str, Any]]:
    """Training rows in the order of the comparisons. An exact tie has no chosen side and is left out, and counted.

    With `messages`, prompts and responses are message lists, as TRL takes them; else every prompt is one text.
    """
    labelled = {label.id: (label.p, label.content) for label in labels}
    used: set[str] = set()
    for row in comparisons:
        if isinstance(row, Failure) or row.id in used:
            continue
        used.add(row.id)
        p, content = labelled.get(row.id, (None, ""))
        if p is None or content not in {"", row.content}:
            counts.unlabelled += 1
            continue
        if p == 0.5:
            counts.ties += 1
            continue
        counts.written += 1
        yield _row(row, p, messages=messages)


def _row(row: Comparison, p: float, *, messages: bool) -> dict[str, Any]:
    best = int(p < 0.5)
    sides = {"chosen": row.responses[best], "rejected": row.responses[1 - best]}
    numbers = {"p": max(p, 1 - p), "margin": MARGINS_SMALL[strength(p)]}
    if not messages:
        return {"id": row.id, "prompt": transcript(row.prompt), **sides, **numbers}
    turns: dict[str, list[Mapping[str, str]]] = {
        name: [{"role": "assistant", "content": text}] for name, text in sides.items()
    }
    prompt = (Message(role="user", content=row.prompt),) if isinstance(row.prompt, str) else row.prompt
    return {"id": row.id, "prompt": [message.model_dump() for message in prompt], **turns, **numbers}
