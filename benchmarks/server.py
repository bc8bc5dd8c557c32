"""Rewards a second of the reward server under load, against what its model could do at best.

    python benchmarks/server.py [--json] [--requests N] [--callers N]

A stand-in model takes 20 ms for a batch of up to 32 responses: 1,600 a second at best. 512 callers, each a request of
one response at a time, from a process of their own. Then the same for answers that are known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402

TASK, ROWS, SECONDS = "helpfulness", 32, 0.02
CALLERS, REQUESTS = 512, 20_000
IDEAL = ROWS / SECONDS


def serve(port: int) -> None:
    """The server around a model that only takes its time."""
    import uvicorn

    from labeler.fake import RULES, FakeBackend
    from labeler.server.options import Listening, Rewarding
    from labeler.server.serving import Model, build

    backend = FakeBackend("fake:noise", RULES["noise"], rows=ROWS, seconds=SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        model = Model((TASK,), "fake:noise", Path(folder))
        web: Any = build(backend, model, Listening(), Rewarding(kept="memory"), None)
        uvicorn.run(web, port=port, log_level="error", access_log=False, backlog=4096)


async def load(url: str, requests: int, callers: int, kinds: int) -> dict[str, float]:
    """`requests` about `kinds` different responses; latencies of all."""
    todo = iter(range(requests))
    seconds: list[float] = []
    headers = {"content-type": "application/json"}

    async def caller(session: aiohttp.ClientSession) -> None:
        for at in todo:
            body = json.dumps({"items": [{"prompt": "How are you?", "response": f"Fine, {at % kinds} times."}]})
            started = time.perf_counter()
            async with session.post(f"{url}/v1/rewards", data=body, headers=headers) as answer:
                told = await answer.read()
                assert answer.status == 200, told[:300]
                assert b'"status":"ok"' in told
            seconds.append(time.perf_counter() - started)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(callers)))
        whole = time.perf_counter() - started
    seconds.sort()
    p50, p99 = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    return {"per_second": requests / whole, "p50": p50, "p99": p99, "fair": callers * whole / requests}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def memory_of(pid: int) -> float:
    """MiB that a process has in memory now."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def started(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return process
    raise SystemExit("the server did not start")


def measure(requests: int, callers: int) -> dict[str, Any]:
    port = free_port()
    process = started(port)
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(load(url, callers * 2, callers, callers * 2))  # connections, and code that is warm
        before = memory_of(process.pid)
        fresh = asyncio.run(load(url, requests, callers, 10**9))
        after = memory_of(process.pid)
        known = asyncio.run(load(url, requests, 64, 100))
    finally:
        process.terminate()
        process.wait()
    return {"fresh": fresh, "known": known, "memory": {"before_mib": before, "after_mib": after}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--callers", type=int, default=CALLERS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    found = measure(options.requests, options.callers)
    fresh, known = found["fresh"], found["known"]
    result = {
        "ratios": {"vs_ideal": fresh["per_second"] / IDEAL},
        "p99_over_fair": fresh["p99"] / fresh["fair"],
        "cached_per_second": known["per_second"],
        "cached_p99_ms": 1000 * known["p99"],
        "measured": found,
        "conditions": {
            "model": f"a stand-in, {SECONDS} s for a batch of up to {ROWS}",
            "callers": options.callers,
            "requests": options.requests,
            "cpus": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "versions": {name: version(name) for name in ("fastapi", "uvicorn", "aiohttp")}
            | {"python": platform.python_version()},
        },
    }
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
