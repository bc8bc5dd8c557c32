"""Rewards a second of the reward server under load, against what its model could do at best.

    python benchmarks/server.py [--json] [--requests N] [--callers N] [--vllm PYTHON|none]

A stand-in model takes 20 ms for a batch of up to 32 responses, one batch after another in a thread, as an engine does:
1,600 a second at best. 512 callers, each a request of
one response at a time, from a process of their own; the server's memory after a third of them and at the end. Then the
same for answers that are known.

--vllm names the Python of a venv with vLLM (default: .venv-vllm, where `make test-vllm` has made it): SmolLM2 behind
`vllm serve`, asked through the reward server, and then sent the very same requests directly; in turn, with vLLM's cache
emptied.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402

TASK, ROWS, SECONDS = "helpfulness", 32, 0.02
CALLERS, REQUESTS = 512, 100_000
IDEAL = ROWS / SECONDS
SMALL, ITEMS, AT_ONCE = "smollm2", 128, 64


def serve(port: int, url: str | None, record: str) -> None:
    """The server around a model that only takes its time, or around the one at a URL, whose bodies are recorded."""
    import uvicorn

    gc.set_threshold(100_000, 50, 100)  # as the commands of rlaif.py do
    from labeler.backend import Backend, Choose, Failed, Likelihoods
    from labeler.fake import RULES, FakeBackend
    from labeler.openai import open_openai
    from labeler.options import Limits
    from labeler.server.options import Listening, Rewarding
    from labeler.server.serving import Model, build

    class Engine(FakeBackend):
        """Computes one call after another, whoever else waits."""

        one = Lock()

        async def likelihoods(self, requests: Sequence[Choose]) -> list[Likelihoods | Failed]:
            await asyncio.to_thread(self._compute)
            return await super().likelihoods(requests)

        def _compute(self) -> None:
            with self.one:
                time.sleep(SECONDS)

    backend: Backend = Engine("fake:noise", RULES["noise"], rows=ROWS)
    if url is not None:
        asked = open_openai(SMALL, base_url=f"{url}/v1", key=None, limits=Limits(), price=None)
        asked._transport = Recorded(asked._transport, Path(record))  # noqa: SLF001
        backend = asked
    with tempfile.TemporaryDirectory() as folder:
        model = Model((TASK,), backend.name, Path(folder))
        web: Any = build(backend, model, Listening(), Rewarding(kept="memory"), None)
        uvicorn.run(web, port=port, log_level="error", access_log=False, backlog=4096)


class Recorded:
    """The way to a model, with each body written down."""

    def __init__(self, inner: Any, record: Path) -> None:
        self._inner, self._file = inner, record.open("w", buffering=1)
        self.close, self.count = inner.close, inner.count

    async def ask(self, body: Any, read: Any, tokens: int) -> Any:
        self._file.write(json.dumps(body) + "\n")
        return await self._inner.ask(body, read, tokens)


async def load(url: str, requests: range, callers: int, kinds: int) -> dict[str, float]:
    """Requests by their numbers, about `kinds` different responses; latencies of all."""
    todo = iter(requests)
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
    count = len(requests)
    return {"per_second": count / whole, "p50": p50, "p99": p99, "fair": callers * whole / count}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def memory_of(pid: int) -> float:
    """MiB that a process has in memory now."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def started(port: int, *more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(port), *more])
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
        asyncio.run(load(url, range(-2 * callers, 0), callers, 10**9))  # connections, and code that is warm
        third = requests // 3  # of 100,000 more than the answers that are kept in memory: that is full by then
        asyncio.run(load(url, range(third), callers, 10**9))
        before = memory_of(process.pid)
        fresh = asyncio.run(load(url, range(third, requests), callers, 10**9))
        after = memory_of(process.pid)
        asyncio.run(load(url, range(100), 64, 100))
        known = asyncio.run(load(url, range(min(requests, 20_000)), 64, 100))
    finally:
        process.terminate()
        process.wait()
    return {"fresh": fresh, "known": known, "memory_mib": {f"after_{third}": before, f"after_{requests}": after}}


@contextmanager
def vllm(python: str) -> Iterator[str]:
    """`vllm serve` with SmolLM2, and a door through which its cache is emptied."""
    from lm import embedded

    cache = Path(os.environ.get("RLAIF_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"
    port = free_port()
    words = ["--model", str(embedded.folder(cache)), "--served-model-name", SMALL, "--port", str(port)]
    words += ["--host", "127.0.0.1", "--max-model-len", "2048", "--enforce-eager", "--dtype", "bfloat16"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *words]
    quiet = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}
    env = {**os.environ, **quiet}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise SystemExit(f"{python} -m vllm.entrypoints.openai.api_server ended with {process.poll()}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def posted(url: str, bodies: Sequence[str], callers: int) -> float:
    """Seconds for all of them."""
    todo = iter(bodies)

    async def caller(session: aiohttp.ClientSession) -> None:
        for body in todo:
            async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
                told = await answer.read()
                assert answer.status == 200, told[:300]

    limits = {"connector": aiohttp.TCPConnector(limit=0), "timeout": aiohttp.ClientTimeout(total=None)}
    async with aiohttp.ClientSession(**limits) as session:
        started = time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(callers)))
        return time.perf_counter() - started


def before_vllm(python: str, items: int, callers: int) -> dict[str, Any]:
    """Through the server, directly, and once more each; the first of both is not counted."""
    draw = random.Random(0)
    words = [f"word{at}" for at in range(50)]
    asked = [
        {
            "prompt": f"Question {at}: " + " ".join(draw.choices(words, k=60)),
            "response": " ".join(draw.choices(words, k=80)),
        }
        for at in range(items)
    ]
    bodies = [json.dumps({"items": [each]}) for each in asked]
    seconds: dict[str, list[float]] = {"through": [], "direct": []}
    with tempfile.TemporaryDirectory() as folder, vllm(python) as url:
        record = Path(folder) / "asked.jsonl"
        for _ in range(3):
            port = free_port()  # a new server each time: it keeps answers
            process = started(port, "--url", url, "--record", str(record))
            try:
                reset(url)
                seconds["through"].append(asyncio.run(posted(f"http://127.0.0.1:{port}/v1/rewards", bodies, callers)))
            finally:
                process.terminate()
                process.wait()
            same = record.read_text().splitlines()
            reset(url)
            seconds["direct"].append(asyncio.run(posted(f"{url}/v1/chat/completions", same, callers)))
    through, direct = (statistics.median(each[1:]) for each in seconds.values())
    return {"vs_vllm_serve": direct / through, "items": items, "requests": len(same), "seconds": seconds}


def reset(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST"), timeout=60).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--callers", type=int, default=CALLERS)
    known = ROOT / ".venv-vllm/bin/python"
    default = str(known) if known.exists() else "none"
    parser.add_argument("--vllm", default=default, help="Python of a venv with vLLM; none leaves `vllm serve` out")
    parser.add_argument("--items", type=int, default=ITEMS, help="responses in front of vLLM")
    for name in ("--url", "--record"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.url, options.record)
        return
    found = measure(options.requests, options.callers)
    fresh, known, memory = found["fresh"], found["known"], list(found["memory_mib"].values())
    ratios = {"vs_ideal": fresh["per_second"] / IDEAL}
    if options.vllm != "none":
        found["vllm"] = before_vllm(options.vllm, options.items, AT_ONCE)
        ratios["vs_vllm_serve"] = found["vllm"]["vs_vllm_serve"]
    result = {
        "ratios": ratios,
        "memory_growth": memory[1] / memory[0],
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
