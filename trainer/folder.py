"""A run's folder: config.toml as run, metrics.jsonl, curves.png, card.md, model/ for anyone to load."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from data.records import Failure
from lm import adapt
from trainer.config import Config, TrainingError

CONFIG, METRICS, FAILURES, CHECKPOINTS, MODEL, ADAPTER, CARD = (
    "config.toml",
    "metrics.jsonl",
    "failures.jsonl",
    "checkpoints",
    "model",
    "adapter",
    "card.md",
)
FREE = frozenset(
    {
        *("run.tokens", "run.keep", "model.checkpointing", "rollout.rows", "rollout.memory", "rollout.handed"),
        *("reward.base_url", "reward.budget", "reward.price", "reward.patience"),
    }
)
"""Settings that change no number: a run may go on with others, say when memory was too small."""


def check(folder: Path, config: Config, tell: Callable[[str], None], *, resume: bool) -> None:
    """See that a folder is free, or the one of this run where it goes on. Raises TrainingError."""
    place = folder / CONFIG
    if not place.is_file():
        if resume:
            tell(f"{folder}: holds no run yet: this one begins")
        return
    if not resume:
        if not _worth_keeping(folder):
            tell(f"{folder}: held a run that ended before it had learned anything: this one begins anew")
            return
        raise TrainingError(f"{folder}: holds a run already: go on with it (--resume), or choose another --run.out")
    known, wanted = (_settings(each) for each in (place.read_text("utf-8"), toml(config)))
    other = sorted(name for name in known | wanted if known.get(name) != wanted.get(name))
    if other:
        told = (
            f"{name} is {known.get(name, 'not set')} there, {wanted.get(name, 'not set')} here" for name in other[:4]
        )
        raise TrainingError(
            f"{place}: another run's settings: {'; '.join(told)}; say those, or choose another --run.out"
        )


def _worth_keeping(folder: Path) -> bool:
    """Whether a run has a checkpoint, or rewards that were paid for."""
    samples = folder / "samples.jsonl"
    return any((folder / CHECKPOINTS).glob("*")) or (samples.is_file() and samples.stat().st_size > 0)


def begin(folder: Path, config: Config, failures: Sequence[Failure]) -> None:
    """Make the folder with its config.toml, which is whole or not there, and the rows that cannot be learned from.

    Raises TrainingError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / FAILURES, "".join(each.model_dump_json() + "\n" for each in failures))
        replace_text(folder / CONFIG, toml(config))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TrainingError(f"{folder}: cannot be made or written: {reason}; choose another --run.out") from error


def _settings(text: str) -> dict[str, str]:
    """Settings that must be the same, by SECTION.NAME; a server may have moved."""
    found: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        name, _, value = line.partition(" = ")
        if line.startswith("["):
            section = line.strip("[]")
        elif f"{section}.{name}" not in FREE:
            found[f"{section}.{name}"] = re.sub(r'"https?://[^"]*"', "address", value)
    return found


def replace_text(place: Path, text: str) -> None:
    """A kill leaves what was there."""
    beside = place.with_name(f".{place.name}.new")
    beside.write_text(text, "utf-8")
    beside.replace(place)


def toml(config: Config) -> str:
    """A configuration as the file that makes it; what is left to derive is left out."""
    given = [(each.name, getattr(config, each.name)) for each in fields(config)]
    sections = [f"[{name}]\n{_section(section)}" for name, section in given if section is not None]
    return "\n".join(sections)


def _section(section: object) -> str:
    assert is_dataclass(section)
    values = {each.name: getattr(section, each.name) for each in fields(section)}
    return "".join(f"{name} = {_value(value)}\n" for name, value in values.items() if value is not None)


def _value(value: object) -> str:
    """TOML writes texts and whole numbers as JSON does, others (also without end) as Python does."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, cast('tuple[object, ...]', value)))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


class Metrics:
    """metrics.jsonl: one line for each update and each look at the held-out rows."""

    def __init__(self, folder: Path, resumed: int | None) -> None:
        self._place = folder / METRICS
        kept = [] if resumed is None else [line for line in lines(folder) if line["update"] <= resumed]
        replace_text(self._place, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: Mapping[str, Any]) -> None:
        with self._place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    place = folder / METRICS
    if not place.is_file():
        return []
    whole = place.read_text("utf-8").rpartition("\n")[0]  # a kill may have cut the last line off
    return [json.loads(line) for line in whole.splitlines()]


def export(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write the trained model where anyone can load it; adapters also by themselves. The model is spent by it."""
    target, beside = folder / MODEL, folder / f".{MODEL}.new"
    shutil.rmtree(beside, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # peft tells that it keeps the ends too, where they have adapters
            model.save_pretrained(folder / ADAPTER)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # peft's empty form; card.md says what there is
    adapt.merged(model).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    _readable(beside, folder / ADAPTER)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    return target


def _readable(*folders: Path) -> None:
    """For whom the process lets read its files: weights are written for their owner alone, as temporary files are."""
    mask = os.umask(0)
    os.umask(mask)
    for each in (file for place in folders for file in place.glob("*.safetensors")):
        each.chmod(0o666 & ~mask)


def card(folder: Path, title: str, facts: Mapping[str, str], config: Config, results: Sequence[str]) -> None:
    """What the model is, what it learned from, and how well: for whoever finds the folder later."""
    known = "\n".join(f"- {name}: {_one_line(value)}" for name, value in facts.items())
    found = "\n".join(f"- {line}" for line in results)
    text = f"# {title}\n\n{known}\n\n## Result\n\n{found}"
    text += f"\n\n![curves](curves.png)\n\n## Configuration\n\n```toml\n{toml(config)}```\n"
    (folder / CARD).write_text(text, "utf-8")


def _one_line(text: str) -> str:
    return " ".join(text.split())
