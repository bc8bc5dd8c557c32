"""How is a question put to a backend? What labels, scores and rankings share: fitting prompts, rationales, digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

from data.records import Failure, Method, fingerprint
from labeler.backend import Backend, Choose, Failed, Likelihoods, Text, Usage, Write
from labeler.options import Options
from prompts import answers, constitution
from prompts.render import Prompt, cut
from prompts.task import Task

A = TypeVar("A", Likelihoods, Text)


@dataclass(frozen=True)
class Asked:
    """The answers to one prompt: a distribution for each rationale (or just one), and what they cost."""

    values: tuple[tuple[float, ...], ...]
    rationales: tuple[str, ...]
    usage: Usage
    method: Method
    votes: int | None = None

    @property
    def mass(self) -> float:
        return min(answers.mass(each) for each in self.values)

    @property
    def rationale(self) -> str | None:
        return "\n\n---\n\n".join(self.rationales) or None


@dataclass(frozen=True)
class Fitted:
    """Prompts that fit the model, cut alike where they did not."""

    prompts: tuple[Prompt, ...]
    truncated: bool


def digest(verb: str, task: Task, backend: Backend, options: Options) -> str:
    """The job's name for itself: any change of task, model or option gives another, where it can change an answer."""
    live = asdict(options) if options.cot else {"shots": options.shots, "one_order": options.one_order}
    live = {name: value for name, value in live.items() if name not in {"needs", "votes"}}  # identity has the rung
    if options.constitution is None:
        live.pop("constitution", None)
    else:
        live |= {"constitution": constitution.load(options.constitution).digest, "seed": options.seed}
    return fingerprint([verb, task.digest, backend.identity, live])


def fit(
    backend: Backend, prompts: Sequence[Prompt], options: Options, side: Literal["start", "end"], ending: str
) -> Fitted | Failed:
    """Cut the context of a row's prompts, all alike, until the longest fits; candidates and ending stay whole."""
    room = _room(options, ending)

    def overflow(keep: int | None) -> int:
        tried = prompts if keep is None else [cut(prompt, keep, side) for prompt in prompts]
        return max(backend.overflow(_longest(prompt, room)) for prompt in tried)

    if overflow(None) == 0:
        return Fitted(tuple(prompts), truncated=False)
    low, high = 0, len(prompts[0].context)
    if over := overflow(0):
        return Failed("too_long", f"the prompt is {over} tokens too long for the model even with no context left")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if overflow(middle) == 0 else (low, middle)
    return Fitted(tuple(cut(prompt, low, side) for prompt in prompts), truncated=True)


def shortened(backend: Backend, request: Write, too_long: str) -> Write | Failed:
    """A request to write that fits the model: its context loses its beginning. `too_long` says what is, by {}."""
    prompt, keep = request.prompt, len(request.prompt.context)
    while (over := backend.overflow(request)) > 0:
        if keep == 0:
            return Failed("too_long", too_long.format(over))
        keep = max(0, keep - max(over, keep // 8))
        request = replace(request, prompt=cut(prompt, keep, "start"))
    return request


def _room(options: Options, ending: str) -> int:
    return options.max_rationale + len(ending) if options.cot else 1


def _longest(prompt: Prompt, room: int) -> Write:
    return Write(prompt, max_tokens=room)


async def ask(
    backend: Backend, prompts: Sequence[Prompt], choices: tuple[str, ...], options: Options, ending: str
) -> list[Asked | Failed]:
    """Put each prompt to the backend: `options.samples` rationales first where they are wanted, then the choice."""
    if not options.cot:
        found = await backend.likelihoods([Choose(prompt, choices) for prompt in prompts])
        return [
            answer
            if isinstance(answer, Failed)
            else Asked((answer.values,), (), answer.usage, answer.method, answer.votes)
            for answer in _complete(found, choices)
        ]
    written = await backend.texts(
        [_rationale(prompt, options, ending, number) for prompt in prompts for number in range(options.samples)]
    )
    reasons = [each if isinstance(each, Failed) else answers.rationale(each.text, ending) for each in written]
    second = [
        Choose(prompts[at // options.samples].continued(reason, ending), choices)
        for at, reason in enumerate(reasons)
        if not isinstance(reason, Failed)
    ]
    chosen = iter(_complete(await backend.likelihoods(second), choices))
    judged = [reason if isinstance(reason, Failed) else next(chosen) for reason in reasons]
    return [
        _together(
            written[at : at + options.samples], reasons[at : at + options.samples], judged[at : at + options.samples]
        )
        for at in range(0, len(written), options.samples)
    ]


def _complete(found: Sequence[Likelihoods | Failed], choices: tuple[str, ...]) -> list[Likelihoods | Failed]:
    """Answers with a value for each choice; any other is a failure, not a distribution over fewer."""
    return [
        Failed("bad_answer", f"the backend gave {len(each.values)} likelihoods for {len(choices)} options")
        if isinstance(each, Likelihoods) and len(each.values) != len(choices)
        else each
        for each in found
    ]


def _rationale(prompt: Prompt, options: Options, ending: str, number: int) -> Write:
    return Write(
        prompt,
        max_tokens=options.max_rationale,
        temperature=options.heat,
        top_k=options.top_k if options.heat else 0,
        seed=int(fingerprint([options.seed, number, prompt.plain()], 12), 16),
        stop=answers.stops(ending),
    )


def _together(
    texts: Sequence[Text | Failed], reasons: Sequence[str | Failed], judged: Sequence[Likelihoods | Failed]
) -> Asked | Failed:
    good_texts, good = [t for t in texts if isinstance(t, Text)], [j for j in judged if isinstance(j, Likelihoods)]
    if len(good) < len(judged) or len(good_texts) < len(texts):
        return next(each for each in [*texts, *judged] if isinstance(each, Failed))
    usage = sum((each.usage for each in [*good_texts, *good]), Usage())
    return Asked(
        tuple(each.values for each in good),
        tuple(reason for reason in reasons if isinstance(reason, str)),
        usage,
        good[0].method,
        sum(each.votes or 0 for each in good) or None,
    )


def failure(identity: str, failed: Failed, stage: str) -> Failure:
    return Failure(id=identity, stage=stage, reason=failed.reason, message=failed.message, attempts=failed.attempts)
