"""What does a task ask? One TOML file each, checked when it is loaded and hashed into every label."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.errors import RlaifError
from data.records import fingerprint

FOLDER = Path(__file__).parent / "tasks"

Polarity: TypeAlias = Literal["better", "worse"]

ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
"""Templates are the task author's; data reaches them as values only and is never parsed as a template."""


class TaskError(RlaifError):
    """A task is unknown, or its file breaks the format."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exemplar(Part):
    """A worked example: two candidates, a rationale, the answer."""

    prompt: str
    first: str
    second: str
    rationale: str
    label: Literal["1", "2"]


class Rationale(Part):
    """How chain of thought is asked for: `request` ends the prompt, the answer opens with `opening`."""

    request: str
    opening: str = "Rationale:"
    shots_opening: str


class Pairwise(Part):
    """Which of two is better (or worse: then the labeler inverts the answer)."""

    polarity: Polarity = "better"
    preamble: str
    sample: str
    ending: str
    preambles: Mapping[str, str]
    rationale: Rationale | None = None
    exemplars: tuple[Exemplar, ...] = ()

    @field_validator("sample")
    @classmethod
    def _sample_uses(cls, text: str) -> str:
        return _checked_sample(text, {"prompt", "first", "second"})

    @field_validator("preambles")
    @classmethod
    def _preambles_use(cls, texts: Mapping[str, str]) -> Mapping[str, str]:
        return {name: _checked(text, needed=set(), allowed={"cot"}) for name, text in texts.items()}

    @model_validator(mode="after")
    def _default_is_there(self) -> Pairwise:
        if self.preamble not in self.preambles:
            raise ValueError(f"preamble = {self.preamble!r} is not among preambles: {', '.join(self.preambles)}")
        return self


class Scoring(Part):
    """How good is one response, from 1 to 10?"""

    preamble: str
    sample: str
    ending: str

    @field_validator("preamble")
    @classmethod
    def _preamble_uses(cls, text: str) -> str:
        return _checked(text, needed=set())

    @field_validator("sample")
    @classmethod
    def _sample_uses(cls, text: str) -> str:
        return _checked_sample(text, {"prompt", "response"})


class TaskFile(Part):
    about: str
    cut: Literal["start", "end"] = "end"
    pairwise: Pairwise | None = None
    score: Scoring | None = Field(default=None)

    @model_validator(mode="after")
    def _asks_something(self) -> TaskFile:
        if self.pairwise is None and self.score is None:
            raise ValueError("needs a [pairwise] or a [score] table")
        return self


@dataclass(frozen=True)
class Task:
    """A task file under the name it was asked for, with one preamble chosen."""

    name: str
    about: str
    cut: Literal["start", "end"]
    pairwise: Pairwise | None
    score: Scoring | None
    digest: str


def load(name: str) -> Task:
    """The task `summarization`, `summarization:base` (another preamble), or `path/to/own.toml`.

    Raises TaskError: no such task or preamble, or the first thing wrong in the file.
    """
    path, preamble = _find(name)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise TaskError(f"{path}: cannot be read as TOML: {error}") from None
    try:
        file = TaskFile.model_validate(fields)
    except ValidationError as error:
        raise TaskError(f"{path}: {_first(error)}") from None
    pairwise = file.pairwise
    if pairwise is not None and preamble is not None:
        if preamble not in pairwise.preambles:
            raise TaskError(f"{name}: no preamble {preamble!r}; there are {', '.join(pairwise.preambles)}")
        pairwise = pairwise.model_copy(update={"preamble": preamble})
    elif preamble is not None:
        raise TaskError(f"{name}: no preamble {preamble!r}; the task only scores")
    asked = file.model_copy(update={"pairwise": pairwise})
    return Task(name, file.about, file.cut, pairwise, file.score, fingerprint(asked.model_copy(update={"about": ""})))


def names() -> list[str]:
    """The tasks that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _find(name: str) -> tuple[Path, str | None]:
    """A name or a path, and the preamble after a colon."""
    if name.endswith(".toml"):
        path, preamble = Path(name), None
    else:
        body, colon, after = name.rpartition(":")
        stem, preamble = (body, after) if colon else (name, None)
        path = Path(stem) if stem.endswith(".toml") else FOLDER / f"{stem}.toml"
        if not stem.endswith(".toml") and stem not in names():
            raise TaskError(f"unknown task {stem!r}; there are {', '.join(names())}, or give the path of a .toml file")
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    return path, preamble


def _checked(text: str, *, needed: set[str], allowed: set[str] | None = None) -> str:
    """A template that parses and uses the variables of its kind, all of `needed` and no others."""
    try:
        used = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
    except TemplateError as error:
        raise ValueError(f"not a valid template: {error}") from None
    try:
        ENVIRONMENT.from_string(text).render(dict.fromkeys(used, "text"))
    except Exception as error:  # whatever a template's own code raises when it runs
        raise ValueError(f"cannot be rendered: {error}") from None
    if strange := used - needed - (allowed or set()):
        raise ValueError(f"unknown variables {sorted(strange)}; this text has {sorted(needed | (allowed or set()))}")
    if missing := needed - used:
        raise ValueError(f"does not use {sorted(missing)}")
    return text


def _checked_sample(text: str, needed: set[str]) -> str:
    """A sample template, with its `{{ prompt }}` where it can be cut out."""
    _checked(text, needed=needed)
    for half in split_at_prompt(text):
        _checked(half, needed=set(), allowed=needed - {"prompt"})
    return text


def split_at_prompt(template: str) -> tuple[str, str]:
    """What stands before and after `{{ prompt }}`. Raises ValueError if that is not there once, plain, on its own."""
    tokens = list(ENVIRONMENT.lex(template))
    for at, (_, kind, value) in enumerate(tokens):
        if kind == "name" and value == "prompt":
            start = max((i for i in range(at) if tokens[i][1] == "variable_begin"), default=at)
            end = min((i for i in range(at, len(tokens)) if tokens[i][1] == "variable_end"), default=at)
            if len([token for token in tokens[start + 1 : end] if token[1] != "whitespace"]) == 1:
                return "".join(each[2] for each in tokens[:start]), "".join(each[2] for each in tokens[end + 1 :])
    raise ValueError("needs a plain {{ prompt }}, once, outside of any condition or filter")


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key"
    return f"{place}: {message}" if place else message
