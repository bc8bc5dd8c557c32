"""What was said, for good: a SQLite file beside the votes to which facts are only ever added.

A fact is on disk when `add` returns, so a page that has answered has lost nothing, whatever happens next.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.journals import guarded
from evaluator.annotate.verdicts import Fact, Verdict

_SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (name TEXT PRIMARY KEY COLLATE NOCASE, token TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS facts (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, rater TEXT NOT NULL, item TEXT NOT NULL, verdict TEXT
);
"""


class History:
    """One file, one writer. Raises FileError for a full disk, a locked or a foreign file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with guarded(path):
            self._db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a commit waits for the disk: a vote is not asked for twice
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    def close(self) -> None:
        with guarded(self.path):
            self._db.close()

    def admit(self, name: str) -> tuple[str, str]:
        """A rater's name as it was first written, and the secret of the rater's link; made where the name is new."""
        with guarded(self.path):
            self._db.execute("INSERT OR IGNORE INTO raters VALUES (?, ?)", [name, secrets.token_urlsafe(16)])
            return self._db.execute("SELECT name, token FROM raters WHERE name = ?", [name]).fetchone()

    def raters(self) -> dict[str, str]:
        """Names by token."""
        with guarded(self.path):
            return dict(self._db.execute("SELECT token, name FROM raters"))

    def add(self, facts: Iterable[Fact]) -> None:
        """Store facts, all or none."""
        rows = [(time.time(), each.rater, each.key, each.verdict and each.verdict.model_dump_json()) for each in facts]
        with guarded(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO facts (at, rater, item, verdict) VALUES (?, ?, ?, ?)", rows)

    def facts(self) -> Iterator[Fact]:
        """All that was ever said, in that order."""
        with guarded(self.path):
            for rater, key, said in self._db.execute("SELECT rater, item, verdict FROM facts ORDER BY number"):
                yield Fact(rater, key, None if said is None else Verdict.model_validate_json(said))
