"""A judge that falls silent, for a round, for seconds or for good: nothing is lost, the end is the same to the bit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import pytest
from tiny_runs import Done, assert_same, ended, environment, forked, lines, ran, written

pytestmark = pytest.mark.training

ROUNDS = 4
RUNS: dict[str, tuple[object, ...]] = {
    "ppo": ("ppo", "--algorithm.target", 0.1, "--rollout.unended", 0.1),
    "grpo": ("grpo", "--model.lora", 4, "--model.lora-dropout", 0.2),
    "rejection": ("rejection",),
    "hir": ("hir", "--algorithm.threshold", 0.3),
}
JUDGE = """
import os

from tests.trainer.taste import vowels

asked = 0


def rewards(prompts, responses):
    "Calls number SILENT_FROM and later have no answer, or some of them none."
    global asked
    asked += 1
    found = vowels(prompts, responses)
    if asked < int(os.environ.get("SILENT_FROM", 10**6)):
        return found
    if os.environ.get("SILENT_AS") == "unreachable":
        raise TimeoutError("nobody is there")
    return [float("nan") if at % 2 else None for at in range(len(found))]
"""
"""One call for each look and for each of the two pieces of a round, so a call's number says where it is made."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"question number {n}, is it good?"} for n in range(20)]
    return written(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def words(run: tuple[object, ...], model: Path, prompts: Path, *more: object) -> list[object]:
    """Held-out prompts are asked about before the first round and after the last one, unless `more` says otherwise."""
    often = () if "--run.evaluate-every" in more else ("--run.evaluate-every", 100)
    return [
        *run, "--data.train", prompts, "--model.name", model, "--run.out", "run", "--json", "--optim.steps", ROUNDS,
        "--optim.batch", 3, "--optim.lr", 3e-3, "--run.save-every", 2, "--rollout.prompts", 4, "--rollout.samples", 3,
        "--rollout.max-tokens", 8, "--rollout.rows", 6, *often, *more,
    ]  # fmt: skip


def asked(name: str, model: Path, prompts: Path, *more: object) -> list[object]:
    return words(RUNS[name], model, prompts, "--reward.of", "judge:rewards", *more)


def room(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompts: Path) -> Callable[..., Path]:
    """The folder of a run whose judge always answered."""

    @cache
    def run(name: str, *more: object) -> Path:
        folder = room(tmp_path_factory.mktemp("whole"))
        ran(asked(name, tiny, prompts, *more), folder)
        return folder / "run"

    return run


def stopped(done: Done) -> str:
    """The one line that a run ends with where it cannot go on; before it only looks and what was waited for."""
    *_, last = done.err.splitlines()
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    assert sum(line.startswith("rlaif: ") for line in done.err.splitlines()) == 1
    assert last.startswith("rlaif: ")
    return last


def saved(run: Path) -> list[str]:
    return sorted(each.name for each in (run / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("call", "silent", "kept"),
    [(2, 1, []), (6, 3, ["00000002"]), (8, 4, ["00000002"])],
    ids=["the first round", "the round after a checkpoint", "a later round"],
)
def test_a_round_without_any_reward_ends_the_run_which_goes_on_when_the_judge_is_back(
    tmp_path, tiny, prompts, whole, name, call, silent, kept
):
    run = room(tmp_path) / "run"
    words = asked(name, tiny, prompts)
    said = stopped(ended(forked(words, tmp_path, SILENT_FROM=str(call)), tmp_path))
    assert said == (
        f"rlaif: round {silent}: no response has a reward (None, or not a number) from judge:rewards; the"
        " last checkpoint stays, and --resume asks about this round again"
    )
    assert saved(run) == kept
    rounds = [json.loads(line)["round"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert sorted(set(rounds)) == list(range(1, silent))  # of the silent one nothing is kept, or it would stay silent
    ran([*words, "--resume"], tmp_path)
    assert_same(whole(name), run)


def test_a_judge_that_stays_silent_is_told_of_again_and_costs_nothing(tmp_path, tiny, prompts, whole):
    run = room(tmp_path) / "run"
    words = asked("ppo", tiny, prompts)
    first = stopped(ended(forked(words, tmp_path, SILENT_FROM="6"), tmp_path))
    for _ in range(2):
        assert stopped(ended(forked([*words, "--resume"], tmp_path, SILENT_FROM="1"), tmp_path)) == first
        assert saved(run) == ["00000002"]
    ran([*words, "--resume"], tmp_path)
    assert_same(whole("ppo"), run)


def test_a_look_without_any_reward_is_told_and_ends_nothing(tmp_path, tiny, prompts, whole):
    """The round after it does; what the round before had is not asked for again, and its learning is done again."""
    run = room(tmp_path) / "run"
    often = ("--run.evaluate-every", 3)
    words = asked("ppo", tiny, prompts, *often)
    done = ended(forked(words, tmp_path, SILENT_FROM="8"), tmp_path)
    assert "round 3 of 4: no held-out response has a reward: there is nothing to see\n" in done.err
    assert stopped(done).startswith("rlaif: round 4: no response has a reward (None, or not a number)")
    assert saved(run) == ["00000002"]
    before = (run / "samples.jsonl").read_bytes()
    ran([*words, "--resume"], tmp_path)
    assert (run / "samples.jsonl").read_bytes().startswith(before)
    assert_same(whole("ppo", *often), run)


def test_a_judge_that_cannot_be_reached_for_good_ends_the_run_which_goes_on_when_it_is_back(
    tmp_path, tiny, prompts, whole
):
    """The second piece of a round finds nobody: the first piece's rewards are kept."""
    run = room(tmp_path) / "run"
    words = asked("ppo", tiny, prompts, "--reward.patience", 1)
    done = ended(forked(words, tmp_path, SILENT_FROM="7", SILENT_AS="unreachable"), tmp_path)
    said = stopped(done)
    assert said == (
        "rlaif: reward.of judge:rewards: no answer for 1 s (nobody is there): is it there? Nothing is lost:"
        " --resume goes on from the last checkpoint, or begins"
    )
    assert "no answer (nobody is there); asked again for 1 s (reward.patience)" in done.err
    rounds = [json.loads(line)["round"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert (rounds.count(2), rounds.count(3)) == (12, 6)
    ran([*words, "--resume"], tmp_path)
    assert_same(whole("ppo", "--reward.patience", 1), run)


# A server


class Shop(ThreadingHTTPServer):
    """Rewards over HTTP at a port, by a text alone. With request number `dies` it is gone: before it has answered, or
    right after.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, dies: int | None = None, *, answers: bool = False) -> None:
        self.dies, self.answers, self.requests, self.lock = dies, answers, 0, Lock()
        super().__init__(("127.0.0.1", port), Counter)
        Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Counter(BaseHTTPRequestHandler):
    server: Shop

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        with self.server.lock:
            self.server.requests += 1
            if self.server.requests == self.server.dies:
                self.server.close()
        self.close_connection = True
        if self.server.requests == self.server.dies and not self.server.answers:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        told = [{"reward": each["response"].count("e") / 10, **NEVER} for each in asked]
        found = json.dumps({"items": told}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_: object) -> None: ...


NEVER = {"score": None, "reason": None, "message": None, "cached": False}


def a_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def told(folder: Path) -> str:
    """What the run in a folder has said so far."""
    return (folder / "err0").read_text() if (folder / "err0").is_file() else ""


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def over_http(model: Path, prompts: Path, port: int, patience: int) -> list[object]:
    of = ("--reward.of", f"http://127.0.0.1:{port}", "--reward.patience", patience)
    return words(RUNS["ppo"], model, prompts, *of)


@pytest.fixture(scope="module")
def shopped(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompts: Path) -> tuple[int, Path]:
    """A port, and the folder of a run whose rewards came from there all the time."""
    port, folder = a_port(), tmp_path_factory.mktemp("shopped")
    shop = Shop(port)
    ran(over_http(tiny, prompts, port, 90), folder)
    shop.close()
    return port, folder / "run"


@pytest.mark.parametrize("answers", [True, False], ids=["between two requests", "in the middle of a request"])
@pytest.mark.parametrize("dies", [1, 4, 7], ids=["at the first look", "in the middle of a round", "between two rounds"])
def test_a_server_that_dies_and_comes_back_is_a_pause(tmp_path, tiny, prompts, shopped, dies, answers):
    port, whole = shopped
    shop = Shop(port, dies, answers=answers)
    process = forked(over_http(tiny, prompts, port, 90), tmp_path)
    until(lambda: shop.requests == dies)
    time.sleep(2)
    assert process.exitcode is None
    again = Shop(port)
    done = ended(process, tmp_path)
    again.close()
    assert done.status == 0, done.err
    assert again.requests > 0
    assert_same(whole, tmp_path / "run")
    if answers:
        (line,) = [line for line in done.err.splitlines() if "no answer" in line]
        assert line.startswith(f"reward.of http://127.0.0.1:{port}: no answer (")
        assert line.endswith("); asked again for 90 s (reward.patience)")


def test_a_server_that_dies_while_it_is_asked_is_told_of_while_the_run_waits(tmp_path, tiny, prompts):
    port = a_port()
    Shop(port, 4)
    process = forked(over_http(tiny, prompts, port, 90), tmp_path)
    try:
        until(lambda: "no answer" in told(tmp_path), seconds=20)
    finally:
        process.kill()
        process.join()


def test_a_server_that_is_not_there_is_told_of_before_anything_is_sampled(tmp_path, tiny, prompts):
    words_ = over_http(tiny, prompts, a_port(), 1)
    words_[words_.index("--model.name") + 1] = "no/such-model"  # which would be the complaint, were it looked for first
    done = ended(forked(words_, tmp_path), tmp_path)
    assert done.status == 1
    assert "no answer for 1 s" in done.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@contextmanager
def serving(port: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`rlaif serve`, as a person starts it, once it answers."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "rlaif", "serve", "--model", "fake:longer", "--task", "helpfulness"]
    with (folder / "said").open("a") as said:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment(folder / "cache"), cwd=folder, stderr=said, text=True
        )
        try:
            deadline = time.monotonic() + 60
            while not ready(port):
                assert server.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield server
        finally:
            server.kill()
            server.wait()


def ready(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
        return answer.status == 200
    return False


def test_the_reward_server_is_killed_in_the_middle_of_a_run_and_started_again(tmp_path, tiny, prompts):
    port = a_port()
    words_, broken = over_http(tiny, prompts, port, 90), tmp_path / "broken"
    samples = broken / "run/samples.jsonl"
    with serving(port, tmp_path / "server") as server:
        ran(words_, tmp_path / "whole")
        process = forked(words_, broken)
        until(lambda: samples.is_file() and samples.read_bytes().count(b"\n") >= 14)
        os.kill(server.pid, signal.SIGKILL)
    time.sleep(2)
    assert process.exitcode is None
    with serving(port, tmp_path / "server"):
        done = ended(process, broken)
    assert done.status == 0, done.err
    assert_same(tmp_path / "whole/run", broken / "run")
    assert [line["update"] for line in lines(broken / "run") if "loss" in line] == [1, 2, 3, 4]
