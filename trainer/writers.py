"""Who writes a round's responses: the policy in this process, or vLLM, which is handed the policy's newest weights.

A new writer is one class with these methods, and one line in `opened`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from lm import vllm
from lm.adapt import weights
from lm.branches import bare
from lm.sample import Draw, Written, write
from trainer import parallel
from trainer.build import Built
from trainer.config import Config, TrainingError
from trainer.vllm_server import Server

HANDED = ".handed"
"""In the run's folder: the weights that vLLM goes on with."""
HERE, BESIDE = 64, 512
"""Responses that are written at the same time, in this process and by vLLM, which itself decides what runs together."""


class Writer(Protocol):
    """Writes responses, with log-probabilities of what was drawn."""

    rows: int

    def write(self, draws: Sequence[Draw]) -> list[Written]: ...
    def follow(self) -> None:
        """Go on with the policy as it is now; its parameters are whole."""
        ...

    def close(self) -> None: ...


class Here:
    """The policy itself."""

    def __init__(self, built: Built, rows: int) -> None:
        self._model, self._tokenizer = bare(built.loaded.model), built.loaded.tokenizer
        self._precision, self.rows = built.passes.precision, rows or HERE

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        with self._precision():
            return write(self._model, self._tokenizer, draws, batch=len(draws))

    def follow(self) -> None:
        return None

    def close(self) -> None:
        return None


class Handed:
    """vLLM, in a process beside this one or behind an address: each newer policy goes there through a folder."""

    def __init__(self, built: Built, engine: vllm.Vllm | Server, folder: Path, rows: int) -> None:
        self._model, self._engine, self._folder = built.loaded.model, engine, folder.resolve()
        self._dtype = torch.bfloat16 if built.passes.bfloat16 else torch.float32
        self._numbers = count()
        self.rows = rows or BESIDE

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        return self._engine.write(draws)

    def follow(self) -> None:
        place = self._folder / f"{next(self._numbers)}"  # a new one each time: nothing that was read before is met
        if parallel.first():
            place.mkdir(parents=True, exist_ok=True)
            save_file(dict(weights(self._model, self._dtype)), place / "model.safetensors")
            try:
                self._engine.follow(place)
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
        parallel.wait()

    def close(self) -> None:
        self._engine.close()


def opened(built: Built, config: Config, cache: Path, key: str | None) -> Writer:
    """The writer that `rollout.engine` names; `key` is that of a server. Raises TrainingError, ModelError."""
    rollout = config.rollout
    assert rollout is not None
    folder = (config.run.out if rollout.handed is None else rollout.handed) / HANDED
    match rollout.engine:
        case "here":
            return Here(built, rollout.rows)
        case "vllm":
            if parallel.world() > 1:
                raise TrainingError("rollout.engine vllm: one process has it to itself; several share a `vllm serve`")
            engine = vllm.start(
                config.model.name,
                cache=cache,
                dtype=config.model.dtype,
                memory=rollout.memory if built.passes.device.type == "cuda" else None,
                likelihoods=True,
            )
            return Handed(built, engine, folder, rollout.rows)
        case address:
            return Handed(built, Server(address, key), folder, rollout.rows)
