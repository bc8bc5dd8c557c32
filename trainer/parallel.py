"""Several processes under torchrun: FSDP2 shards the model, each process takes its share of an update's passes.

With one process every function here gives back what it got.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import TrainingError

WAIT = 1800
"""Seconds that processes wait for each other."""

T = TypeVar("T")
K = TypeVar("K")
M = TypeVar("M", bound=nn.Module)


def begin(wanted: str, patience: float = 0.0) -> torch.device:
    """Join the other processes where torchrun started several; the device of this one ("auto": a GPU, if there is).

    The others wait for the one whose rewards come last: `patience` seconds more than they would for anything else.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    try:
        device = torch.empty(0, device=kind).device
    except (RuntimeError, AssertionError):
        raise TrainingError(f"model.device {wanted}: cannot be used here; expected auto, cpu or cuda") from None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if not dist.is_initialized():
        timeout = timedelta(seconds=WAIT + patience)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process writes files and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's share."""
    return items[dist.get_rank() :: world()] if dist.is_initialized() else items


def shard(module: M, layers: Sequence[nn.Module], device: torch.device) -> M:
    """The module, each layer and then what is left sharded over all processes (FSDP2)."""
    if not dist.is_initialized():
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def settle(module: nn.Module) -> None:
    """After passes that no backward one follows, FSDP2 leaves the outermost parameters whole: neither an optimizer nor
    a checkpoint may take those for the shards.
    """
    reshard = getattr(module, "reshard", None)
    if reshard is not None:
        reshard()


@contextmanager
def gathered(module: nn.Module) -> Generator[None]:
    """The whole parameters on every process meanwhile, for what does not go through the module's own forward."""
    sharded: list[Any] = [each for each in module.modules() if hasattr(each, "unshard")]
    for each in sharded:
        each.set_reshard_after_forward(False, recurse=False)  # processes take different numbers of passes meanwhile
        each.unshard()
    try:
        yield
    finally:
        for each in sharded:
            each.set_reshard_after_forward(each is not module, recurse=False)  # as FSDP2 begins: the root stays whole
            each.reshard()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all."""
    if not dist.is_initialized():
        return make()
    found: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def of_each(value: T) -> list[T]:
    """What each process has, by rank."""
    return _all(value)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over all processes."""
    return {name: sum(each.get(name, 0.0) for each in _all(dict(values))) for name in values}


def joined(values: Mapping[K, T]) -> dict[K, T]:
    """What all processes found."""
    return {key: value for each in _all(dict(values)) for key, value in each.items()}


def _all(value: T) -> list[T]:
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found
