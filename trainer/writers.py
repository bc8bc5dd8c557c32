"""Who writes a round's responses: the policy in this process, or vLLM, which is handed the policy's newest weights.

A new writer is one class with these methods, and one line in `opened`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

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

HERE, BESIDE = 64, 512
"""Responses that are written at the same time, in this process and by vLLM, which itself decides what runs together."""


class Writer(Protocol):
    """Writes responses, with log-probabilities of what was drawn. `rows` of them at a time; `own` says whether it is
    the policy itself, whose parameters have to be whole meanwhile.
    """

    rows: int
    own: bool

    def write(self, draws: Sequence[Draw]) -> list[Written]: ...
    def follow(self) -> None:
        """Go on with the policy as it is now; its parameters are whole."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What writes elsewhere, and takes weights from a folder."""

    def write(self, draws: Sequence[Draw]) -> list[Written]: ...
    def follow(self, weights: Path) -> None: ...
    def close(self) -> None: ...


class Here:
    """The policy itself."""

    own = True

    def __init__(
        self, model: Any, tokenizer: Any, precision: Callable[[], AbstractContextManager[Any]], rows: int
    ) -> None:
        self._model, self._tokenizer, self._precision, self.rows = model, tokenizer, precision, rows or HERE

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        with self._precision():
            return write(self._model, self._tokenizer, draws, batch=len(draws))

    def follow(self) -> None:
        return None

    def close(self) -> None:
        return None


class Handed:
    """vLLM, in a process beside this one or behind an address: each newer policy goes there through a folder of its own
    within `folder`. Raises TrainingError for whatever goes wrong there.
    """

    own = False

    def __init__(self, model: Any, dtype: torch.dtype, engine: Engine, folder: Path, rows: int) -> None:
        self._model, self._dtype, self._engine, self._folder = model, dtype, engine, folder.resolve()
        self.rows = rows or BESIDE

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        try:
            return self._engine.write(draws)
        except Exception as error:  # vLLM raises many kinds, also plain Exception
            raise _said(error, "it cannot write; --resume goes on once it can") from error

    def follow(self) -> None:
        if parallel.first():
            self._hand_over()
        parallel.wait()

    def _hand_over(self) -> None:
        place: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = Path(mkdtemp(prefix=".handed-", dir=self._folder))  # its own: other runs may share the folder
            place.chmod(0o755)  # a server may be another user
            save_file(dict(weights(self._model, self._dtype)), place / "model.safetensors")
            self._engine.follow(place)
        except Exception as error:
            raise _said(
                error,
                f"it has not taken the policy's weights; does it see {self._folder} (rollout.handed)? Start it anew",
            ) from error
        finally:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        self._engine.close()


def _said(error: Exception, otherwise: str) -> TrainingError:
    if isinstance(error, TrainingError):
        return error
    return TrainingError(f"rollout.engine: {otherwise} ({type(error).__name__}: {' '.join(str(error).split())[:300]})")


def opened(built: Built, config: Config, cache: Path, key: str | None) -> Writer:
    """The writer that `rollout.engine` names; `key` is that of a server. Raises TrainingError, ModelError."""
    rollout, model = config.rollout, built.loaded.model
    assert rollout is not None
    if rollout.engine == "here":
        return Here(bare(model), built.loaded.tokenizer, built.passes.precision, rollout.rows)
    if rollout.engine == "vllm" and parallel.world() > 1:
        raise TrainingError("rollout.engine vllm: one process has it to itself; several share a `vllm serve`")
    engine: Engine = (
        vllm.start(
            config.model.name,
            cache=cache,
            dtype=config.model.dtype,
            memory=rollout.memory,
            longest=min(config.data.max_tokens, built.loaded.context),
            likelihoods=True,
        )
        if rollout.engine == "vllm"
        else Server(rollout.engine, key)
    )
    dtype = torch.bfloat16 if built.passes.bfloat16 else torch.float32
    folder = config.run.out if rollout.handed is None else rollout.handed
    return Handed(model, dtype, engine, folder, rollout.rows)
