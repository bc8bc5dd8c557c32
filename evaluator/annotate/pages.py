"""What a rater sees: HTML from templates. Texts of the data are values there, escaped and never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.records import Message, Prompt, Strength
from evaluator.annotate.poll import Ballot, Progress
from evaluator.annotate.verdicts import Verdict

STATIC = Path(__file__).parent / "static"

NOTES = {
    "undone": "Taken back. Judge it again.",
    "stale": "That one was judged already, nothing was changed. Here is the next.",
}

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Button:
    """`keys` as in aria-keyshortcuts: any one of them presses it."""

    value: str
    label: str
    keys: str


STRENGTHS = [Button(value, value, key) for value, key in zip(get_args(Strength), "qwer", strict=True)]


def start(*, is_open: bool, complaint: str = "") -> str:
    """Where a rater says a name, or is told to use the link."""
    return _render("start.html", is_open=is_open, complaint=complaint)


def message(title: str, text: str) -> str:
    return _render("message.html", title=title, text=text)


def ballot(rater: str, token: str, now: Ballot, progress: Progress, last: tuple[str, Verdict] | None, note: str) -> str:
    return _render(
        "ballot.html",
        rater=rater,
        token=token,
        ballot=now,
        turns=_turns(now.prompt),
        responses=list(zip(_letters(len(now.texts)), now.texts, strict=True)),
        buttons=_buttons(len(now.texts)),
        strengths=STRENGTHS if len(now.texts) == 2 else [],
        progress=progress,
        last=last and last[0],
        said=last and _said(last[1]),
        note=NOTES.get(note, ""),
    )


def finished(rater: str, token: str, progress: Progress, last: tuple[str, Verdict] | None) -> str:
    return _render(
        "finished.html",
        rater=rater,
        token=token,
        progress=progress,
        last=last and last[0],
        said=last and _said(last[1]),
    )


def _turns(prompt: Prompt) -> Sequence[Message]:
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def _letters(count: int) -> Sequence[str]:
    return ascii_uppercase[:count] if count > 1 else ("",)


def _buttons(count: int) -> list[Button]:
    if count == 1:
        return [Button("harmful", "Harmful", "y"), Button("harmless", "Harmless", "n")]
    if count == 2:
        return [
            Button("0", "A is better", "1 ArrowLeft"),
            Button("tie", "Tie", "t"),
            Button("1", "B is better", "2 ArrowRight"),
        ]
    best = [Button(str(place), letter, str(place + 1)) for place, letter in enumerate(_letters(count))]
    return [*best, Button("tie", "Tie", "t")]


def _said(verdict: Verdict) -> str:
    """A rater's own last word, by the letter that stood over the response then."""
    if isinstance(verdict.choice, int):
        return _letters(len(verdict.shown))[verdict.shown.index(verdict.choice)]
    return verdict.choice


def _render(template: str, **values: object) -> str:
    html = _TEMPLATES.get_template(template).render(values)
    return html.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half characters cannot be sent
