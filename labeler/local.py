"""A model in this process, through transformers and torch. Prompts that begin alike are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labeler.engine import InProcess
from lm.chat import Encoder
from lm.load import LanguageModel, load
from lm.options import Options
from lm.sample import Draw, Written, write
from lm.strings import Ask

WRITING = 16
"""Texts written at once: their caches share the memory."""

ROWS = {"cpu": 16}
"""Rows of a job that one call carries, by device; more elsewhere."""


class _Torch:
    """Likelihoods by shared prefixes, texts by sampling."""

    def __init__(self, loaded: LanguageModel) -> None:
        self._loaded, self._options = loaded, Options(loaded.model)

    def log_probabilities(self, asks: Sequence[Ask]) -> list[list[float]]:
        return self._options.log_probabilities(asks)

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        return write(self._loaded.model, self._loaded.tokenizer, draws, batch=WRITING)

    def close(self) -> None:
        return None


def open_local(name: str, *, cache: Path, dtype: str, device: str) -> InProcess:
    """`smollm2`, a model folder or a hub id. Raises ModelError."""
    return around(f"local:{name}", load(name, cache=cache, dtype=dtype, device=device))


def around(name: str, loaded: LanguageModel) -> InProcess:
    """A backend for a model that is loaded already."""
    rows = ROWS.get(loaded.model.device.type, 256)
    encoder = Encoder(loaded.tokenizer)
    return InProcess(name, loaded.identity, _Torch(loaded), encoder, context=loaded.context, rows=rows)
