"""Where a run's numbers go beside its folder: TensorBoard, Weights & Biases. Each is a function of one line."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trainer.config import Config, TrainingError

Log: TypeAlias = Callable[[Mapping[str, Any]], object]


def opened(config: Config, out: Path, done: int) -> list[Log]:
    """The trackers that a configuration names, going on after `done`. Raises TrainingError where one is not there."""
    logs: list[Log] = []
    if config.run.tensorboard:
        logs.append(_tensorboard(out, done))
    if config.run.wandb is not None:
        logs.append(_wandb(config.run.wandb, out))
    return logs


def _tensorboard(out: Path, done: int) -> Log:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise TrainingError("run.tensorboard needs it: pip install tensorboard") from None
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1 if done else None)

    def log(line: Mapping[str, Any]) -> None:
        for name, value in _numbers(line):
            writer.add_scalar(name, value, line["update"])
        writer.flush()

    return log


def _wandb(project: str, out: Path) -> Log:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise TrainingError("run.wandb needs it: pip install wandb") from None
    place = out / "wandb.id"  # a run that goes on is the same one there
    identity = place.read_text("utf-8") if place.is_file() else secrets.token_hex(8)
    place.write_text(identity, "utf-8")
    run = wandb.init(project=project, name=out.name, dir=str(out), id=identity, resume="allow")
    return lambda line: run.log(dict(_numbers(line)), step=line["update"])


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    side, numbers = ("heldout", line["heldout"]) if "heldout" in line else ("train", line)
    return (
        (f"{side}/{name}", value) for name, value in numbers.items() if isinstance(value, float) and name != "seconds"
    )
