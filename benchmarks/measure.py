"""What both sides of a benchmark measure alike, in whatever venv they run."""

from __future__ import annotations

import time
from pathlib import Path

import torch


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib() -> float:
    """MiB of the GPU, or of this process alone: the kernel's ru_maxrss is handed down by a larger parent."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
