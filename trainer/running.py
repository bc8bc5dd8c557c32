"""What every run has: a bar, an interval, and at its end a model and a card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from trainer import checkpoint, folder, parallel
from trainer.build import Built, build
from trainer.config import Config

Interval = Callable[[Sequence[float], Sequence[str]], Mapping[str, Any]]
"""A mean with its bounds, from values and what belongs together."""


@dataclass(frozen=True)
class Around:
    """What a run is given by whoever starts it: a folder for what is kept, intervals, where to speak, who we are."""

    cache: Path
    interval: Interval
    tell: Callable[[str], None]
    version: str


def bar(name: str, total: int, *, hidden: bool, initial: int = 0) -> Any:
    """Progress, where a person sees it."""
    silent = hidden or not parallel.first() or not sys.stderr.isatty()
    return tqdm(total=total, desc=name, initial=initial, mininterval=1, disable=silent, leave=False)


def write(
    config: Config,
    built: Built,
    trained: nn.Module,
    cache: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    result: Sequence[str],
    configured: Callable[[Built], None] = lambda _built: None,
) -> None:
    """The model for anyone to load, and its card. A sharded model is put together in a new one; `configured` may change
    what its config says.
    """
    weights = checkpoint.trained(trained) if parallel.world() > 1 else None
    if not parallel.first():
        return
    if weights is not None:
        built = build(config, cache, alone=True)
        whole = {name.removeprefix("actor."): each for name, each in weights.items()}
        built.module.load_state_dict(whole, strict=False)
    configured(built)
    folder.export(config.run.out, built.loaded.model, built.loaded.tokenizer)
    folder.card(config.run.out, title, facts, config, result)
