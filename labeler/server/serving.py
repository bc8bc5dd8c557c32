"""A server as a process: opens the model, keeps its answers, listens, and stops in good order."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import uvicorn

from data.errors import FileError, RlaifError
from data.records import Failure, Response, Score, fingerprint
from labeler.backend import Backend, Likelihoods, Text
from labeler.journal import Journal
from labeler.ladder import climb
from labeler.opening import Reach, is_reward_model, need, open_backend
from labeler.options import Options
from labeler.ranking import Ranker
from labeler.score import Scorer
from labeler.server.app import app
from labeler.server.connections import Connection
from labeler.server.core import Core
from labeler.server.gate import LOG, Gate
from labeler.server.grading import Grader
from labeler.server.metrics import Metrics
from labeler.server.options import Listening, Rewarding, Shaping
from labeler.server.spread import Spread
from labeler.server.wire import Named, Serving
from labeler.wrappers import Cached, Checked, Metered
from prompts.task import Task, load

T = TypeVar("T")

BACKLOG = 4096
"""Connections that wait to be accepted."""

BODY = 30.0
"""Seconds within which a request must have been sent."""

WARM = Response(id="-", prompt="Say hello.", response="Hello.")


@dataclass(frozen=True)
class Model:
    """What is served: tasks on a model, from where and how it is run."""

    tasks: tuple[str, ...]
    name: str
    cache: Path
    dtype: str = "auto"
    device: str = "auto"
    reach: Reach = field(default_factory=Reach)
    also: tuple[str, ...] = ()


def serve(
    model: Model, listening: Listening, rewarding: Rewarding, token: str | None, tell: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises RlaifError where it cannot begin."""
    _check(listening, token)
    with _socket(listening.host, listening.port) as taken:
        web = application(model, listening, rewarding, token)
        host, port = listening.host, taken.getsockname()[1]
        with _taking(host, port):  # not before: who connects to a server that loads its model would wait unheard
            taken.listen(BACKLOG)
        shown = f"[{host}]" if ":" in host else host
        what = ", ".join(model.tasks) or "rewards"
        tell(f"{what} on {model.name}: http://{shown}:{port}/ (status), /v1/rewards, /ready")
        if listening.verbose:
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            LOG.setLevel(logging.INFO)
        settings = uvicorn.Config(
            web,  # pyright: ignore[reportArgumentType]
            http=Connection,
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(listening.stop_within),
        )
        uvicorn.Server(settings).run(sockets=[taken])


def application(model: Model, listening: Listening, rewarding: Rewarding, token: str | None) -> Gate:
    """The server as an ASGI application, for any host of such: the model is open, nobody listens. Raises RlaifError."""
    _check_tasks(model, rewarding)
    if is_reward_model(model.name):
        need("train", "torch transformers", "reward models")
        from labeler.server import rewarded

        return rewarded.build(model, listening, rewarding, token)
    return build(opened(model, listening.answer_within), model, listening, rewarding, token)


def opened(model: Model, patience: float) -> Backend:
    """The model, or one that stands for all its servers. No request is tried again after `patience` seconds, when its
    caller has given up."""
    limits = replace(model.reach.limits, patience=min(model.reach.limits.patience, patience))
    if model.also:  # one that says nothing must leave time to ask another
        limits = replace(limits, attempts=1, timeout=min(limits.timeout, patience / 2))
        each = 1 + len(model.also)  # an account's allowance is for all of them together
        limits = replace(limits, rpm=_part(limits.rpm, each), tpm=_part(limits.tpm, each))

    def on(url: str | None) -> Backend:
        reach = replace(model.reach, base_url=url, limits=limits)
        return open_backend(model.name, cache=model.cache, dtype=model.dtype, device=model.device, reach=reach)

    first = on(model.reach.base_url)
    return Spread(first, [on(url) for url in model.also], patience=patience) if model.also else first


def _part(limit: int | None, of: int) -> int | None:
    return None if limit is None else max(1, limit // of)


def build(backend: Backend, model: Model, listening: Listening, rewarding: Rewarding, token: str | None) -> Gate:
    """The app around a model that is open. Raises RlaifError."""
    metrics = Metrics()
    tasks = [load(name) for name in model.tasks]
    spending = model.reach.spending
    metered = Checked(Metered(backend, spending.meter), spending)
    if spending.usd is not None and backend.price is None:
        raise RlaifError(f"--budget: no price is known for {model.name}; give --price IN,OUT (USD per million tokens)")
    journal = _journal(model, rewarding)
    stacked = metered if journal is None else Cached(metered, Sparing(journal))
    options = Options(needs=rewarding.needs, votes=rewarding.votes)
    asked = climb(stacked, options.needs, options.votes)
    graders = {task.name: _grader(task, asked, options, listening, rewarding, metrics) for task in tasks}
    ranker, preferences = None, Named(tasks[0].name, "")
    if tasks[0].pairwise is not None:
        ranking = Ranker(tasks[0], asked, options)
        preferences = replace(preferences, digest=ranking.digest)
        ranker = Grader(ranking, asked.rows, asked.calls, listening.waiting, metrics, rewarding.least_mass)
    second = _fallback(model, tasks, options, listening, rewarding, metrics)
    others: Mapping[str, Grader[Response, Score]] = second[1] if second else {}
    core = Core(graders, ranker, others, rewarding.on_failure, rewarding.shaping, metrics)
    metrics.queued(lambda: sum(len(grader.queue) for grader in core.every))
    digests = [Scorer(task, asked, options).digest for task in tasks]
    rewards = Named(" + ".join(task.name for task in tasks), digest_of(digests, rewarding.shaping))
    within, most = listening.answer_within, listening.most_items
    serving = Serving(core, model.name, rewards, preferences, within, most, rewarding.sharpness)

    unkept = climb(metered, options.needs, options.votes)

    async def warm() -> str | None:
        """Past all that is known: the model itself must answer."""
        for task in tasks:
            (found,) = await Scorer(task, unkept, options)([WARM])
            if isinstance(found, Failure):
                return f"{found.reason}: {found.message}"
        return None

    async def close() -> None:
        await backend.close()
        if second is not None:
            await second[0].close()
        if journal is not None:
            with contextlib.suppress(FileError):
                journal.close()

    return app(serving, token=token, largest=listening.largest_body << 20, patience=BODY, warm=warm, close=close)


def digest_of(parts: Sequence[str], shaping: Shaping) -> str:
    """The one part's own, where a reward is what it says; else of all that makes the reward."""
    return parts[0] if len(parts) == 1 and shaping == Shaping() else fingerprint([*parts, asdict(shaping)])


@dataclass
class Sparing:
    """A store that is done without when it fails: a full disk must not cost a reward that was paid for."""

    store: Journal
    failed: bool = False

    def get(self, keys: Sequence[str]) -> Mapping[str, Likelihoods | Text]:
        return self._safely(lambda: self.store.get(keys)) or {}

    def put(self, answers: Iterable[tuple[str, Likelihoods | Text]]) -> None:
        self._safely(lambda: self.store.put(answers))

    def _safely(self, do: Callable[[], T]) -> T | None:
        if self.failed:
            return None
        try:
            return do()
        except FileError as error:
            self.failed = True
            LOG.warning("answers are no longer kept on disk: %s", error)
            return None


def _grader(
    task: Task, backend: Backend, options: Options, listening: Listening, rewarding: Rewarding, metrics: Metrics
) -> Grader[Response, Score]:
    scorer = Scorer(task, backend, options)
    return Grader(scorer, backend.rows, backend.calls, listening.waiting, metrics, rewarding.least_mass)


def _fallback(
    model: Model,
    tasks: Sequence[Task],
    options: Options,
    listening: Listening,
    rewarding: Rewarding,
    metrics: Metrics,
) -> tuple[Backend, Mapping[str, Grader[Response, Score]]] | None:
    if rewarding.fallback is None:
        return None
    reach = Reach(None, model.reach.keys, model.reach.limits, spending=model.reach.spending)
    backend = open_backend(rewarding.fallback, cache=model.cache, dtype=model.dtype, device=model.device, reach=reach)
    metered = Checked(Metered(backend, model.reach.spending.meter), model.reach.spending)
    asked = climb(metered, options.needs, options.votes)
    return backend, {task.name: _grader(task, asked, options, listening, rewarding, metrics) for task in tasks}


def _journal(model: Model, rewarding: Rewarding) -> Journal | None:
    """Answers on disk. Their keys are made of model, weights and whole prompts: several tasks share one store."""
    if rewarding.kept == "memory" or (rewarding.kept == "auto" and model.reach.base_url is not None):
        return None
    folder = model.cache / "served"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fingerprint([model.name, model.reach.base_url, *model.tasks])}.journal"
    try:
        return Journal(path, "served")
    except FileError as error:
        raise RlaifError(
            f"answers cannot be kept: {error}. Is another server of this model and task running? RLAIF_CACHE=DIR gives"
            " this one a folder of its own, --kept memory does without"
        ) from None


def _check(listening: Listening, token: str | None) -> None:
    try:
        own = ipaddress.ip_address(listening.host).is_loopback
    except ValueError:
        own = listening.host == "localhost"
    if not own and token is None and not listening.no_token:
        raise RlaifError(
            f"--host {listening.host}: others can reach this address; give a --token-file (or RLAIF_TOKEN),"
            " or --no-token"
        )


def _check_tasks(model: Model, rewarding: Rewarding) -> None:
    if is_reward_model(model.name):
        plain = Rewarding(on_failure=rewarding.on_failure, fallback=rewarding.fallback, clip=rewarding.clip)
        if rewarding.kept == "disk":
            raise RlaifError(f"--kept disk: rewards of {model.name} are kept in memory alone; leave it out")
        if model.tasks or model.also or replace(rewarding, kept="auto") != plain:
            raise RlaifError(
                f"--model {model.name}: a reward model is asked no question; leave out --task and --also, and of the"
                " options of the reward all but --clip and --on-failure"
            )
        return
    count = len(model.tasks)
    if not count:
        raise RlaifError("--task: expected at least one (`rlaif tasks` lists them)")
    if len(set(model.tasks)) < count:
        raise RlaifError("--task: each task once")
    if rewarding.weights and len(rewarding.weights) != count:
        raise RlaifError(f"--weights: {len(rewarding.weights)} for {count} tasks")
    if rewarding.rule == "safety-first" and count != 2:
        raise RlaifError("--rule safety-first: expected two tasks, helpfulness and then safety")


def _socket(host: str, port: int) -> socket.socket:
    """Taken, so that nothing is loaded in vain, and not listening yet."""
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _taking(host, port):
        try:
            taken.bind((host, port))
        except OSError:
            taken.close()
            raise
    return taken


@contextlib.contextmanager
def _taking(host: str, port: int) -> Generator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RlaifError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from None
