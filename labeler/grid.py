"""Which cells does an ablation have? Every combination of what is to be compared (RLAIF, tables 1 to 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Literal

from data.errors import RlaifError
from data.records import fingerprint
from labeler.options import Options

Cot = Literal["no", "yes", "both"]


@dataclass(frozen=True)
class Cell:
    """One way of asking: what is compared, and nothing else."""

    task: str
    model: str
    shots: int = 0
    cot: bool = False
    samples: int = 1

    @property
    def name(self) -> str:
        cot = f", CoT x {self.samples}" if self.samples > 1 else ", CoT" if self.cot else ""
        return f"{self.model}, {self.task}, {self.shots}-shot{cot}"

    @property
    def file(self) -> str:
        """A name for its files: readable, and its own."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[:80]
        return f"{words}-{fingerprint(self.name, 6)}"

    def options(self, others: Options) -> Options:
        """What is about rationales is left out where there are none. Raises RlaifError where they contradict."""
        asked = {each.name: getattr(others, each.name) for each in fields(Options)}
        asked |= {"shots": self.shots, "cot": self.cot, "samples": self.samples}
        asked |= {} if self.cot else {"clamp": None, "temperature": None}
        return Options(**asked)


def grid(
    tasks: Sequence[str], models: Sequence[str], shots: Sequence[int], cot: Cot, samples: Sequence[int]
) -> list[Cell]:
    """The cells in the order of the options, each once. Raises RlaifError for an empty grid."""
    thinking = {"no": (False,), "yes": (True,), "both": (False, True)}[cot]
    cells = [
        Cell(task, model, count, think, number)
        for model, task, count, think, number in product(models, tasks, shots, thinking, samples)
        if think or number == 1  # without a rationale all samples are equal
    ]
    if not cells:
        raise RlaifError("nothing to compare: --samples above 1 needs --cot yes or both")
    return list(dict.fromkeys(cells))
