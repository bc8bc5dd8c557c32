"""The same job with workers of Ray: the same labels, also when a worker is killed in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from labeler_support import comparisons
from running import provider

from data.errors import RlaifError
from data.records import Label
from labeler.backend import BackendError
from labeler.commands import execute
from labeler.here import Job
from labeler.opening import Reach
from labeler.options import Running
from labeler.preference import Labeler
from labeler.prices import Price

pytestmark = pytest.mark.clients
if find_spec("ray") is None:
    pytest.skip("Ray is not installed here: make test-clients", allow_module_level=True)

COUNT = 600


@pytest.fixture(scope="module", autouse=True)
def ray():
    import ray

    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def it():
    with provider(latency=0.02) as it:
        yield it


def job(out: Path, it: Any, *, ray: bool, **how: Any) -> Job:
    running = Running(engine="ray" if ray else "local", worker_cpus=0.5, **how.pop("running", {}))
    reach = Reach(f"{it.url}/v1", {"openai": "sk-test"}, price=Price(1, 5))
    return Job("rows", "helpfulness", "openai:gpt-4o", out, out.parent, running=running, reach=reach, **how)


def labels(out: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in out.read_text("utf-8").splitlines()]


def workers() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::_Worker"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_the_labels_the_order_and_the_cost_are_those_of_one_process(tmp_path, it):
    rows = comparisons(COUNT)
    here = execute(Labeler, Label, rows, job(tmp_path / "here.jsonl", it, ray=False), COUNT)
    there = execute(Labeler, Label, rows, job(tmp_path / "there.jsonl", it, ray=True), COUNT)
    assert labels(tmp_path / "there.jsonl") == labels(tmp_path / "here.jsonl")
    assert there.meter.asked == here.meter.asked == 2 * COUNT
    assert there.meter.usage.tokens_in == here.meter.usage.tokens_in
    assert there.meter.usage.usd == pytest.approx(here.meter.usage.usd)


def test_a_job_goes_on_in_the_other_engine(tmp_path, it):
    rows, out = comparisons(COUNT), tmp_path / "o.jsonl"
    first = execute(Labeler, Label, rows, job(out, it, ray=True, running={"limit": 100}), COUNT)
    second = execute(Labeler, Label, rows, job(out, it, ray=False), COUNT)
    third = execute(Labeler, Label, rows, job(out, it, ray=True), COUNT)
    assert [each.outcome.answered for each in (first, second, third)] == [100, COUNT - 100, 0]
    assert third.meter.asked == 0


def test_a_killed_worker_loses_nothing(tmp_path, it):
    killed: list[int] = []

    def kill() -> None:
        for _ in range(600):
            if it.seen()["asked"] > asked + 200 and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return
            time.sleep(0.01)

    asked = it.seen()["asked"]
    killer = threading.Thread(target=kill)
    killer.start()
    done = execute(Labeler, Label, comparisons(COUNT), job(tmp_path / "k.jsonl", it, ray=True), COUNT)
    killer.join()
    execute(Labeler, Label, comparisons(COUNT), job(tmp_path / "h.jsonl", it, ray=False), COUNT)
    assert killed
    assert (done.outcome.answered, done.outcome.failed) == (COUNT, 0)
    assert labels(tmp_path / "k.jsonl") == labels(tmp_path / "h.jsonl")


def test_what_stops_a_worker_stops_the_job_in_one_line(tmp_path, it):
    lost = Job("rows", "helpfulness", "openai:gpt-4o", tmp_path / "o.jsonl", tmp_path, running=Running(engine="ray"))
    with pytest.raises(BackendError, match="OPENAI_API_KEY"):
        execute(Labeler, Label, comparisons(3), lost, 3)
    it.control(faults={"quota": 1.0})
    try:
        with pytest.raises(BackendError, match="nothing more can be asked"):
            execute(Labeler, Label, comparisons(3), job(tmp_path / "q.jsonl", it, ray=True), 3)
    finally:
        it.control(faults={})


def test_the_budget_holds(tmp_path, it):
    with pytest.raises(RlaifError, match="--budget"):
        execute(Labeler, Label, comparisons(COUNT), job(tmp_path / "b.jsonl", it, ray=True, budget=0.001), COUNT)


@pytest.mark.parametrize("how", [{"batch": True}, {"deadline": 1.0}])
def test_what_it_cannot_do_it_says(how):
    with pytest.raises(RlaifError, match="--engine ray"):
        Running(engine="ray", **how)
