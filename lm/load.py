"""Which model is it, and how is it loaded? A folder, a hub id, or the embedded model's name."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lm import embedded
from lm.errors import ModelError

SLICE, SLICES = 4096, 8192
"""Bytes of one place, and places of one file, that go into a model's identity."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready for inference. `identity` changes when its weights' files do."""

    model: Any
    tokenizer: Any
    identity: str
    context: int


def load(name: str, *, cache: Path, dtype: str = "auto", device: str = "auto") -> LanguageModel:
    """Load `smollm2`, a folder, or a hub id. Raises ModelError with one line that says what to do."""
    place = find(name, cache)
    where = _device(device)
    kind = _dtype(dtype, where)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as progress

        progress.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=kind)
        model = model.eval().to(where)
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # transformers raises many kinds for the same few causes
        raise ModelError(f"local:{name}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return LanguageModel(model, tokenizer, _identity(name, place, model, kind), _context(model, tokenizer))


Head = Literal["language", "new-score", "score"]
"""What a model ends in: the vocabulary; one number, drawn anew where the folder has none; one number that is there."""


def load_trainable(name: str, *, cache: Path, device: str, head: Head, dtype: str = "float32") -> LanguageModel:
    """A model to be trained, or to be asked as training asks. Raises ModelError, also where a folder lacks weights.

    A new head is drawn from torch's generator.
    """
    place = find(name, cache)
    where = _device(device)
    kind = _dtype(dtype, where)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    how = {"dtype": kind, "output_loading_info": True}
    try:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging as progress

        progress.disable_progress_bar()
        progress.set_verbosity_error()  # a new head is what was asked for
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
        if head == "language":
            _generates(name, place)
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, **how)
        else:
            loaded = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1, **how)
            loaded[0].config.pad_token_id = _padding(loaded[0], tokenizer)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for the same few causes
        raise ModelError(f"{name}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    model, found = loaded
    allowed = {"score.weight"} if head == "new-score" else set[str]()
    if missing := sorted(set(found["missing_keys"]) - allowed):
        what = "no reward model: `rlaif train reward` makes one" if head == "score" else "not of this kind of model"
        raise ModelError(f"{name}: {what}; its files lack {', '.join(missing[:3])}")
    return LanguageModel(model.to(where), tokenizer, _identity(name, place, model, kind), _context(model, tokenizer))


def _generates(name: str, place: str | Path) -> None:
    """Raises ModelError where the files are of a model that scores: transformers would give it a new head."""
    from transformers import AutoConfig

    made: list[str] = getattr(AutoConfig.from_pretrained(place), "architectures", None) or []
    if any(each.endswith("SequenceClassification") for each in made):
        raise ModelError(f"{name}: is a reward model ({made[0]}); what writes begins as a language model")


def _padding(model: Any, tokenizer: Any) -> int:
    """A token that no answer ends with: transformers reads a score at the last token that is not this one."""
    own = getattr(model.config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    return next(each for each in (*candidates, *range(len(ends) + 1)) if each is not None and each not in ends)


def find(name: str, cache: Path) -> str | Path:
    """The folder of `smollm2` or of a folder's name, or the hub id as it is. Raises ModelError."""
    if name == embedded.NAME:
        return embedded.folder(cache)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"local:{name}: the folder has no config.json; expected a Hugging Face model folder")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"local:{name}: no such model; expected {embedded.NAME}, a model folder, or a hub id like owner/name"
        )
    return name


def _device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"--device {device}: cannot be used: {str(error).splitlines()[0][:120]}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it fast, else fp32."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"--dtype {dtype}: expected auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    quick = bool(fast.get("avx512_bf16")) or bool(fast.get("amx_bf16")) or _flag("avx512_bf16")
    return torch.bfloat16 if quick else torch.float32


def _flag(name: str) -> bool:
    try:
        return name in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _context(model: Any, tokenizer: Any) -> int:
    limits = [getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    return min([limit for limit in limits if isinstance(limit, int) and limit > 0], default=4096)


def _identity(name: str, place: str | Path, model: Any, dtype: torch.dtype) -> str:
    """Name, number format, and what the files hold. A hub id has its commit."""
    found = files_hash(place) if isinstance(place, Path) else commit_hash(getattr(model.config, "_commit_hash", None))
    return f"local:{name}@{found}/{str(dtype).removeprefix('torch.')}"


def commit_hash(commit: str | None) -> str:
    """Twelve digits for a commit of the hub."""
    return hashlib.sha256(str(commit).encode()).hexdigest()[:12]


def files_hash(folder: Path) -> str:
    """Twelve digits for a model folder: small files whole, weights at thousands of places spread over them, so that
    training or merging into the same folder is noticed, and large models take seconds.
    """
    found = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in {".safetensors", ".json", ".jinja", ".bin", ".model", ".txt"}:
            found.update(f"{file.name} {file.stat().st_size}".encode())
            _update(found, file)
    return found.hexdigest()[:12]


def _update(found: Any, file: Path) -> None:
    size = file.stat().st_size
    step = max(SLICE, size // SLICES)
    with file.open("rb") as opened:
        for at in range(0, size, step):
            opened.seek(at)
            found.update(opened.read(SLICE))
