"""What does a file teach? Comparisons with votes, labels or rankings become prompts with pairs of their responses.

Pure data, no tokens: the texts as they stand, and for each pair how surely the first is the better one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Literal, TypeVar

from data import reading
from data.errors import RowError
from data.labels import judgements
from data.records import (
    MARGINS_LARGE,
    MARGINS_SMALL,
    Comparison,
    Failure,
    Label,
    Prompt,
    Ranking,
    Vote,
    fingerprint,
)
from data.sources.shape import number
from trainer.config import TrainingError

T = TypeVar("T")
Margins = Literal["none", "small", "large", "column"]

HELDOUT, MOST_HELDOUT = 0.1, 500
SAME = 20
"""So many rows that all prefer the same place are worth a word."""


@dataclass(frozen=True)
class Pair:
    """Of a prompt's responses, `first` is better than `second` with chance `p` >= .5, and should be `margin` ahead."""

    first: int
    second: int
    p: float = 1.0
    margin: float = 0.0


def topic(prompt: Prompt) -> str:
    """The same for all rows of one prompt."""
    return fingerprint([prompt] if isinstance(prompt, str) else [each.content for each in prompt])


@dataclass(frozen=True)
class Example:
    """A prompt, its responses, and what is known of which is better."""

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()

    @property
    def topic(self) -> str:
        """The same for all examples of one prompt: they are never on both sides of a split."""
        return topic(self.prompt)


@dataclass
class Learned:
    """The examples of a file; why other rows taught nothing; and who said which response is better."""

    examples: list[Example] = field(default_factory=list[Example])
    unusable: Counter[str] = field(default_factory=Counter[str])
    failures: list[Failure] = field(default_factory=list[Failure])
    rater: str = "the votes in the file"
    notes: list[str] = field(default_factory=list[str])


def demonstrations(source: str, labels: str | None, *, columns: str | None, limit: int | None, every: bool) -> Learned:
    """Prompts with what to imitate: a file of responses, or of comparisons (the preferred one, or every one)."""
    found = Learned(rater="the responses in the file")
    try:
        opened = reading.open_comparisons(source, columns)
    except reading.FileError:
        opened = None
    if labels is not None and (opened is None or every):
        raise TrainingError(f"data.labels {labels}: say which response is better; here every response is imitated")
    if opened is None or every:
        for row in islice(reading.each_response(source, columns), limit):
            if isinstance(row, Failure):
                found.failures.append(row)
            else:
                found.examples.append(Example(row.id, row.prompt, (row.response,)))
        return _checked(found, source)
    chosen = preferences(source, labels, columns=columns, limit=limit, margins="none")
    for example in chosen.examples:
        best = Counter(pair.first for pair in example.pairs).most_common(1)[0][0]
        found.examples.append(Example(example.id, example.prompt, (example.responses[best],)))
    found.unusable, found.failures, found.rater = chosen.unusable, chosen.failures, chosen.rater
    return _checked(found, source)


def preferences(
    source: str, labels: str | None, *, columns: str | None, limit: int | None, margins: Margins
) -> Learned:
    """Comparisons with what `labels` says of them, or else the votes they bring. Raises TrainingError, FileError."""
    found = Learned()
    judged: Mapping[str, Label | Ranking] = {} if labels is None else _judged(labels, found)
    rows = islice(reading.comparisons(source, columns), limit)
    for row in reading.merged_votes(_usable(rows, found)).values():
        answer = judged.get(row.id)
        if labels is not None and not _about(answer, row):
            found.unusable["no label is about these texts"] += 1
            continue
        told = _of_votes(row) if answer is None else _of_answer(answer)
        pairs = tuple(each for each in told if row.responses[each.first] != row.responses[each.second])
        try:
            pairs = tuple(_with_margin(pair, row, margins) for pair in pairs)
        except RowError as error:
            message = f"{source}: {row.id}: {error}"
            found.failures.append(Failure(id=row.id, stage="train", reason="bad_row", message=message))
            continue
        if pairs:
            found.examples.append(Example(row.id, row.prompt, row.responses, pairs))
        elif answer is None and not row.votes and "p" in row.meta:
            found.unusable["a column `p` without votes, which is read beside chosen and rejected only"] += 1
        elif told:
            found.unusable["the responses are the same text"] += 1
        elif answer is not None:
            found.unusable["the label is an exact tie"] += 1
        else:
            found.unusable["an exact tie, or nobody said which is better"] += 1
    if margins != "none" and found.examples and not any(pair.margin for each in found.examples for pair in each.pairs):
        wanted = "a column `margin`" if margins == "column" else "votes with a `strength`"
        raise TrainingError(f"{source}: algorithm.margins = {margins!r} needs {wanted}; no row has one")
    return _checked(found, source)


def _about(answer: Label | Ranking | None, row: Comparison) -> bool:
    if answer is None or answer.content not in {"", row.content}:
        return False
    return isinstance(answer, Label) or len(answer.order) == len(row.responses)


def _usable(rows: Iterable[Comparison | Failure], found: Learned) -> Iterator[Comparison | Failure]:
    known: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Failure):
            found.failures.append(row)
        elif known.setdefault(row.id, row.content) != row.content:
            found.unusable["other texts under an id that was there before"] += 1
        else:
            yield row


def apart(train: Sequence[T], heldout: Sequence[T] | None, topic: Callable[[T], str]) -> tuple[list[T], list[T], int]:
    """Items to train on, items to evaluate on, and how many of `heldout` were left out since their topic is trained on:
    no prompt is on both sides (it would leak). Without `heldout`, a tenth of the topics is kept apart.
    """
    if heldout is not None:
        known = {topic(each) for each in train}
        kept = [each for each in heldout if topic(each) not in known]
        if not kept:
            raise TrainingError(
                "data.heldout: all of its prompts are in data.train too; nothing is left to evaluate on"
            )
        return list(train), kept, len(heldout) - len(kept)
    topics = sorted({topic(each) for each in train}, key=lambda each: fingerprint(["heldout", each]))
    chosen = set(topics[: min(round(len(topics) * HELDOUT), MOST_HELDOUT)])
    sides: tuple[list[T], list[T]] = ([], [])
    for each in train:
        sides[topic(each) in chosen].append(each)
    return (*sides, 0)


def split(train: Learned, heldout: Learned | None) -> tuple[list[Example], list[Example]]:
    """Examples to train on and to evaluate on."""
    rows = None if heldout is None else heldout.examples
    known, kept, both = apart(train.examples, rows, lambda each: each.topic)
    if heldout is not None and both:
        heldout.notes.append(f"{both} held-out rows have a prompt of the training rows: left out")
    return known, kept


def _checked(found: Learned, source: str) -> Learned:
    if not found.examples:
        why = [f"{count} x {reason}" for reason, count in found.unusable.most_common(3)]
        why += [f"{len(found.failures)} unusable, the first: {found.failures[0].message}"] if found.failures else []
        raise TrainingError(f"{source}: no row to learn from: {', '.join(why) or 'it is empty'}")
    places = {pair.first for each in found.examples for pair in each.pairs if len(each.responses) == 2}
    if len(places) == 1 and len(found.examples) >= SAME:
        found.notes.append(
            f"{source}: every row prefers response {places.pop()}; if a model labelled it, it may only pick a position"
        )
    return found


def _judged(source: str, found: Learned) -> dict[str, Label | Ranking]:
    judged: dict[str, Label | Ranking] = {}
    jobs: dict[str, str] = {}
    for each in judgements(source):
        judged[each.id] = each
        jobs[each.digest] = f"{each.task} by {each.model}"
    if len(jobs) > 1:
        named = "; ".join(f"{digest} ({said})" for digest, said in list(jobs.items())[:3])
        raise TrainingError(f"{source}: holds labels of {len(jobs)} jobs that do not mix: {named}; keep one digest")
    found.rater = " ".join(f"{said} ({digest})" for digest, said in jobs.items())
    return judged


def _of_answer(answer: Label | Ranking) -> tuple[Pair, ...]:
    if isinstance(answer, Label):
        return _pairs([(0, 1, answer.p)])
    places = range(len(answer.order))
    return _pairs((i, j, answer.p[i][j]) for i, j in combinations(places, 2))


def _of_votes(row: Comparison) -> tuple[Pair, ...]:
    """The share of voters for each of two responses; a tie is half a vote for both."""
    found = [(i, j, _share(row.votes, i, j)) for i, j in combinations(range(len(row.responses)), 2)]
    return _pairs((i, j, share) for i, j, share in found if share is not None)


def _share(votes: Sequence[Vote], i: int, j: int) -> float | None:
    known = [vote.p if vote.p is not None and i == 0 and j == 1 else _half(vote, i, j) for vote in votes]
    told = [each for each in known if each is not None]
    return sum(told) / len(told) if told else None


def _half(vote: Vote, i: int, j: int) -> float | None:
    return {i: 1.0, j: 0.0, "tie": 0.5}.get(vote.choice)


def _pairs(chances: Iterable[tuple[int, int, float]]) -> tuple[Pair, ...]:
    """The better one first; exact ties dropped (InstructGPT)."""
    return tuple(Pair(i, j, p) if p > 0.5 else Pair(j, i, 1 - p) for i, j, p in chances if p != 0.5)


def _with_margin(pair: Pair, row: Comparison, margins: Margins) -> Pair:
    if margins == "none":
        return pair
    if margins == "column":
        return replace(pair, margin=_margin(row) if _preferred(row, pair) else 0.0)
    table = MARGINS_SMALL if margins == "small" else MARGINS_LARGE
    told = [table[vote.strength] for vote in row.votes if vote.choice == pair.first and vote.strength is not None]
    return replace(pair, margin=sum(told) / len(told) if told else 0.0)


def _margin(row: Comparison) -> float:
    value = row.meta.get("margin")
    margin = 0.0 if value is None or value == "" else number(value, "margin")
    if margin < 0:
        raise RowError(f"margin: expected at least 0, on the preferred response's side, got {margin:g}")
    return margin


def _preferred(row: Comparison, pair: Pair) -> bool:
    """Whether the better of a pair is who a row's own margin is for: whom its votes prefer, or the better of two."""
    if not row.votes:
        return len(row.responses) == 2
    i, j = sorted((pair.first, pair.second))
    share = _share(row.votes, i, j)
    return share is not None and (share > 0.5 if pair.first == i else share < 0.5)
