"""What has been answered? A SQLite file beside the output keeps every answer the moment it exists, through kill -9.

Four tables: `results` (a finished row: label, score, ranking or failure, under its job's digest), `answers` (what a
backend said to single requests; dropped when all rows of the job have a result), `batches` (handed in to a provider and
not collected yet), and `inputs` (the order of the rows in the input).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from data.errors import FileError
from data.journals import guarded
from labeler.backend import Likelihoods, Text, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    digest TEXT, id TEXT, content TEXT, ok INTEGER, record TEXT, PRIMARY KEY (digest, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    digest TEXT, key TEXT, kind TEXT, record TEXT, PRIMARY KEY (digest, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    digest TEXT, tag TEXT PRIMARY KEY, name TEXT, keys TEXT, options TEXT, at REAL, cost REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (
    digest TEXT, id TEXT, content TEXT, number INTEGER, PRIMARY KEY (digest, id)
) WITHOUT ROWID;
"""

_KEEP = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)"
_PUT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)"

_LOG, _CACHE = 16_384, 65_536
"""Pages of 4 KiB that the log may have, and KiB of pages that are kept in memory."""

_PIECE = 500
"""Values of one SQL statement."""


@dataclass(frozen=True)
class OpenBatch:
    """A provider's batch that was, or is about to be, handed in: `tag` is our name for it, `name` the provider's, once
    it is known. `options` are what its requests choose from; None where they write. `at` is when, by time.time; `cost`
    is about what it will be, in USD."""

    tag: str
    name: str | None
    keys: frozenset[str]
    options: tuple[str, ...] | None
    at: float
    cost: float = 0.0


class Journal:
    """One file, one writer. Raises FileError for a full disk, a locked or a foreign file.

    What one turn of the event loop brings is stored in one transaction at its end, as a commit costs more than a row:
    a process that is killed loses what it was told in that turn. Without an event loop all is stored at once.
    """

    def __init__(self, path: Path, digest: str, *, fresh: bool = False) -> None:
        self.path, self._digest = path, digest
        self._waiting: dict[str, list[Sequence[Any]]] = {_KEEP: [], _PUT: []}
        self._scheduled = False
        self._error: FileError | None = None
        with self._guarded():
            self._db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            # Keys are hashes: nearly every row is on a page of its own, and each copy of the log into the file writes
            # and syncs them all. A longer log and a larger cache have each page written far less often.
            self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG}")
            self._db.execute(f"PRAGMA cache_size=-{_CACHE}")
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            with self._transaction():
                if fresh:
                    self._db.execute("DELETE FROM results WHERE digest = ?", [digest])
                    self._db.execute("DELETE FROM answers WHERE digest = ?", [digest])
                    self._db.execute("DELETE FROM batches WHERE digest = ?", [digest])
                self._db.execute("DELETE FROM inputs WHERE digest = ?", [digest])
        query = "SELECT tag, name, keys, options, at, cost FROM batches WHERE digest = ?"
        self._batches = {tag: _open_batch(tag, *rest) for tag, *rest in self._select(query, [digest])}

    def close(self) -> None:
        self.flush()
        with self._guarded():
            self._db.close()

    def other_jobs(self) -> int:
        """How many other jobs have results in this file."""
        query = "SELECT COUNT(DISTINCT digest) FROM results WHERE digest != ?"
        return int(self._select(query, [self._digest])[0][0])

    def left_out(self) -> int:
        """How many good results this job has of rows that were not in this run's input."""
        query = """
            SELECT COUNT(*) FROM results WHERE digest = ?1 AND ok = 1
            AND NOT EXISTS (SELECT 1 FROM inputs WHERE inputs.digest = ?1 AND inputs.id = results.id)
        """
        self.flush()
        return int(self._select(query, [self._digest])[0][0])

    def finished(self, rows: Mapping[str, str]) -> set[str]:
        """Which of these ids have a good result for this very content. Failed rows are asked again."""
        done: set[str] = set()
        for piece in _pieces(list(rows)):
            marks = ",".join("?" * len(piece))
            query = f"SELECT id, content FROM results WHERE digest = ? AND ok = 1 AND id IN ({marks})"  # noqa: S608
            done |= {i for i, content in self._select(query, [self._digest, *piece]) if rows[i] == content}
        return done

    def admit(self, rows: Sequence[tuple[int, str, str]]) -> list[bool | None]:
        """Note rows, (number, id, content), as this run's input: True for a new id, False for a repeat of the same
        content, None where the id stands for another content already."""
        query = "SELECT id, content FROM inputs WHERE digest = ? AND id IN ({})"
        known: dict[str, str] = {}
        for piece in _pieces([identity for _, identity, _ in rows]):
            known.update(self._select(query.format(",".join("?" * len(piece))), [self._digest, *piece]))
        verdicts: list[bool | None] = []
        fresh: list[tuple[str, str, str, int]] = []
        for number, identity, content in rows:
            if identity in known:
                verdicts.append(False if known[identity] == content else None)
                continue
            known[identity] = content
            fresh.append((self._digest, identity, content, number))
            verdicts.append(True)
        with self._guarded(), self._transaction():
            self._db.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?)", fresh)
        return verdicts

    def keep(self, results: Sequence[tuple[str, str, bool, str]]) -> None:
        """Store finished rows as (id, content, ok, record)."""
        self._store(_KEEP, [(self._digest, *each) for each in results])

    def forget_answers(self) -> None:
        """Drop this job's answers to single requests: every row has its result, none failed."""
        self.flush()
        with self._guarded(), self._transaction():
            self._db.execute("DELETE FROM answers WHERE digest = ?", [self._digest])

    def results(self, *, ok: bool) -> Iterator[str]:
        """The finished rows of this run's input, in its order, each once: JSON as it was kept."""
        query = """
            SELECT record FROM inputs JOIN results USING (digest, id)
            WHERE digest = ? AND ok = ? ORDER BY number
        """
        self.flush()
        with self._guarded():
            for (record,) in self._db.execute(query, [self._digest, int(ok)]):
                yield record

    def get(self, keys: Sequence[str]) -> dict[str, Likelihoods | Text]:
        found: dict[str, Likelihoods | Text] = {}
        for piece in _pieces(list(keys)):
            query = f"SELECT key, kind, record FROM answers WHERE digest = ? AND key IN ({','.join('?' * len(piece))})"  # noqa: S608
            for key, kind, record in self._select(query, [self._digest, *piece]):
                found[key] = _thaw(kind, json.loads(record))
        return found

    def put(self, answers: Iterable[tuple[str, Likelihoods | Text]]) -> None:
        rows = [(self._digest, key, type(answer).__name__, to_json(answer).decode()) for key, answer in answers]
        self._store(_PUT, rows)

    def open_batches(self) -> list[OpenBatch]:
        """What was handed in and not collected yet."""
        return list(self._batches.values())

    def open_batch(self, batch: OpenBatch) -> None:
        """Note, before it is handed in, that a batch will be."""
        options = None if batch.options is None else json.dumps(batch.options)
        row = [self._digest, batch.tag, batch.name, json.dumps(sorted(batch.keys)), options, batch.at, batch.cost]
        with self._guarded(), self._transaction():
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._batches[batch.tag] = batch

    def name_batch(self, tag: str, name: str | None) -> None:
        """Note what the provider calls it."""
        with self._guarded(), self._transaction():
            self._db.execute("UPDATE batches SET name = ? WHERE tag = ?", [name, tag])
        self._batches[tag] = replace(self._batches[tag], name=name)

    def close_batch(self, tag: str) -> None:
        """Forget a batch whose answers are stored, or that was never handed in."""
        self.flush()
        with self._guarded(), self._transaction():
            self._db.execute("DELETE FROM batches WHERE tag = ?", [tag])
        del self._batches[tag]

    def flush(self) -> None:
        """Store what waits. Raises FileError: also one that was met at the end of an earlier turn."""
        self._scheduled = False
        if self._error is None and any(self._waiting.values()):
            with self._guarded(), self._transaction():
                for statement, rows in self._waiting.items():
                    self._db.executemany(statement, rows)
            for rows in self._waiting.values():
                rows.clear()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _store(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        if self._error is not None:
            self.flush()
        self._waiting[statement] += rows
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._at_the_end_of_the_turn)

    def _at_the_end_of_the_turn(self) -> None:
        try:
            self.flush()
        except FileError as error:  # for whoever stores or reads next: nobody waits here
            self._error = error

    def _select(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _guarded(self) -> AbstractContextManager[None]:
        return guarded(self.path)


def _thaw(kind: str, record: dict[str, Any]) -> Likelihoods | Text:
    usage = Usage(**record.pop("usage"))
    if kind == "Text":
        return Text(record["text"], usage)
    return Likelihoods(tuple(record["values"]), usage, record["method"], record["votes"])


def _open_batch(tag: str, name: str | None, keys: str, options: str | None, at: float, cost: float) -> OpenBatch:
    told = None if options is None else tuple(json.loads(options))
    return OpenBatch(tag, name, frozenset(json.loads(keys)), told, at, cost)


def _pieces(values: list[str]) -> Iterator[list[str]]:
    return (values[at : at + _PIECE] for at in range(0, len(values), _PIECE))
