"""A run that learns from its own samples: sample, ask for rewards, learn; round after round."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

from data.records import Prompt
from lm.chat import Encoder
from trainer import checkpoint, examples, folder, parallel, questions, trackers, writers
from trainer.build import Built, build
from trainer.config import Config, Judged, Ppo, TrainingError
from trainer.experience import Method, Players, drift, experiences, lengths, log_ratios, told
from trainer.loop import Update, adamw, exhausted, fit, rate
from trainer.players import gather, method, pretraining
from trainer.questions import Asked
from trainer.rewards import Ask, Opener, Patience, combined, opened, reached
from trainer.rollouts import Group, Known, Question, rewarded, sampled
from trainer.rows import batch, encode, turns, updates
from trainer.running import Around, Interval, bar, resumed, stoppable, write
from trainer.writers import Writer

LOOKS = 10
"""Looks at the held-out prompts in a run."""
DRIFT = 0.2
"""Nats a token between sampling and learning that are worth a word; bf16 alone comes to a few hundredths."""
FEW = 8
"""Prompts whose samples tell that."""
LOOK = -1
"""The round of a look's random numbers: the same at each, so that two looks differ by the policy alone."""


@dataclass(frozen=True)
class Earned:
    """How a run ended. `before` and `reward` are held-out rewards, with bounds."""

    out: Path
    rounds: int
    updates: int
    seconds: float
    before: Mapping[str, Any] | None
    reward: Mapping[str, Any] | None
    heldout: Mapping[str, float]
    prompts: int
    heldout_prompts: int
    failed: int

    def lines(self) -> list[str]:
        """What a person is told at the end."""
        lines = [f"{self.rounds} rounds, {self.updates} updates, on {self.prompts} prompts"]
        for name, value in (("before", self.before), ("now", self.reward)):
            if value is not None:
                bounds = "" if value.get("low") is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
                lines.append(f"held-out reward {name} {value['value']:.4f}{bounds}, n {value['n']}")
        lines += [f"held-out {name} {value:.4f}" for name, value in self.heldout.items() if name != "reward"]
        return lines

    def json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "out": str(self.out), "heldout": dict(self.heldout)}


def train(config: Config, around: Around, elsewhere: Opener, *, resume: bool) -> Earned:
    """Run to the end. Raises TrainingError, ModelError, FileError; the last checkpoint stays whatever happens."""
    started = time.monotonic()
    assert config.reward is not None
    folder.check(config.run.out, config, around.tell, resume=resume)
    found = questions.read(config)  # before a model is loaded for nothing
    stopped = Event()
    # Before a reward model takes the first GPU for each process.
    device = parallel.begin(config.model.device, config.reward.patience)
    tell = around.tell if parallel.first() else lambda _line: None
    patience = Patience(config.reward.patience, tell, stopped)
    try:
        sources = opened(config.reward, elsewhere, str(device))
        reached(config.reward, sources, patience)
        built = build(config, around.cache)
        encoder = Encoder(built.loaded.tokenizer)
        prompts = questions.ask(config, found, built.loaded.context, encoder)
        for note in prompts.notes:
            tell(note)
        players, trained = gather(built, config, around.cache)
        if parallel.first():
            folder.begin(config.run.out, config, prompts.failures)
        ask = _strict(config.reward, combined(config.reward, sources, patience))
        with (
            closing(writers.opened(built, config, around.cache, around.vllm_key)) as writer,
            stoppable(config.run.out, "round", tell),
        ):
            course = _Course(config, built, players, trained, writer, prompts, encoder, ask, around.interval, tell)
            result = course.run(resume=resume)
        write(
            config,
            built,
            trained,
            around,
            title=_title(config),
            facts=_facts(config, built, prompts, around.version),
            result=result.lines(),
        )
    finally:
        stopped.set()
        parallel.end()
    return replace(result, seconds=time.monotonic() - started)


class _Course:
    """A run under way: policy, optimizer, checkpoints and numbers, which have to be kept in step."""

    def __init__(
        self,
        config: Config,
        built: Built,
        players: Players,
        trained: Any,
        writer: Writer,
        prompts: Asked,
        encoder: Encoder,
        ask: Ask,
        interval: Interval,
        tell: Callable[[str], None],
    ) -> None:
        assert config.rollout is not None
        self._config, self._built, self._rollout = config, built, config.rollout
        self._rewarding = "" if config.reward is None else ", ".join(config.reward.of)
        self._players, self._trained, self._prompts = players, trained, prompts
        self._writer, self._ask, self._interval, self._tell = writer, ask, interval, tell
        self._optimizer = adamw(trained, config.optim)
        self._checkpoints = config.run.out / folder.CHECKPOINTS
        self._rounds = config.optim.steps or updates(len(prompts.train), self._rollout.prompts, config.optim.epochs)
        self._rate = rate(config.optim, self._rounds)
        self._every = config.run.evaluate_every or max(1, -(-self._rounds // LOOKS))
        self._save_every = config.run.save_every or self._every
        self._method = self._made(encoder)
        self._of = [f"prompts {prompts.digest}", f"model {built.loaded.identity}"]
        self._updates, self._followed = 0, -1
        self._before: dict[str, Any] | None = None
        self._seen: tuple[dict[str, Any] | None, dict[str, float]] = (None, {})

    def run(self, *, resume: bool) -> Earned:
        done = self._resume() if resume else 0
        out = self._config.run.out
        known = Known.read(out, resume=resume)
        if self._method.recall is not None:
            self._method.recall(known.groups(self._prompts.train, done, self._rollout.unended))
        metrics = folder.Metrics(out, done or None) if parallel.first() else None
        logs = trackers.opened(self._config, out, done) if metrics is not None else []
        adds = (metrics.add, *logs) if metrics is not None else ()
        if done == 0:
            self._look(0, adds)
        with bar("rounds", self._rounds, hidden=False, initial=done) as shown:
            for number in range(done + 1, self._rounds + 1):
                line = self._round(number, known)
                shown.set_postfix_str(f"reward {line['reward']:.4f}", refresh=False)
                shown.update()
                for add in adds:
                    add(line)
                if number % self._every == 0 or number == self._rounds:
                    self._look(number, adds)
                if number % self._save_every == 0 or number == self._rounds:
                    self._save(number)
        if done == self._rounds:
            self._look(done, ())
        reward, heldout = self._seen
        return Earned(
            out=out,
            rounds=self._rounds,
            updates=self._updates,
            seconds=0.0,
            before=self._before,
            reward=reward,
            heldout=heldout,
            prompts=len(self._prompts.train),
            heldout_prompts=len(self._prompts.heldout),
            failed=len(self._prompts.failures),
        )

    def _round(self, number: int, known: Known) -> dict[str, Any]:
        """Sample, ask, learn."""
        began = time.monotonic()
        config, size = self._config, self._rollout.prompts
        some = _chosen(self._prompts.train, size, number - 1, config.run.seed)
        groups = self._sample(some, number, known)
        sampling = time.monotonic() - began
        rewards = [each for group in groups for each in group.rewards]
        if not rewards:
            known.forget(number)
            raise TrainingError(
                f"round {number}: no response has a reward (None, or not a number) from {self._rewarding}; the last"
                " checkpoint stays, and --resume asks about this round again"
            )
        made = self._method.prepare(number, groups)
        self._drifted(number, made.metrics, groups)
        if made.metrics.get("equal_groups") == 1.0:
            self._tell(f"round {number}: all responses to a prompt have the same reward: nothing is learned from it")
        elif len(rewards) > 1 and min(rewards) == max(rewards):
            self._tell(f"round {number}: all responses have the reward {rewards[0]:g}: it tells none from another")
        sums: list[dict[str, float]] = []
        for update in self._learn(number, made.lessons):
            sums.append(update.metrics)
            if self._method.enough(update.metrics):
                break
        self._updates += len(sums)
        learned = {name: fmean(each[name] for each in sums) for name in sums[0]} if sums else {}
        about = {"updates": len(sums), "lr": self._rate(number), "sampling_seconds": sampling}
        kept = sum(len(group.rewarded) for group in groups) / sum(len(group.samples) for group in groups)
        if kept < 1:
            self._tell(f"round {number}: {1 - kept:.0%} of the responses have no reward: left out")
        ended = fmean(float(each.ended) for group in groups for each in group.samples)
        epoch = number * size / len(self._prompts.train)
        line = {"update": number, "epoch": epoch, **made.metrics, "rewarded": kept, "ended": ended, **learned, **about}
        return {**line, "seconds": time.monotonic() - began}

    def _drifted(self, number: int, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        """Say where what was sampled is not what the policy would write; measured here where no algorithm needs it."""
        if "drift" not in metrics and not self._writer.own:
            metrics["drift"] = drift(told(experiences(groups)[:FEW], self._players))
        if metrics.get("drift", 0.0) > DRIFT:
            self._tell(
                f"round {number}: what was sampled is {metrics['drift']:.2f} nats a token from what the policy says of"
                " it: has rollout.engine the policy's weights, and is it as precise?"
            )

    def _learn(self, number: int, lessons: Iterator[Any]) -> Iterator[Update]:
        numbers = count(self._updates + 1)
        for lesson in lessons:
            at = lesson.rate * self._rate(number)
            yield from fit(
                self._method.algorithm,
                # The batches come first: a number drawn when they are at their end would be lost.
                ((number, batch) for batch, number in zip(lesson.batches, numbers, strict=False)),
                self._optimizer,
                self._built.passes,
                lambda _number, at=at: at,
                self._config.optim.clip,
                self._method.beside,
            )

    def _sample(self, some: Sequence[Question], number: int, known: Known | None) -> list[Group]:
        """Groups of the questions, in their order; each process writes its share."""
        look = number == LOOK
        if self._followed != self._updates and not self._writer.own:
            with parallel.gathered(self._players.actor):
                self._writer.follow()
            self._followed = self._updates
        whole = parallel.gathered(self._players.actor) if self._writer.own else nullcontext()
        explained = _explained("a look" if look else f"round {number}")
        with whole, explained, bar("samples", len(some), hidden=False) as shown:
            written = sampled(
                self._writer,
                parallel.mine(some),
                self._rollout,
                number=number,
                seed=self._config.run.seed,
                samples=1 if look else None,
            )
            own = rewarded(
                written,
                self._ask,
                known,
                number=number,
                unended=self._rollout.unended,
                done=lambda count: shown.update(count // (1 if look else self._rollout.samples)),
            )
        found = parallel.joined({group.question.id: group for group in own})
        return [found[each.id] for each in some]

    def _look(self, number: int, adds: Sequence[Callable[[Mapping[str, Any]], object]]) -> None:
        """Sample once for each held-out prompt; a run without any has only its training rewards."""
        if not self._prompts.heldout:
            return
        groups = [each for each in self._sample(self._prompts.heldout, LOOK, None) if each.rewarded]
        if not groups and number == 0:
            raise TrainingError(
                f"no held-out response has a reward (None, or not a number) from {self._rewarding};"
                " nothing is learned yet"
            )
        if not groups:
            self._seen = (None, {})
            self._tell(f"round {number} of {self._rounds}: no held-out response has a reward: there is nothing to see")
            return
        rewards = [fmean(each.reward or 0.0 for each in group.rewarded) for group in groups]
        bounds = dict(self._interval(rewards, [group.question.topic for group in groups]))
        samples = [each for group in groups for each in group.samples]
        means = {
            "reward": fmean(rewards),
            "length": fmean(len(each.tokens) for each in samples),
            "ended": fmean(float(each.ended) for each in samples),
            **({} if self._players.reference is None else {"kl": self._distance(groups)}),
        }
        self._seen = (bounds, means)
        if number == 0:
            self._before = bounds
        if not sys.stderr.isatty():  # where no bar is seen
            self._tell(f"round {number} of {self._rounds}: held-out reward {means['reward']:.4f}")
        for add in adds:
            add({"update": number, "heldout": means, "reward": bounds})

    def _distance(self, groups: Sequence[Group]) -> float:
        """KL from the reference of whole held-out responses, estimated on what was sampled."""
        rows = told(experiences(groups), self._players)
        return float(log_ratios(rows).sum()) / len(lengths(rows))

    def _save(self, number: int) -> None:
        state = {"method": self._method.state, "updates": self._updates, "before": self._before, "of": self._of}
        checkpoint.save(self._checkpoints, number, self._trained, self._optimizer, state)
        checkpoint.prune(self._checkpoints, self._config.run.keep, None)

    def _resume(self) -> int:
        place = checkpoint.latest(self._checkpoints)
        state = resumed(place, self._trained, self._optimizer, self._of, "round", self._tell)
        if state is None:
            return 0
        if self._method.state is not None:
            self._method.state.update(state["method"])
        self._updates, self._before = state["updates"], state["before"]
        checkpoint.prune(self._checkpoints, self._config.run.keep, None)  # a kill may have left half of an old one
        return int(state["update"])

    def _made(self, encoder: Encoder) -> Method:
        config = self._config
        most = questions.room(config, self._built.loaded.context)

        def prompt(text: Prompt) -> tuple[int, ...]:
            return encoder.prompt(turns(text), most)

        beside = None
        if isinstance(config.algorithm, Ppo) and config.algorithm.ptx:
            if config.data.pretrain is None:
                raise TrainingError("algorithm.ptx: keeps what likely? Say --data.pretrain FILE (what sft takes)")
            learned = examples.demonstrations(config.data.pretrain, None, columns=None, limit=None, every=False)
            rows = encode(learned.examples, encoder, most=self._built.loaded.context, response=None, failures=[])
            beside = pretraining(
                self._players, config, lambda number, size: batch(rows, size, number - 1, config.run.seed)
            )
        return method(self._players, config, partial(_order, config.run.seed), prompt, beside)


@contextmanager
def _explained(where: str) -> Generator[None]:
    """What can go wrong while sampling, as one line."""
    try:
        yield
    except FloatingPointError as error:
        raise TrainingError(
            f"{where}: {error}; the last checkpoint stays: a lower --optim.lr may keep the policy whole"
        ) from error
    except RuntimeError as error:
        if exhausted(error):
            raise TrainingError(
                "out of memory while sampling: give a smaller --rollout.rows; the last checkpoint stays"
            ) from error
        raise


def _order(seed: int, count: int, number: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {number} {epoch}").shuffle(order)  # noqa: S311  an order, no secret
    return order


def _chosen(questions: Sequence[Question], size: int, number: int, seed: int) -> list[Question]:
    """The prompts of a round, each at most once."""
    return list({each.id: each for each in batch(questions, size, number, seed)}.values())


def _strict(config: Judged, ask: Ask) -> Ask:
    """Where that was asked for, a response without a reward ends the run."""

    def strict(prompts: Sequence[Prompt], responses: Sequence[str], unsafe: Sequence[bool]) -> list[float | None]:
        found = ask(prompts, responses, unsafe)
        if any(each is None for each in found):
            count = sum(each is None for each in found)
            raise TrainingError(f"{count} of {len(found)} responses have no reward (reward.failures stop)")
        return found

    return strict if config.failures == "stop" else ask


def _title(config: Config) -> str:
    return f"A model trained by {type(config.algorithm).__name__.upper()}"


def _facts(config: Config, built: Built, prompts: Asked, version: str) -> dict[str, str]:
    assert config.reward is not None
    return {
        "trained from": built.loaded.identity,
        "prompts": f"{config.data.train}: {len(prompts.train)}, and {len(prompts.heldout)} held out",
        "rewarded by": ", ".join(config.reward.of),
        "made with": f"rlaif-service {version}",
    }
