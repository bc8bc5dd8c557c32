"""What are the principles? A constitution file: each principle asks for a critique, a revision and a choice."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from prompts.task import Part, TaskError

FOLDER = Path(__file__).parent / "constitutions"


class Principle(Part):
    """One principle of Constitutional AI (Bai et al. 2022), in the three forms in which it is asked."""

    name: str
    critique: str
    revision: str
    choice: str


class Constitution(Part):
    about: str
    principles: tuple[Principle, ...]


def load(name: str = "default") -> Constitution:
    """The constitution `default`, or a path to a TOML file. Raises TaskError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        return Constitution.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise TaskError(f"{path}: cannot be read as a constitution: {' '.join(str(error).split())[:200]}") from None
