"""kill -9 at any moment loses nothing and repeats only what was in flight."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data.errors import FileError
from labeler.journal import Journal

ROWS, BATCH, CALLS = 60, 3, 2

SCRIPT = f"""
import asyncio, os, sys
from pathlib import Path
from data.records import Comparison, Label
from labeler.options import Options
from labeler.backend import request_key
from labeler.fake import RULES, FakeBackend
from labeler.job import run, write
from labeler.journal import Journal
from labeler.preference import Labeler
from labeler.wrappers import Cached
from prompts.task import load

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class Slow(FakeBackend):
    async def likelihoods(self, requests):
        os.write(log, "".join(request_key("x", each) + "\\n" for each in requests).encode())
        return await super().likelihoods(requests)


class Silent:
    def advance(self, **counts):
        pass


rows = [Comparison(id=str(n), prompt=f"Question {{n}}?", responses=("yes", "no")) for n in range({ROWS})]
out = Path(sys.argv[2])
backend = Slow("fake:slow", RULES["noise"], seconds=0.03)
task = load("helpfulness")
journal = Journal(out.with_name(out.name + ".journal"), Labeler(task, backend, Options()).digest)
labeler = Labeler(task, Cached(backend, journal), Options())
asyncio.run(run(rows, labeler, journal, Silent(), batch={BATCH}, calls={CALLS}))
write(journal, out, Label)
journal.close()
"""


def asked(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def start(script: Path, log: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, str(script), str(log), str(out)], env=environment)


def killed_after(process: subprocess.Popen[bytes], log: Path, more: int) -> bool:
    """Kill -9 when `more` requests were asked; False where the job ended before."""
    goal = len(asked(log)) + more
    while process.poll() is None:
        if len(asked(log)) >= goal:
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.001)
    assert process.returncode == 0
    return False


@pytest.mark.parametrize("seed", [0, 1])
def test_a_job_killed_again_and_again_ends_with_all_labels_and_repeats_only_what_was_in_flight(
    tmp_path: Path, seed: int
):
    script, log, out = tmp_path / "job.py", tmp_path / "asked", tmp_path / "out.jsonl"
    script.write_text(SCRIPT)
    dice, kills = random.Random(seed), 0
    while killed_after(start(script, log, out), log, dice.randrange(25, 60)):
        kills += 1
        assert not out.exists(), "no half file is ever seen"
    assert kills >= 1
    times = Counter(asked(log))
    assert len(out.read_text().splitlines()) == ROWS
    assert len(times) == 2 * ROWS
    assert sum(times.values()) - 2 * ROWS <= kills * BATCH * CALLS * 2
    assert start(script, log, out).wait() == 0
    assert sum(times.values()) == len(asked(log)), "a finished job asks nothing"


def test_a_journal_in_use_by_another_process_is_refused_until_that_dies(tmp_path: Path):
    script, log, out = tmp_path / "job.py", tmp_path / "asked", tmp_path / "out.jsonl"
    script.write_text(SCRIPT)
    process = start(script, log, out)
    journal = out.with_name("out.jsonl.journal")
    while not asked(log):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(FileError, match="in use by another run"):
        Journal(journal, "job")
    process.kill()
    process.wait()
    Journal(journal, "job").close()
