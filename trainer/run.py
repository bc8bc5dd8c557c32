"""One run from its configuration to a model: read, build, learn, look, keep, write."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from data.records import Failure, hashed
from lm.branches import bare
from lm.chat import Encoder
from trainer import checkpoint, examples, folder, parallel, trackers
from trainer.build import Built, algorithm, build
from trainer.config import Config, Dpo, Reward, Sft, TrainingError
from trainer.examples import Example, Learned
from trainer.loop import Algorithm, adamw, fit, look, rate
from trainer.rows import Row, batch, encode, updates
from trainer.running import Around, Interval, bar, resumed, stoppable, write

PATIENCE = 3
"""Looks without a better one, after which a reward model has begun to overfit."""
LOOKS, LOOKING = 10, 0.25
"""Most looks at the held-out rows, and the part of the training's work that they may cost."""


@dataclass(frozen=True)
class Teaching:
    """The rows of a run, and what is to be said about where they come from."""

    train: list[Row]
    heldout: list[Row]
    topics: list[str]
    rater: str
    judge: str
    """Who said of the held-out rows which response is better."""
    digest: str
    unusable: dict[str, int]
    failures: list[Failure]
    notes: list[str]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    updates: int
    best: int | None
    stopped: bool
    seconds: float
    before: float | None
    heldout: Mapping[str, float]
    accuracy: Mapping[str, Any] | None
    rows: int
    heldout_rows: int
    judge: str
    unusable: int
    failed: int

    def lines(self) -> list[str]:
        """What a person is told at the end."""
        lines = [f"{self.updates} updates on {self.rows} rows"]
        if self.best is not None:
            lines[0] += f"; the model is that of update {self.best}, the best on the held-out rows"
        if self.before is not None and self.heldout.get("loss", -math.inf) >= self.before:
            lines.append(f"It is no better than before training: held-out loss {self.before:.4f} then")
        if self.accuracy is not None:
            low, high = (self.accuracy.get(each) for each in ("low", "high"))
            bounds = f" [{low:.1%}, {high:.1%}]" if low is not None and high is not None else ""
            told = f"{self.accuracy['value']:.1%}{bounds}, n {self.accuracy['n']}"
            lines.append(f"held-out accuracy {told}, by {self.judge}")
        lines += [
            f"held-out {name.replace('_', ' ')} {value:.4f}"
            for name, value in self.heldout.items()
            if name != "accuracy"
        ]
        return lines

    def json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "out": str(self.out), "heldout": dict(self.heldout)}


@dataclass
class Standing:
    """What early stopping remembers, kept in every checkpoint."""

    best: int | None = None
    least: float = math.inf
    waited: int = 0
    before: float | None = None
    """The held-out loss of the model as it was."""

    def seen(self, number: int, loss: float) -> None:
        if loss < self.least:
            self.best, self.least, self.waited = number, loss, 0
        else:
            self.waited += 1


def train(config: Config, around: Around, *, resume: bool) -> Result:
    """Run to the end. Raises TrainingError, ModelError, FileError; the last checkpoint stays whatever happens."""
    started = time.monotonic()
    folder.check(config.run.out, config, around.tell, resume=resume)
    learned = read(config)  # before a model is loaded for nothing
    built = build(config, around.cache)
    try:
        tell = around.tell if parallel.first() else lambda _line: None
        taught = teach(config, learned, built)
        for note in taught.notes:
            tell(note)
        with bar("reference", len(taught.train) + len(taught.heldout), hidden=not _asks(config)) as shown:
            aim = algorithm(built, config, [*taught.train, *taught.heldout], around.cache, shown.update)
        if parallel.first():  # now that it can begin: what is mended after an error can be started again
            folder.begin(config.run.out, config, taught.failures)
        course = _Course(config, built, aim, taught, around.interval, tell)
        with stoppable(config.run.out, "update", tell):
            result = course.run(resume=resume)
        write(
            config,
            built,
            built.module,
            around,
            title=_title(config),
            facts=_facts(config, built, taught, around.version),
            result=result.lines(),
            configured=_centered(config, result),
        )
    finally:
        parallel.end()
    return replace(result, seconds=time.monotonic() - started)


class _Course:
    """A run under way: the optimizer, its checkpoints and its numbers, which have to be kept in step."""

    def __init__(
        self,
        config: Config,
        built: Built,
        aim: Algorithm[Row],
        taught: Teaching,
        interval: Interval,
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._built, self._aim, self._taught = config, built, aim, taught
        self._interval, self._tell = interval, tell
        self._optimizer = adamw(built.module, config.optim)
        self._checkpoints = config.run.out / folder.CHECKPOINTS
        self._total = config.optim.steps or updates(len(taught.train), config.optim.batch, config.optim.epochs)
        self._every = config.run.evaluate_every or self._looks()
        self._save_every = config.run.save_every or self._every
        patient = PATIENCE if isinstance(config.algorithm, Reward) else None
        self._patience = config.run.patience or patient
        self._standing = Standing()
        self._of = [f"data {taught.digest}", f"model {built.loaded.identity}"]
        self._seen: dict[int, dict[str, list[float]]] = {}

    def run(self, *, resume: bool) -> Result:
        done = self._resume() if resume else 0
        out = self._config.run.out
        metrics = folder.Metrics(out, done or None) if parallel.first() else None
        logs = trackers.opened(self._config, out, done) if metrics is not None else []
        last, stopped = done, self._waited()
        if done == 0:
            self._look(0, metrics, logs)
        for update, line in () if stopped else self._updates(done):
            last = update
            for add in (metrics.add, *logs) if metrics is not None else ():
                add(line)
            if update % self._every == 0 or update == self._total:
                self._look(update, metrics, logs)
            stopped = self._waited()
            if update % self._save_every == 0 or update == self._total or self._standing.best == update or stopped:
                self._save(update)
            if stopped:
                self._tell(f"stopped at update {update}: no better held-out loss since update {self._standing.best}")
                break
        return self._result(last, stopped=stopped)

    def _waited(self) -> bool:
        return self._patience is not None and self._standing.waited >= self._patience

    def _updates(self, done: int) -> Iterator[tuple[int, dict[str, Any]]]:
        optim, rows = self._config.optim, self._taught.train
        numbers = range(done + 1, self._total + 1)
        batches = ((number, batch(rows, optim.batch, number - 1, self._config.run.seed)) for number in numbers)
        learning = fit(self._aim, batches, self._optimizer, self._built.passes, rate(optim, self._total), optim.clip)
        with bar("updates", self._total, hidden=False, initial=done) as shown:
            began = time.monotonic()
            for update in learning:
                shown.set_postfix_str(f"loss {update.metrics['loss']:.4f}", refresh=False)
                shown.update()
                epoch = update.number * optim.batch / len(rows)
                seconds, began = time.monotonic() - began, time.monotonic()
                yield update.number, {"update": update.number, "epoch": epoch, **update.metrics, "seconds": seconds}

    def _look(self, number: int, metrics: folder.Metrics | None, logs: Sequence[trackers.Log]) -> None:
        """Look at the held-out rows; a run without any has only its training loss."""
        if not self._taught.heldout:
            return
        found = look(self._aim, self._taught.heldout, self._built.passes)
        weights = [self._aim.weigh(row) for row in self._taught.heldout]
        means = {name: _mean(values, weights) for name, values in found.items()}
        self._seen = {number: found}
        if number == 0:
            self._standing.before = means["loss"]
        elif self._patience is not None:
            self._standing.seen(number, means["loss"])
        if not sys.stderr.isatty():  # where no bar is seen
            self._tell(f"update {number} of {self._total}: held-out loss {means['loss']:.4f}")
        line: dict[str, Any] = {"update": number, "heldout": means}
        if "accuracy" in found:
            line["accuracy"] = dict(self._interval(found["accuracy"], self._taught.topics))
        for add in (metrics.add, *logs) if metrics is not None else ():
            add(line)

    def _save(self, number: int) -> None:
        standing = self._standing
        least = None if math.isinf(standing.least) else standing.least
        state = {"best": standing.best, "least": least, "waited": standing.waited}
        state |= {"before": standing.before, "of": self._of}
        checkpoint.save(self._checkpoints, number, self._built.module, self._optimizer, state)
        checkpoint.prune(self._checkpoints, self._config.run.keep, self._standing.best)

    def _resume(self) -> int:
        place = checkpoint.latest(self._checkpoints)
        state = resumed(place, self._built.module, self._optimizer, self._of, "update", self._tell)
        if state is None:
            return 0
        least = state["least"]
        self._standing = Standing(state["best"], math.inf if least is None else least, state["waited"], state["before"])
        checkpoint.prune(self._checkpoints, self._config.run.keep, self._standing.best)
        return int(state["update"])

    def _result(self, last: int, *, stopped: bool) -> Result:
        best = self._standing.best if self._patience is not None else None
        taken = last if best is None else best
        if taken not in self._seen and self._taught.heldout:
            if best is not None:
                checkpoint.restore(self._checkpoints / f"{best:08d}", self._built.module)
            self._seen = {taken: look(self._aim, self._taught.heldout, self._built.passes)}
        found = self._seen.get(taken, {})
        weights = [self._aim.weigh(row) for row in self._taught.heldout]
        return Result(
            out=self._config.run.out,
            updates=last,
            best=best,
            stopped=stopped,
            seconds=0.0,
            before=self._standing.before,
            heldout={name: _mean(values, weights) for name, values in found.items()},
            accuracy=self._interval(found["accuracy"], self._taught.topics) if "accuracy" in found else None,
            rows=len(self._taught.train),
            heldout_rows=len(self._taught.heldout),
            judge=self._taught.judge,
            unusable=sum(self._taught.unusable.values()),
            failed=len(self._taught.failures),
        )

    def _looks(self) -> int:
        """Updates between looks, so that looking costs a part of the work only (a look is a third of learning)."""
        work = 3 * self._total * self._config.optim.batch * LOOKING / max(1, len(self._taught.heldout))
        return max(1, math.ceil(self._total / max(1, min(LOOKS, int(work)))))


def read(config: Config) -> tuple[Learned, Learned | None]:
    """What the files teach: those to train on, and those to evaluate on. Raises TrainingError, FileError."""
    known = _read(config, config.data.train, config.data.labels)
    apart = None if config.data.heldout is None else _read(config, config.data.heldout, config.data.heldout_labels)
    return known, apart


def teach(config: Config, learned: tuple[Learned, Learned | None], built: Built) -> Teaching:
    """Keep some prompts apart, and turn all into tokens. Raises TrainingError."""
    known, apart = learned
    sides = examples.split(known, apart)
    encoder = Encoder(built.loaded.tokenizer)
    most = min(config.data.max_tokens, built.loaded.context)
    failures = [*known.failures, *(apart.failures if apart is not None else ())]
    unusable = known.unusable + (apart.unusable if apart is not None else type(known.unusable)())
    longest = config.data.max_response
    rows: list[list[Row]] = []
    for side, source, use in zip(sides, (config.data.train, config.data.heldout), ("train", "evaluate"), strict=True):
        rows.append(encode(side, encoder, most=most, response=longest, failures=failures))
        if source is not None and not rows[-1]:
            raise TrainingError(f"{source}: no row is left to {use} on: {failures[-1].message}")
    notes = [*known.notes, *(apart.notes if apart is not None else ())]
    if not rows[1]:
        notes.append("no row is held out to evaluate on (a tenth of so few prompts is none; --data.heldout FILE is)")
    if cut := sum(row.cut for side in rows for row in side):
        notes.append(f"{cut} prompts lost their beginning, to fit into {most} tokens (data.max_tokens)")
    if left := sum(row.left_out for side in rows for row in side):
        notes.append(
            f"{left} responses of rows with others were left out as too long (data.max_tokens, data.max_response)"
        )
    if unusable:
        notes.append("rows that teach nothing: " + ", ".join(f"{n} x {why}" for why, n in unusable.items()))
    if not encoder.templated:
        notes.append(
            "the model has no chat template: a blank line follows the prompt, and conversations are told as Human: and"
            " Assistant:"
        )
    topics = _topics(sides[1], rows[1])
    digest = hashed([known.rater, *(f"{row.id} {row.key} {row.pairs}" for side in rows for row in side)])
    judge = (apart or known).rater
    return Teaching(rows[0], rows[1], topics, known.rater, judge, digest, dict(unusable), failures, notes)


def _topics(sides: Sequence[Example], rows: Sequence[Row]) -> list[str]:
    known = {example.id: example.topic for example in sides}
    return [known[row.id] for row in rows]


def _read(config: Config, source: str, labels: str | None) -> Learned:
    columns, limit = config.data.columns, config.data.limit
    if isinstance(config.algorithm, Sft):
        every = config.algorithm.responses == "all"
        return examples.demonstrations(source, labels, columns=columns, limit=limit, every=every)
    margins = config.algorithm.margins if isinstance(config.algorithm, Reward) else "none"
    return examples.preferences(source, labels, columns=columns, limit=limit, margins=margins)


def _centered(config: Config, result: Result) -> Callable[[Built], None]:
    """A reward model's bias, and a padding token that no answer ends with."""

    def configured(built: Built) -> None:
        if isinstance(config.algorithm, Reward):
            inner = bare(built.loaded.model)
            centered = config.algorithm.center_on == "heldout" and "mean_score" in result.heldout
            inner.config.reward_bias = -result.heldout["mean_score"] if centered else 0.0
            built.loaded.tokenizer.pad_token_id = inner.config.pad_token_id

    return configured


def _title(config: Config) -> str:
    kind = type(config.algorithm).__name__
    return {"Sft": "A fine-tuned model", "Reward": "A reward model"}.get(kind, f"A model trained by {kind.upper()}")


def _facts(config: Config, built: Built, taught: Teaching, version: str) -> dict[str, str]:
    facts = {"trained from": built.loaded.identity, "data": config.data.train, "data digest": taught.digest}
    facts |= {"rows": f"{len(taught.train)}, and {len(taught.heldout)} held out", "rated by": taught.rater}
    left = sum(row.left_out for row in (*taught.train, *taught.heldout))
    out = {**taught.unusable, **({"a response is too long, its row's others are used": left} if left else {})}
    if out:
        facts["left out"] = ", ".join(f"{count} x {reason}" for reason, count in out.items())
    return {**facts, "made with": f"rlaif-service {version}"}


def _asks(config: Config) -> bool:
    return isinstance(config.algorithm, Dpo) and config.algorithm.cached


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return fmean(values, weights)
