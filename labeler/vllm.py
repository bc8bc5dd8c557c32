"""A model in this process through vLLM's offline engine: for GPUs, and for more prompts than transformers can take."""

from __future__ import annotations

from pathlib import Path

from labeler.engine import InProcess
from lm import vllm
from lm.chat import Encoder

ROWS = 512
"""Rows of a job that one call carries; the engine itself decides what runs together."""


def open_vllm(name: str, *, cache: Path, dtype: str) -> InProcess:
    """`smollm2`, a model folder or a hub id. Raises ModelError."""
    engine = vllm.start(name, cache=cache, dtype=dtype)
    identity = f"vllm:{name}@{engine.identity}"
    return InProcess(f"vllm:{name}", identity, engine, Encoder(engine.tokenizer), context=engine.context, rows=ROWS)
