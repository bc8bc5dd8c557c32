"""What every run has: a bar, an interval, and at its end a model and a card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from trainer import checkpoint, curves, folder, parallel
from trainer.build import Built, build
from trainer.config import Config, TrainingError

Interval = Callable[[Sequence[float], Sequence[str]], Mapping[str, Any]]
"""A mean with its bounds, from values and what belongs together."""


@dataclass(frozen=True)
class Around:
    """What a run is given by whoever starts it: a folder for what is kept, intervals, where to speak, who we are, and
    the key of a `vllm serve`.
    """

    cache: Path
    interval: Interval
    tell: Callable[[str], None]
    version: str
    vllm_key: str | None = None


def bar(name: str, total: int, *, hidden: bool, initial: int = 0) -> Any:
    """Progress, where a person sees it."""
    silent = hidden or not parallel.first() or not sys.stderr.isatty()
    return tqdm(total=total, desc=name, initial=initial, mininterval=1, disable=silent, leave=False)


@contextmanager
def stoppable(out: Path, unit: str, tell: Callable[[str], None]) -> Generator[None]:
    """Someone who presses Ctrl-C is told what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        kept = checkpoint.latest(out / folder.CHECKPOINTS)
        tell(f"\nstopped; {f'--resume goes on after {unit} {int(kept.name)}' if kept else 'nothing was saved yet'}")
        raise


def resumed(
    place: Path | None,
    trained: nn.Module,
    optimizer: Optimizer,
    of: Sequence[str],
    unit: str,
    tell: Callable[[str], None],
) -> dict[str, Any] | None:
    """The state of a checkpoint, its parameters taken over; None where there is none. Raises TrainingError where the
    run is now made of something else.
    """
    if place is None:
        return None
    state = checkpoint.load(place, trained, optimizer)
    if state["of"] != list(of):
        raise TrainingError(
            f"{place}: was made from {' and '.join(state['of'])}; now it is {' and '.join(of)}: with other data, or"
            " another model, a run cannot go on; begin another --run.out"
        )
    tell(f"going on after {unit} {state['update']}")
    return state


def write(
    config: Config,
    built: Built,
    trained: nn.Module,
    around: Around,
    *,
    title: str,
    facts: Mapping[str, str],
    result: Sequence[str],
    configured: Callable[[Built], None] = lambda _built: None,
) -> None:
    """The model for anyone to load, its card and its curves. A sharded model is put together in a new one; `configured`
    may change what its config says.
    """
    weights = checkpoint.trained(trained) if parallel.world() > 1 else None
    if not parallel.first():
        return
    if weights is not None:
        built = build(config, around.cache, alone=True)
        whole = {name.removeprefix("actor."): each for name, each in weights.items()}
        built.module.load_state_dict(whole, strict=False)
    configured(built)
    folder.export(config.run.out, built.loaded.model, built.loaded.tokenizer)
    folder.card(config.run.out, title, facts, config, result)
    if missing := curves.draw(config.run.out, folder.lines(config.run.out)):
        around.tell(missing)
