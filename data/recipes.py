"""A recipe: commands that make one thing together, in a TOML file, and which of them have been finished."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.errors import FileError, RlaifError
from data.records import fingerprint


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    run: Annotated[str, Field(min_length=1)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str = ""
    step: Annotated[tuple[_Step, ...], Field(min_length=1)]


def steps(path: Path) -> list[list[str]]:
    """The words of each command, in order, without the leading `rlaif`. Raises RlaifError."""
    try:
        found = _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RlaifError(
            f'{path}: {place}: {first["msg"]}; a recipe is [[step]] tables, each with run = "..."'
        ) from None
    except OSError as error:
        raise FileError(f"{path}: {(error.strerror or str(error)).lower()}; expected a recipe, a TOML file") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(f"{path}: cannot be read as TOML: {error}") from None
    return [_words(path, at, each.run) for at, each in enumerate(found.step, 1)]


def _words(path: Path, at: int, line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RlaifError(f"{path}: step {at}: {error}") from None
    words = words[1:] if words[:1] == ["rlaif"] else words
    if not words or words[0] == "run":
        raise RlaifError(f"{path}: step {at}: expected a command such as `label FILE ...`; recipes do not run recipes")
    return words


class Done:
    """Which steps of a recipe are finished, in a file beside it. A changed step is another one, and all after it."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._place = path.with_name(path.name + ".done")
        known = self._place.is_file() and not fresh
        self._keys: list[str] = json.loads(self._place.read_text("utf-8")) if known else []

    def pending(self, found: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
        """Steps that are not finished, numbered from 1; each counts as finished once the next one is asked for."""
        keys = [fingerprint(found[: at + 1]) for at in range(len(found))]
        finished = next((at for at, key in enumerate(keys) if self._keys[at : at + 1] != [key]), len(keys))
        for at in range(finished, len(found)):
            yield at + 1, found[at]
            self._keys = keys[: at + 1]
            beside = self._place.with_name(f".{self._place.name}.{os.getpid()}")
            beside.write_text(json.dumps(self._keys), "utf-8")
            beside.replace(self._place)
