"""What SQLite complains of, as one line that a person can act on. All journals are SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from data.errors import FileError


@contextmanager
def guarded(path: Path) -> Generator[None]:
    """Raises FileError for a full disk, a locked or a foreign file."""
    try:
        yield
    except sqlite3.Error as error:
        raise FileError(f"{path}: {_meaning(error)}") from error


def _meaning(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text:
        return "in use by another run of the same job; wait for it, or choose another --out"
    if "not a database" in text:
        return "is not a journal of this program; remove it or choose another --out"
    if "full" in text or "disk I/O" in text:
        return f"the disk is full or failing ({text}); free some space and run the same command again: it goes on"
    return f"cannot be used: {text}"
