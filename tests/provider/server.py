"""A stand-in for OpenAI's and Anthropic's servers, in a process of its own.

`python tests/provider/server.py --port 0 --latency 0.05` prints `{"url": "http://127.0.0.1:PORT"}` when it is ready. It
ends when its standard input (a pipe) closes, when its parent dies, or on SIGTERM. It logs nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
from functools import partial
from typing import Any

from aiohttp import web
from provider_edge import handle
from provider_settings import Settings, parsed
from provider_state import State

BODY = 300_000_000
"""Bytes: more than any provider takes."""

PARENT = 0.5
"""Seconds between looks whether the parent lives."""


async def serve(settings: Settings, port: int) -> None:
    loop = asyncio.get_running_loop()
    make = partial(web.BaseRequest, loop=loop, client_max_size=BODY)
    server = web.Server(partial(handle, State(settings)), request_factory=make, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        loop.add_reader(0, _read, stopped)
    watch = asyncio.create_task(_watch(os.getppid(), stopped))
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    await stopped.wait()
    watch.cancel()
    await runner.cleanup()


def _read(stopped: asyncio.Event) -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        stopped.set()


async def _watch(parent: int, stopped: asyncio.Event) -> None:
    """A parent that dies leaves its children to another one."""
    while os.getppid() == parent:
        await asyncio.sleep(PARENT)
    stopped.set()


def main(words: list[str]) -> None:
    settings, port = parsed(words)
    logging.disable()
    run: Any = asyncio.run
    try:
        import uvloop
    except ImportError:
        pass
    else:
        run = uvloop.run
    run(serve(settings, port))


if __name__ == "__main__":
    main(sys.argv[1:])
