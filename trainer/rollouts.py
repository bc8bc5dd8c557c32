"""What does the policy write, and how good is it? Prompts become groups of samples with their rewards.

Everything follows from the seed and the round's number, so a round that was cut off is sampled again as it was (by the
policy itself; vLLM's batches differ); the rewards that it had are in samples.jsonl and are not asked for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.records import Prompt
from lm.rows import Tokens
from lm.sample import Draw, Written
from trainer import parallel
from trainer.config import Rollout
from trainer.folder import replace_text
from trainer.rewards import Ask
from trainer.writers import Writer

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Question:
    """A prompt to sample from; `unsafe` where its file marks it so."""

    id: str
    prompt: Prompt
    tokens: Tokens
    topic: str
    unsafe: bool = False


@dataclass(frozen=True)
class Sample:
    """A response as it was written. `reward` is None where there is none."""

    text: str
    tokens: Tokens
    likelihoods: tuple[float, ...]
    ended: bool
    reward: float | None


@dataclass(frozen=True)
class Group:
    """A prompt with its samples of one round."""

    question: Question
    samples: tuple[Sample, ...]

    @property
    def rewarded(self) -> tuple[Sample, ...]:
        return tuple(each for each in self.samples if each.reward is not None)

    @property
    def rewards(self) -> list[float]:
        """Of those that have one."""
        return [each.reward for each in self.samples if each.reward is not None]


@dataclass
class Known:
    """samples.jsonl: every response with its reward, as soon as it has one."""

    place: Path
    rewards: dict[tuple[int, str, int, str], float | None] = field(default_factory=dict[Any, Any])

    @classmethod
    def read(cls, folder: Path, *, resume: bool) -> Known:
        """What an earlier start of the run has; a line that a kill cut off is left out."""
        known = cls(folder / SAMPLES)
        if parallel.first():
            whole = known.place.read_text("utf-8") if resume and known.place.is_file() else ""
            replace_text(known.place, whole[: whole.rfind("\n") + 1])
        parallel.wait()
        for line in known.lines():
            key = (line["round"], line["id"], line["sample"], _digest(line["response"]))
            known.rewards[key] = line["reward"]
        parallel.wait()
        return known

    def forget(self, number: int) -> None:
        """A round in which nothing has a reward is asked about again when the run goes on."""
        if parallel.first():
            kept = [line for line in self.lines() if line["round"] != number]
            replace_text(self.place, "".join(_written(line) for line in kept))
        parallel.wait()

    def lines(self) -> list[dict[str, Any]]:
        """Each is one line, whatever separators a response holds."""
        return [json.loads(line) for line in self.place.read_text("utf-8").split("\n") if line]

    def groups(self, questions: Sequence[Question], last: int, unended: float) -> list[Group]:
        """The groups of all rounds up to `last`, as they were."""
        known = {each.id: each for each in questions}
        found: dict[tuple[int, str], dict[int, Sample]] = {}
        for line in self.lines():
            if line["round"] <= last:
                sample = Sample(line["response"], tuple(line["tokens"]), (), line["ended"], line["reward"])
                found.setdefault((line["round"], line["id"]), {})[line["sample"]] = _penalised(sample, unended)
        return [Group(known[name], tuple(samples.values())) for (_, name), samples in sorted(found.items())]

    def add(self, number: int, question: Question, samples: Sequence[Sample], first: int) -> None:
        with self.place.open("a", encoding="utf-8") as file:
            for at, each in enumerate(samples, first):
                about = {"round": number, "id": question.id, "sample": at, "response": each.text}
                file.write(_written({**about, "tokens": list(each.tokens), "ended": each.ended, "reward": each.reward}))
            file.flush()


def _written(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def sampled(
    writer: Writer,
    questions: Sequence[Question],
    config: Rollout,
    *,
    number: int,
    seed: int,
    samples: int | None = None,
) -> Iterator[list[tuple[Question, list[Written]]]]:
    """Write `samples` responses to each question, as many prompts at a time as fill the writer's rows."""
    count = samples or config.samples
    at_once = max(1, writer.rows // count)
    # Prompts of like length together: less of a batch is padding.
    ordered = sorted(questions, key=lambda each: (len(each.tokens), each.id))
    for start in range(0, len(ordered), at_once):
        piece = ordered[start : start + at_once]
        draws = [
            Draw(each.tokens, config.max_tokens, config.temperature, 0, _seed(seed, number, each.id, at), config.stop)
            for each in piece
            for at in range(count)
        ]
        written = writer.write(draws)
        yield [(each, written[at * count : (at + 1) * count]) for at, each in enumerate(piece)]


def rewarded(
    written: Iterator[list[tuple[Question, list[Written]]]],
    ask: Ask,
    known: Known | None,
    *,
    number: int,
    unended: float,
    done: Callable[[int], object],
) -> list[Group]:
    """Groups with their rewards; while a piece is rewarded, the next one is written."""
    groups: list[Group] = []
    waiting: Future[list[Group]] | None = None
    asking = ThreadPoolExecutor(max_workers=1)
    try:
        for piece in written:
            if waiting is not None:
                groups += waiting.result()
            waiting = asking.submit(_groups, piece, ask, known, number, unended)
            done(sum(len(each) for _, each in piece))
        if waiting is not None:
            groups += waiting.result()
    finally:
        asking.shutdown(wait=False, cancel_futures=True)  # a run that is stopped does not wait for a dead server
    return groups


def _groups(
    piece: Sequence[tuple[Question, list[Written]]], ask: Ask, known: Known | None, number: int, unended: float
) -> list[Group]:
    flat = [(question, at, each) for question, written in piece for at, each in enumerate(written)]
    old = {} if known is None else known.rewards
    keys = [(number, question.id, at, _digest(each.text)) for question, at, each in flat]
    open_ = [place for place, key in enumerate(keys) if key not in old]
    asked = [flat[place] for place in open_]
    values: Sequence[float | None] = ()
    if asked:
        values = ask(
            [question.prompt for question, _, _ in asked],
            [each.text for _, _, each in asked],
            [question.unsafe for question, _, _ in asked],
        )
    found = dict(zip(open_, values, strict=True))
    samples = [
        _sample(each, found[place] if place in found else old[keys[place]]) for place, (_, _, each) in enumerate(flat)
    ]
    groups: list[Group] = []
    start = 0
    for question, written in piece:
        own = samples[start : start + len(written)]
        if known is not None:
            new = [at for at in range(len(own)) if start + at in found]
            for at in new:
                known.add(number, question, [own[at]], at)
        start += len(written)
        penalised = [_penalised(each, unended) for each in own]
        groups.append(Group(question, tuple(penalised)))
    return groups


def _sample(written: Written, reward: float | None) -> Sample:
    return Sample(written.text, written.drawn, written.likelihoods, written.ended, reward)


def _penalised(sample: Sample, unended: float) -> Sample:
    """A response without an end has less, whatever it says (samples.jsonl keeps what the reward said)."""
    if sample.ended or sample.reward is None or not unended:
        return sample
    return Sample(sample.text, sample.tokens, sample.likelihoods, sample.ended, sample.reward - unended)


def _seed(seed: int, number: int, name: str, at: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {name} {at}".encode()).digest()[:7])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
