"""Requests a second of `openai:`, against a bare HTTP loop and against prometheus-eval and alpaca_eval.

    python benchmarks/api.py [--json] [--rows N] [--rounds N] [--peers none]

All ask the same stand-in provider (tests/provider, a process of its own, 50 ms before each answer) the same questions:
comparisons in both orders, about 900 tokens each. Each side runs in a fresh process, in turn, and counts only if the
stand-in says that it answered every question once.

- ours: the whole job. A file of comparisons is read, asked about, kept in the journal, written as labels.parquet.
- backend: `OpenAIBackend.likelihoods` alone, with the same prompts.
- bare: 256 loops of aiohttp that send the bodies which the backend makes, and parse the JSON of the answers.
- bare_unparsed: the same without parsing.
- the peers, each in a venv of its own (.bench), made here, with the best of several settings.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/provider")]

import aiohttp  # noqa: E402
from pydantic_core import to_json  # noqa: E402
from running import Provider, provider  # noqa: E402

from data.reading import comparisons  # noqa: E402
from data.records import Comparison, Label  # noqa: E402
from labeler.backend import Choose, Failed  # noqa: E402
from labeler.commands import execute  # noqa: E402
from labeler.here import Job  # noqa: E402
from labeler.openai import Chat, Server, open_openai  # noqa: E402
from labeler.opening import Reach  # noqa: E402
from labeler.options import Limits  # noqa: E402
from labeler.preference import Labeler  # noqa: E402
from prompts.answers import PAIR  # noqa: E402
from prompts.render import Style, pair_question  # noqa: E402
from prompts.task import load  # noqa: E402

TASK, MODEL, KEY = "summarization", "gpt-4o", "sk-benchmark"
ROWS, ROUNDS = 15_000, 5
TEXT, RESPONSE = 265, 35
"""Words."""
LATENCY, IN_FLIGHT = 0.05, 256
TOKEN = 4
"""Characters, as the stand-in counts."""
LIMITS = Limits(in_flight=IN_FLIGHT, rpm=10**9, tpm=10**12)
"""Without rpm and tpm our pace would keep to the allowance in the stand-in's headers: 500 requests a second."""
GARBAGE = (100_000, 50, 100)
"""The collector's thresholds, as the commands of rlaif.py set them; the bare loop has them too."""
BENCH = ROOT / ".bench"
MARK = "RESULT "


@dataclass(frozen=True)
class Work:
    """What a measured process is given: where to ask, the comparisons and the bodies that ask about them, settings."""

    url: str
    source: str
    bodies: str
    requests: int
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Taken:
    """By one side for all of its requests, in seconds; `server` is the stand-in's CPU time meanwhile."""

    seconds: float = 0.0
    cpu: float = 0.0
    server: float = 0.0
    questions: frozenset[str] = frozenset()
    """What was asked, as the stand-in tells questions apart."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.questions) / self.seconds

    def each(self, seconds: float) -> float:
        """Microseconds for one request."""
        return seconds / len(self.questions) * 1e6


Runs: TypeAlias = dict[str, list[Taken]]
"""By the name of a side, or by a peer's settings: one for each round."""


# What is asked


def prose(key: str) -> list[str]:
    lines = (ROOT / "data/samples/summarization.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line)[key] for line in lines]
    return " ".join(each if isinstance(each, str) else " ".join(each) for each in found).split()


def words(text: list[str], count: int, skip: int) -> str:
    start = skip % len(text)
    return " ".join(islice(cycle(text), start, start + count))


def workload(rows: int) -> list[Comparison]:
    """Comparisons of real prose from the project's samples; its number makes each another one."""
    posts, replies = prose("prompt"), prose("responses")
    return [
        Comparison(
            id=str(at),
            prompt=f"Post {at}. {words(posts, TEXT, 97 * at)}",
            responses=(words(replies, RESPONSE, 71 * at), words(replies, RESPONSE, 71 * at + 1009)),
        )
        for at in range(rows)
    ]


def questions(rows: list[Comparison]) -> list[Choose]:
    question = pair_question(load(TASK), Style())
    orders = [(row.prompt, *pair) for row in rows for pair in (row.responses, row.responses[::-1])]
    return [Choose(question.ask(*each), PAIR) for each in orders]


def bodies(rows: list[Comparison]) -> list[bytes]:
    """What the backend sends for these comparisons."""
    chat = Chat(MODEL, Server(), None)
    return [to_json(chat.choose(each)) for each in questions(rows)]


# What each of our own processes does


@contextmanager
def timed(taken: Taken) -> Iterator[None]:
    started, cpu = time.perf_counter(), time.process_time()
    yield
    taken.seconds, taken.cpu = time.perf_counter() - started, time.process_time() - cpu


def ours(work: Work, taken: Taken) -> None:
    reach = Reach(base_url=work.url, keys={"openai": KEY}, limits=LIMITS)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), f"openai:{MODEL}"
        job = Job(source=work.source, task=TASK, model=model, out=folder / "labels.parquet", cache=folder, reach=reach)
        with timed(taken):
            done = execute(Labeler, Label, comparisons(work.source), job, None)
    assert (done.outcome.answered, done.outcome.failed) == (work.requests // 2, 0)


def backend(work: Work, taken: Taken) -> None:
    asked = questions([row for row in comparisons(work.source) if isinstance(row, Comparison)])
    opened = open_openai(MODEL, base_url=work.url, key=KEY, limits=LIMITS, price=None)

    async def run() -> None:
        with timed(taken):
            found = await opened.likelihoods(asked)
        await opened.close()
        assert not any(isinstance(each, Failed) for each in found)

    asyncio.run(run())


def bare(work: Work, taken: Taken, read: Callable[[bytes], object] = json.loads) -> None:
    left = iter(Path(work.bodies).read_bytes().splitlines())
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}

    async def loop(session: aiohttp.ClientSession) -> None:
        for body in left:
            async with session.post(f"{work.url}/chat/completions", data=body) as reply:
                read(await reply.read())

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers, raise_for_status=True) as session:
            with timed(taken):
                await asyncio.gather(*(loop(session) for _ in range(IN_FLIGHT)))

    asyncio.run(run())


OWN: dict[str, Callable[[Work, Taken], None]] = {
    "bare": bare,
    "ours": ours,
    "backend": backend,
    "bare_unparsed": lambda work, taken: bare(work, taken, len),
}


# The peers


@dataclass(frozen=True)
class Peer:
    """A package from PyPI: how pip installs it, what asks with it, and the settings that it is tried with."""

    name: str
    install: tuple[tuple[str, ...], ...]
    versions: tuple[str, ...]
    requests: int
    """So many take 10 to 20 seconds."""
    script: str
    settings: tuple[dict[str, Any], ...]
    about: str


PROMETHEUS = """
import asyncio, json, sys, time
from itertools import islice
from prometheus_eval.litellm import AsyncLiteLLM
work = json.loads(sys.argv[1])
bodies = [json.loads(line) for line in islice(open(work["bodies"], encoding="utf-8"), work["requests"])]
messages = [body["messages"] for body in bodies]
model = AsyncLiteLLM("openai/" + bodies[0]["model"], api_base=work["url"], **work["settings"])
started, cpu = time.perf_counter(), time.process_time()
said = asyncio.run(model.completions(messages))
taken = [time.perf_counter() - started, time.process_time() - cpu]
assert len(said) == len(messages) and set(said) <= {"1", "2"}, set(said)
print("RESULT", json.dumps(taken))
"""

ALPACA = """
import json, sys, time
from itertools import islice
import openai
from alpaca_eval.decoders.openai import openai_completions
work = json.loads(sys.argv[1])
bodies = [json.loads(line) for line in islice(open(work["bodies"], encoding="utf-8"), work["requests"])]
turn = "<|im_start|>{role}\\n{content}\\n<|im_end|>"
prompts = ["\\n".join(turn.format(**each) for each in body["messages"]) for body in bodies]
options = {name: value for name, value in bodies[0].items() if name not in ("messages", "model")}
settings = work["settings"]
if settings.pop("shared_http_client", False):
    settings["client_kwargs"] = {"http_client": openai.DefaultHttpxClient()}
started, cpu = time.perf_counter(), time.process_time()
found = openai_completions(prompts, bodies[0]["model"], price_per_token=0, **settings, **options)
taken = [time.perf_counter() - started, time.process_time() - cpu]
said = found["completions"]
assert len(said) == len(bodies) and set(said) <= {"1", "2"}, set(said)
print("RESULT", json.dumps(taken))
"""

PEERS = {
    "prometheus_eval": Peer(
        "prometheus-eval",
        (
            ("-r", str(ROOT / "benchmarks/prometheus-eval.txt")),
            ("--no-deps", "prometheus-eval==0.1.20", "fschat==0.2.36"),
        ),
        ("prometheus-eval", "litellm", "openai", "aiohttp", "httpx"),
        3600,
        PROMETHEUS,
        tuple({"batch_size": size, "requests_per_minute": 10**9} for size in (100, IN_FLIGHT, 3600)),
        "AsyncLiteLLM sends the messages alone: it drops options such as logprobs, so its answers are short ones",
    ),
    "alpaca_eval": Peer(
        "alpaca-eval",
        (("alpaca_eval==0.6.6",),),
        ("alpaca_eval", "openai", "httpx2"),
        600,
        ALPACA,
        tuple({"num_procs": number} for number in (5, 16, 64, IN_FLIGHT)),
        "num_procs is what OPENAI_MAX_CONCURRENCY sets, 5 by default; it makes a client for each request",
    ),
}
PEERS["alpaca_eval_shared_client"] = replace(
    PEERS["alpaca_eval"],
    requests=3600,
    settings=tuple({"num_procs": number, "shared_http_client": True} for number in (64, IN_FLIGHT)),
    about="one httpx client for all requests, handed in as client_kwargs: faster, and not what its documents show",
)


def installed(peer: Peer) -> Path:
    """The interpreter of the peer's venv, made on first use."""
    folder = BENCH / peer.name
    python = folder / "bin/python"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for words in peer.install:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
            subprocess.run(pip, check=True, stdout=sys.stderr)
        (folder / ".installed").touch()
    return python


def versions_of(peer: Peer) -> dict[str, str]:
    code = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(installed(peer)), "-c", code, *peer.versions], check=True, capture_output=True)
    return json.loads(done.stdout)


# Measuring


def cpu_of(process: int) -> float:
    """Seconds of CPU time that a running process has used; 0 where the system does not tell."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(it: Provider, command: list[str], work: Work) -> Taken:
    """One side in a process of its own. Ends the benchmark where it fails, or where a question has not one answer."""
    environment = {
        **os.environ,
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": work.url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else litellm looks for prices on the internet when it is imported
        "NO_PROXY": "127.0.0.1",
    }
    it.control(reset=True)
    before = cpu_of(it.process.pid)
    done = subprocess.run(
        [*command, json.dumps(asdict(work))], env=environment, capture_output=True, text=True, check=False
    )
    server = cpu_of(it.process.pid) - before
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise SystemExit(f"{command} did not finish:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    seen = it.seen()
    answered = seen.pop("answered")
    if len(answered) != work.requests or set(answered.values()) != {1}:
        raise SystemExit(f"{command} did not get one answer to each of {work.requests} questions: {seen}")
    return Taken(*json.loads(line.removeprefix(MARK)), server, frozenset(answered))


def measure_own(it: Provider, work: Work, taken: Runs) -> None:
    for name in OWN:
        taken[name].append(measured(it, [sys.executable, __file__, "--measure", name], work))


def measure_peer(it: Provider, work: Work, peer: Peer, taken: Runs) -> None:
    """The first round tries all settings, the others go on with the best of them."""
    script = BENCH / f"{peer.name}_worker.py"
    script.write_text(peer.script, encoding="utf-8")
    best = best_of(taken) if taken else None
    for settings in peer.settings:
        name = ", ".join(f"{key}={value}" for key, value in settings.items())
        if best in (None, name):
            asked = replace(work, requests=min(peer.requests, work.requests), settings=settings)
            taken[name].append(measured(it, [str(installed(peer)), str(script)], asked))


def best_of(taken: Runs) -> str:
    """The settings that were fastest in the first round."""
    return max(taken, key=lambda name: taken[name][0].rate)


def measure(work: Work, rounds: int, peers: dict[str, Peer]) -> tuple[Runs, dict[str, Runs]]:
    """What our own sides took, and what each of the peers took."""
    own: Runs = defaultdict(list)
    others: dict[str, Runs] = {name: defaultdict(list) for name in peers}
    with provider(latency=LATENCY) as it:
        work = replace(work, url=f"{it.url}/v1")
        for _ in range(rounds):
            measure_own(it, work, own)
            for name, peer in peers.items():
                measure_peer(it, work, peer, others[name])
    assert len({each.questions for taken in own.values() for each in taken}) == 1, "not all asked the same"
    return own, others


def write_work(folder: Path, rows: list[Comparison]) -> Work:
    source, sent = folder / "comparisons.jsonl", folder / "bodies.jsonl"
    lines = [{"id": row.id, "prompt": row.prompt, "responses": row.responses} for row in rows]
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    sent.write_bytes(b"".join(body + b"\n" for body in bodies(rows)))
    return Work("", str(source), str(sent), 2 * len(rows))


# Telling


def times(ours: list[Taken], theirs: list[Taken]) -> float:
    """How many times as fast, where both are of the same round: what else the machine does changes in between."""
    return statistics.median(own.rate / other.rate for own, other in zip(ours, theirs, strict=True))


def peer_conditions(peer: Peer, taken: Runs) -> dict[str, Any]:
    first = {settings: runs[0].rate for settings, runs in taken.items()}
    requests = len(taken[best_of(taken)][0].questions)
    found = {"requests": requests, "best": best_of(taken), "first_round": first}
    return {**found, "about": peer.about, "versions": versions_of(peer)}


def result(work: Work, own: Runs, others: dict[str, Runs]) -> dict[str, Any]:
    runs = own | {name: taken[best_of(taken)] for name, taken in others.items()}
    compared = {name: times(own["ours"], each) for name, each in runs.items()}
    return {
        "ratios": {"vs_bare_http": compared["bare"]} | {f"vs_{name}": compared[name] for name in others},
        "requests_per_second": {name: statistics.median(each.rate for each in taken) for name, taken in runs.items()},
        "conditions": {
            "backend_only_vs_bare_http": times(own["backend"], own["bare"]),
            "vs_bare_http_unparsed": compared["bare_unparsed"],
            "bare_http": f"aiohttp, {IN_FLIGHT} loops, no connector limit, keep-alive, the same bodies, json.loads",
            **sizes(work),
            "rounds": {name: [round(each.rate, 1) for each in taken] for name, taken in runs.items()},
            "cpu_us_per_request": {
                name: {
                    "own": statistics.median(each.each(each.cpu) for each in taken),
                    "stand_in": statistics.median(each.each(each.server) for each in taken),
                }
                for name, taken in runs.items()
            },
            "stand_in_event_loop": "uvloop" if find_spec("uvloop") else "asyncio",
            "peers": {name: peer_conditions(PEERS[name], taken) for name, taken in others.items()},
        },
    }


def sizes(work: Work) -> dict[str, Any]:
    asked = [json.loads(body) for body in Path(work.bodies).read_bytes().splitlines()]
    characters = statistics.mean(sum(len(turn["content"]) for turn in body["messages"]) for body in asked)
    return {
        "comparisons": work.requests // 2,
        "requests": work.requests,
        "latency_seconds": LATENCY,
        "in_flight": IN_FLIGHT,
        "options": {name: value for name, value in asked[0].items() if name != "messages"},
        "per_prompt": {
            "tokens": characters / TOKEN,
            "characters": characters,
            "words": {"text": TEXT, "response": RESPONSE},
        },
        "rpm_and_tpm": "set too high to matter",
        "event_loop": "asyncio",
        "gc_threshold": GARBAGE,
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("aiohttp", "pydantic", "polars")},
    }


def table(found: dict[str, Any]) -> str:
    conditions = found["conditions"]
    lines = ["requests a second (medians)"]
    lines += [f"  {name:26}{each:8.0f}" for name, each in found["requests_per_second"].items()]
    lines += ["ours is ... times as fast (medians of the rounds)"]
    lines += [f"  {name:26}{each:8.2f}" for name, each in found["ratios"].items()]
    lines += [f"the backend alone is {conditions['backend_only_vs_bare_http']:.2f} times as fast as the bare loop"]
    lines += [f"{name}: {peer['best']}" for name, peer in conditions["peers"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--rows", type=int, default=ROWS, help="comparisons: each is asked about twice")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="none: only what needs no install")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, work = options.measure
        taken = Taken()
        gc.set_threshold(*GARBAGE)
        OWN[side](Work(**json.loads(work)), taken)
        print(MARK + json.dumps([taken.seconds, taken.cpu]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: whoever is measured ends too
    peers, load = PEERS if options.peers == "all" else {}, os.getloadavg()[0]
    for peer in peers.values():
        installed(peer)
    with tempfile.TemporaryDirectory() as folder:
        work = write_work(Path(folder), workload(options.rows))
        own, others = measure(work, options.rounds, peers)
        found = result(work, own, others)
    found["conditions"]["load_average_before"] = load
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
