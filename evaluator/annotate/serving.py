"""The page as a process: opens what it needs, serves, and keeps the votes file equal to the history."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import uvicorn

from data import reading, tables
from data.errors import FileError, RlaifError
from evaluator.annotate import results
from evaluator.annotate.app import app
from evaluator.annotate.history import History
from evaluator.annotate.items import Items
from evaluator.annotate.options import Options
from evaluator.annotate.poll import Poll

PAUSE = 2.0
"""Seconds between two writings of the votes file, at least."""

SHARE = 0.05
"""Of the time, at most, goes into writing the votes file: a large one is written less often."""

PATIENCE = 60.0
"""Seconds until a writing that failed is tried again."""


def annotate(source: str, out: Path, options: Options, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. `tell` gets what the person at the terminal should read. Raises RlaifError."""
    journal = _journal(source, out)
    read = (reading.open_responses if options.harmful else reading.open_comparisons)(source, options.columns)
    with (
        _listening(options.host, options.port) as listening,
        closing(History(journal)) as history,
        closing(Items(read.rows, source)) as items,
    ):
        poll = Poll(items, history, options)
        _write(poll, out)
        for line in _welcome(poll, journal, options.host, listening.getsockname()[1]):
            tell(line)
        _serve(poll, out, options.host, listening, tell)
        _write(poll, out)
        judged = poll.votes()
        tell(f"votes: {sum(map(len, judged.values()))}, on {len(judged)} of {len(items)} rows, in {out}")


def _journal(source: str, out: Path) -> Path:
    """Where the history is. Raises FileError where the votes file would take the place of something else."""
    tables.check_writable(out, source)
    if out.name.endswith(".parquet"):
        raise FileError(f"{out}: votes are written as .jsonl: a column of Parquet cannot hold 0 and 'tie'")
    journal = Path(f"{out}.journal")
    if out.exists() and not journal.exists():
        raise FileError(
            f"{out}: exists, and was not made by this command ({journal.name} is missing); choose another name"
        )
    return journal


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RlaifError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from None


def _name(host: str) -> str:
    """What raters write for it in a link."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _welcome(poll: Poll, journal: Path, host: str, port: int) -> list[str]:
    base = f"http://{_name(host)}:{port}"
    lines = [f"{len(poll.items)} rows to judge"]
    if poll.items.unusable or poll.items.clashing:
        lines.append(
            f"left out: {poll.items.unusable} unusable rows, {poll.items.clashing} other texts under a known id"
        )
    if poll.elsewhere:
        lines.append(f"{poll.elsewhere} entries of {journal} are about other texts, and stay there")
    lines += [f"{base}/"] if poll.open else [f"{name:<12} {base}/r/{token}" for name, token in poll.links().items()]
    return [*lines, "Ctrl-C stops; the same command goes on where everyone was."]


def _serve(poll: Poll, out: Path, host: str, listening: socket.socket, tell: Callable[[str], None]) -> None:
    @asynccontextmanager
    async def writing(_: object) -> AsyncGenerator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(_keep_writing(poll, out, tell, stop))
        yield
        stop.set()
        await task  # not cancelled: what it has begun to write must not take the place of what is written after it

    web = app(poll, {"localhost", host.lower(), _name(host).lower()}, writing)
    settings = uvicorn.Config(
        web, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it has ended
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(poll: Poll, out: Path) -> None:
    votes = poll.votes()
    if votes or out.exists():
        tables.write(out, results.rows(poll.items, votes))


async def _keep_writing(poll: Poll, out: Path, tell: Callable[[str], None], stop: asyncio.Event) -> None:
    """Write the votes file while there is something new; from a thread, so that nobody waits for it."""
    written, pause = 0, PAUSE  # as it stood at the start, it is written already
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
        if poll.changes == written:
            continue
        changes, votes, begun = poll.changes, poll.votes(), time.monotonic()
        try:
            await asyncio.to_thread(tables.write, out, results.rows(poll.items, votes))
        except FileError as error:
            tell(f"{error}; the votes are safe in the journal, and writing is tried again")
            pause = PATIENCE
        else:
            written, pause = changes, max(PAUSE, (time.monotonic() - begun) / SHARE)
