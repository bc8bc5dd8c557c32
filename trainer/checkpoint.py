"""Everything a run needs to go on exactly: parameters, optimizer, random numbers, the update's number.

Tensors lie in safetensors files and the rest in JSON, so that reading a checkpoint runs nothing. A checkpoint is whole
or not there: it is written beside its place and moved. It does not know how many processes wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from trainer import parallel
from trainer.config import TrainingError

WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"
_BETWEEN = "\x1f"


def save(
    folder: Path, number: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Path:
    """Write `folder`/NUMBER, atomically; every process calls it, the first one writes. Returns its place."""
    target = folder / f"{number:08d}"
    weights = trained(module)
    states = get_optimizer_state_dict(module, optimizer, options=_whole())
    numbers = _random()
    if parallel.first():  # the others were given nothing
        moments, rest = _flat(states)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{target.name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_file(weights, beside / WEIGHTS)
        save_file(moments, beside / OPTIMIZER)
        save_file(numbers, beside / RANDOM)
        (beside / STATE).write_text(json.dumps({**state, "update": number, "optimizer": rest}), "utf-8")
        for file in beside.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        _sync(folder)
    parallel.wait()
    return target


def load(place: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what `save` wrote, whatever the number of processes then and now. Raises TrainingError."""
    with _reading(place):
        state = json.loads((place / STATE).read_text("utf-8"))
        restore(place, module)
        moments = {**load_file(place / OPTIMIZER)}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=parallel.world() > 1)
        set_optimizer_state_dict(module, optimizer, _deep(moments, state.pop("optimizer")), options=options)
        _set_random(load_file(place / RANDOM), state["update"])
        return state


def restore(place: Path, module: nn.Module) -> None:
    """The parameters alone. Raises TrainingError."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=parallel.world() > 1, strict=False)
    with _reading(place):
        weights: dict[str, Any] = {**load_file(place / WEIGHTS)}
        set_model_state_dict(module, weights, options=options)


@contextmanager
def _reading(place: Path) -> Generator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"{place}: cannot be read as a checkpoint of this run ({error}): remove it to go on from the one before"
        ) from error


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The whole tensors of all parameters that are trained, by name, on the CPU."""
    names = {name for name, each in module.named_parameters() if each.requires_grad}
    found: dict[str, Any] = get_model_state_dict(module, options=_whole())
    return {name: each.contiguous() for name, each in found.items() if name in names}


def latest(folder: Path) -> Path | None:
    """The newest checkpoint."""
    return max((each for each in folder.glob("[0-9]*") if (each / STATE).is_file()), default=None)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` and the best, and what a kill left of one that was being written."""
    if not parallel.first():
        return
    for each in folder.glob(".[0-9]*"):
        shutil.rmtree(each, ignore_errors=True)
    for each in sorted(folder.glob("[0-9]*"))[:-keep]:
        if int(each.name) != best:
            shutil.rmtree(each, ignore_errors=True)


def _whole() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors with one name each, and what is no tensor."""
    tensors = {
        f"{name}{_BETWEEN}{kind}": each.contiguous()
        for name, kinds in state["state"].items()
        for kind, each in kinds.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _deep(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, dict[str, Tensor]] = {}
    for name, each in tensors.items():
        parameter, _, kind = name.partition(_BETWEEN)
        state.setdefault(parameter, {})[kind] = each
    return {"state": state, **rest}


def _random() -> dict[str, Tensor]:
    """The state of every process's random numbers."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    every = parallel.of_each(own)
    return {f"{kind}.{rank}": state for rank, states in enumerate(every) for kind, state in states.items()}


def _set_random(found: Mapping[str, Tensor], update: int) -> None:
    """Put this process's back; with another number of processes there is none to go on with, so new ones begin."""
    if sum(name.startswith("cpu.") for name in found) != parallel.world():
        torch.manual_seed(update * parallel.world() + parallel.rank())
        return
    torch.set_rng_state(found[f"cpu.{parallel.rank()}"])
    if torch.cuda.is_available() and f"cuda.{parallel.rank()}" in found:
        torch.cuda.set_rng_state(found[f"cuda.{parallel.rank()}"])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
