"""What does the model read? A task and a row become a `Prompt`, in the order of RLAIF section 2.1:
preamble, exemplars, the sample to annotate, ending.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Literal

from jinja2 import Template

from data import records
from prompts.task import ENVIRONMENT, Exemplar, Pairwise, Polarity, Task, TaskError, split_at_prompt

MARK = "»»»»"
"""What sets examples apart; a rationale that runs on into a next example is stopped at it."""

EXAMPLE = f"{MARK} Example {MARK}"
FOLLOW = f"{MARK} Follow the instructions and the example(s) above {MARK}"


@dataclass(frozen=True)
class Prompt:
    """What is asked, in parts, so that a chat model gets turns and a completion model one text.

    `before`, `context`, `after` and `request` make up the user's turn: the sample, then what is asked about it beyond
    the preamble. Only `context` may be cut when all is too long. The model's answer begins with `answer` (no space at
    its end), which it is to continue.
    """

    system: str
    before: str
    context: str
    after: str
    answer: str
    request: str = ""
    fixed: int = 0
    """Characters of `before` that are the same for every row of a task."""
    apart: int = 0
    """Characters of `after` that are the same for every row: what is said of one context parts behind them."""

    @property
    def user(self) -> str:
        return self.before + self.context + self.after + self.request

    @property
    def beginnings(self) -> tuple[str, str]:
        """What the user's turn begins with for every row of a task, and for every row of one context."""
        return self.before[: self.fixed], f"{self.before}{self.context}{self.after[: self.apart]}"

    def plain(self) -> str:
        """The whole as one text, for models without a chat template."""
        return f"{self.system}\n\n{self.user}\n\n{self.answer}"

    def turns(self, instruction: str) -> list[tuple[Literal["user", "assistant"], str]]:
        """The turns after the system's for a model that begins its own answer: `instruction` says what that is to be.

        A rationale stands in a turn of the assistant's; the beginning of the answer stands at the end of the request.
        """
        rationale, _, ending = self.answer.rpartition("\n\n")
        last = "\n\n".join(part for part in (instruction, ending) if part)
        if not rationale:
            return [("user", f"{self.user}\n\n{last}" if last else self.user)]
        return [("user", self.user), ("assistant", rationale), ("user", last)]

    def continued(self, rationale: str, ending: str) -> Prompt:
        """The second step of a chain of thought: the rationale, then the ending, exactly once."""
        return replace(self, answer=f"{self.answer}{rationale}\n\n{ending}")


@dataclass(frozen=True)
class Style:
    """How much help the model gets: `shots` exemplars, and with `cot` a rationale before the answer."""

    shots: int = 0
    cot: bool = False


@dataclass(frozen=True)
class PairQuestion:
    """A pairwise task in one style, compiled once and asked of many rows."""

    polarity: Polarity
    ending: str
    system: str
    lead: str
    """All that stands before the sample: the exemplars."""
    halves: tuple[Template, Template]
    still: tuple[int, int]
    """Characters of each half that stand before any response."""
    request: str
    opening: str
    cut: Literal["start", "end"]

    def ask(self, prompt: records.Prompt, first: str, second: str) -> Prompt:
        """Which of two is better (or worse, as `polarity` says)?"""
        before, after = (half.render(first=first, second=second) for half in self.halves)
        fixed, apart = len(self.lead) + self.still[0], self.still[1]
        return Prompt(
            self.system, self.lead + before, transcript(prompt), after, self.opening, self.request, fixed, apart
        )


@dataclass(frozen=True)
class ScoreQuestion:
    """A scoring task, compiled once and asked of many rows."""

    ending: str
    system: str
    halves: tuple[Template, Template]
    still: tuple[int, int]
    cut: Literal["start", "end"]

    def ask(self, prompt: records.Prompt, response: str) -> Prompt:
        """How good is one response, from 1 to 10?"""
        before, after = (half.render(response=response) for half in self.halves)
        return Prompt(self.system, before, transcript(prompt), after, self.ending, "", *self.still)


def pair_question(task: Task, style: Style) -> PairQuestion:
    """Raises TaskError where the task cannot be asked in this style."""
    pair = task.pairwise
    if pair is None:
        raise TaskError(f"task {task.name} has no [pairwise] table; it can only score")
    if not 0 <= style.shots <= len(pair.exemplars):
        raise TaskError(
            f"task {task.name} has {len(pair.exemplars)} exemplars; --shots {style.shots} is not among 0 to that"
        )
    opening, request = pair.ending, ""
    if style.cot:
        if pair.rationale is None:
            raise TaskError(f"task {task.name} has no [pairwise.rationale] table; run without --cot")
        opening = pair.rationale.shots_opening if style.shots else pair.rationale.opening
        request = "" if style.shots else f"\n\n{pair.rationale.request}"
    halves = _halves(pair.sample)
    return PairQuestion(
        polarity=pair.polarity,
        ending=pair.ending,
        system=_compiled(pair.preambles[pair.preamble]).render(cot=style.cot),
        lead=_examples(pair, style),
        halves=halves,
        still=_still(halves, "first", "second"),
        request=request,
        opening=opening,
        cut=task.cut,
    )


def score_question(task: Task) -> ScoreQuestion:
    """Raises TaskError where the task has no score table."""
    if task.score is None:
        raise TaskError(f"task {task.name} has no [score] table; it can only compare")
    scoring, halves = task.score, _halves(task.score.sample)
    still = _still(halves, "response")
    return ScoreQuestion(scoring.ending, _compiled(scoring.preamble).render(), halves, still, task.cut)


def transcript(prompt: records.Prompt) -> str:
    """A prompt as the text that a rater reads: conversations as `Human: ...` and `Assistant: ...` turns."""
    if isinstance(prompt, str):
        return prompt
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message.role]}: {message.content}" for message in prompt)


def cut(prompt: Prompt, keep: int, side: Literal["start", "end"]) -> Prompt:
    """Keep `keep` characters of the context, at the side that the task says is not cut; nothing else changes."""
    kept = prompt.context[:keep] if side == "end" else prompt.context[max(0, len(prompt.context) - keep) :]
    return replace(prompt, context=kept)


def _examples(pair: Pairwise, style: Style) -> str:
    if style.shots == 0:
        return ""
    shown = [f"{EXAMPLE}\n\n{_example(pair, each, style)}" for each in pair.exemplars[: style.shots]]
    return "\n\n".join([*shown, FOLLOW, ""])


def _example(pair: Pairwise, exemplar: Exemplar, style: Style) -> str:
    sample = _compiled(pair.sample).render(prompt=exemplar.prompt, first=exemplar.first, second=exemplar.second)
    rationale = f"{exemplar.rationale}\n\n" if style.cot else ""
    return f"{sample}\n\n{rationale}{pair.ending}{exemplar.label}"


def _halves(sample: str) -> tuple[Template, Template]:
    """The template before and after `{{ prompt }}`: the context stays apart, so that it alone can be cut."""
    before, after = split_at_prompt(sample)
    return _compiled(before), _compiled(after)


def _still(halves: tuple[Template, Template], *names: str) -> tuple[int, int]:
    """How many characters each half begins with whatever the responses are."""

    def of(half: Template) -> int:
        return len(commonprefix([half.render(dict.fromkeys(names, each)) for each in ("\ue000", "\ue001")]))  # noqa: RUF071  texts

    return of(halves[0]), of(halves[1])


def _compiled(text: str) -> Template:
    template = ENVIRONMENT.from_string(text)
    template.globals = dict(template.globals)  # a plain one: Jinja goes through all of it at each rendering
    return template
