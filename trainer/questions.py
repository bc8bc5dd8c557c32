"""Which prompts does a run sample from, and which are kept apart? Files become tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from data import reading
from data.records import Failure, Prompted, hashed
from lm.chat import Encoder
from trainer import examples
from trainer.config import Config, Hir, TrainingError
from trainer.hir import asked
from trainer.rollouts import Question
from trainer.rows import turns


@dataclass(frozen=True)
class Found:
    """What the files have; `heldout` is None where no file is named for it."""

    train: list[Prompted]
    heldout: list[Prompted] | None
    failures: list[Failure]


@dataclass(frozen=True)
class Asked:
    """The prompts of a run."""

    train: list[Question]
    heldout: list[Question]
    digest: str
    failures: list[Failure]
    notes: list[str]


def read(config: Config) -> Found:
    """Raises TrainingError, FileError."""
    failures: list[Failure] = []

    def rows(source: str) -> list[Prompted]:
        found: list[Prompted] = []
        for row in islice(reading.prompts(source, config.data.columns), config.data.limit):
            if isinstance(row, Failure):
                failures.append(row)
            else:
                found.append(row)
        if not found:
            raise TrainingError(f"{source}: no prompt: {failures[0].message if failures else 'it is empty'}")
        return found

    heldout = config.data.heldout
    return Found(rows(config.data.train), None if heldout is None else rows(heldout), failures)


def room(config: Config, context: int) -> int:
    """Tokens of a prompt that leave room for the response. Raises TrainingError."""
    assert config.rollout is not None
    most = min(config.data.max_tokens, context) - config.rollout.max_tokens
    if most < 8:
        raise TrainingError(
            f"rollout.max_tokens {config.rollout.max_tokens}: leaves no room for a prompt in data.max_tokens"
            f" {config.data.max_tokens} and the model's {context}"
        )
    return most


def ask(config: Config, found: Found, context: int, encoder: Encoder) -> Asked:
    """Prompts as tokens; those that are cut, and those that do not fit, are told. Raises TrainingError."""
    most = room(config, context)
    failures, notes = list(found.failures), list[str]()
    known, apart, both = examples.apart(found.train, found.heldout, lambda each: examples.topic(each.prompt))
    if both:
        notes.append(f"{both} held-out prompts are trained on: left out")

    def encoded(rows: Sequence[Prompted]) -> Iterator[Question]:
        names: Counter[str] = Counter()
        for row in rows:
            names[row.id] += 1
            name = row.id if names[row.id] == 1 else f"{row.id}/{names[row.id]}"  # ids may clash, samples must not
            try:
                tokens = encoder.prompt(turns(row.prompt), most)
            except ValueError as error:
                failures.append(Failure(id=row.id, stage="train", reason="too_long", message=str(error)))
                continue
            unsafe = str(row.meta.get("unsafe", "")).strip().lower() in {"true", "1", "yes"}
            yield Question(name, row.prompt, tokens, examples.topic(row.prompt), unsafe)

    sides = [list(encoded(side)) for side in (known, apart)]
    if not sides[0]:
        why = failures[0].message if failures else "all of its prompts are held out"
        raise TrainingError(f"{config.data.train}: no prompt is left to train on: {why}")
    cut = sum(len(each.tokens) == most for side in sides for each in side)
    if cut:
        notes.append(f"{cut} prompts lost their beginning: they had more than {most} tokens")
    if isinstance(config.algorithm, Hir):
        tell = partial(asked, config=config.algorithm, encode=lambda text: encoder.prompt(turns(text), most))
        sides = [[tell(each) for each in side] for side in sides]
    digest = hashed([repr((each.id, each.tokens, each.unsafe)) for side in sides for each in side])
    return Asked(sides[0], sides[1], digest, failures, notes)
