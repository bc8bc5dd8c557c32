"""A job that is killed with -9 and run again ends with every label, each asked once.

Once with the real model on real rows, and sixty times with the stand-in provider, at moments that chance chooses.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from running import provider
from test_cli_openai import KEY, judged

ROOT = Path(__file__).parent.parent.parent
HH = ROOT.parent / "shared/data/hh_rlhf_harmless/test.jsonl.gz"
LIMIT = 40

AT_ONCE = 4
"""Requests in flight: what a kill can cost where they are asked one by one."""

pytestmark = pytest.mark.slow


def kept(journal: Path) -> int:
    """Rows in the journal: read from a copy, since the job holds the file for itself."""
    copy = journal.with_name("copy")
    for end in ("", "-wal"):
        if not Path(f"{journal}{end}").exists():
            return 0
        shutil.copy(f"{journal}{end}", f"{copy}{end}")
    with contextlib.closing(sqlite3.connect(copy)) as db, contextlib.suppress(sqlite3.DatabaseError):
        return db.execute("SELECT COUNT(*) FROM results WHERE ok = 1").fetchone()[0]
    return 0


@pytest.mark.skipif(not HH.exists(), reason="needs ../shared/data")
def test_a_killed_job_goes_on(tmp_path):
    out = tmp_path / "labels.parquet"
    words = [sys.executable, str(ROOT / "rlaif.py"), "label", str(HH), "--task", "harmlessness"]
    words += ["--model", "local:smollm2", "--limit", str(LIMIT), "--out", str(out), "--json"]
    job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not 0 < kept(tmp_path / "labels.parquet.journal") < LIMIT:
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    before = kept(tmp_path / "labels.parquet.journal")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["answered"] + outcome["resumed"] == LIMIT
    assert outcome["resumed"] == before
    assert outcome["asked"] == 2 * (LIMIT - before)
    said = subprocess.run(
        [*words[:2], "evaluate", "alignment", str(out), "--human", str(HH), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(said.stdout)
    assert found["alignment"]["n"] == LIMIT
    assert found["same_position"]["value"] > 0.5


@dataclass(frozen=True)
class Way:
    """How jobs ask: so many `trials`, so many requests a row, over about so many `seconds`."""

    trials: int
    model: str
    options: str
    requests: int
    seconds: float

    @property
    def batch(self) -> bool:
        return "--batch" in self.options


WAYS = {
    "openai": Way(20, "openai:gpt-4o", f"--in-flight {AT_ONCE}", 2, 0.7),
    "openai --batch": Way(20, "openai:gpt-4o", "--batch --cot", 4, 1.8),
    "anthropic": Way(10, "anthropic:claude-sonnet", f"--in-flight {AT_ONCE} --votes 3", 6, 1.5),
    "anthropic --batch": Way(10, "anthropic:claude-sonnet", "--batch --votes 1", 2, 1.2),
}


@dataclass(frozen=True)
class Trial:
    """One file and its job, in a folder of its own."""

    way: Way
    url: str
    folder: Path
    names: Sequence[str]

    @property
    def out(self) -> Path:
        return self.folder / "labels.jsonl"

    def start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        rows = [{"id": name, "prompt": f"Question {name}?", "responses": ["yes", "no"]} for name in self.names]
        (self.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [sys.executable, str(ROOT / "rlaif.py"), "label", "in.jsonl", "--task", "helpfulness", "--json"]
        words += ["--model", self.way.model, *self.way.options.split(), "--base-url", f"{self.url}/v1"]
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "no_proxy": "127.0.0.1"}
        return subprocess.Popen(
            [*words, "--out", str(self.out)],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> list[tuple[object, ...]]:
        """The labels of a run that nobody kills: all of them."""
        job = self.start()
        said, complaints = job.communicate()
        assert job.returncode == 0, complaints
        outcome = json.loads(said)
        assert outcome["answered"] + outcome["resumed"] == outcome["rows"] == len(self.names)
        return judged(self.out)

    def killed(self, seconds: float, *, begun: bool) -> bool:
        """Whether a run was killed after so many seconds, from its start or from when it has begun to ask."""
        job, started = self.start(), time.time()
        while begun and not self.touched(started) and job.poll() is None:
            time.sleep(0.005)
        time.sleep(seconds)
        job.send_signal(signal.SIGKILL)
        job.communicate()
        return job.returncode == -signal.SIGKILL

    def touched(self, since: float) -> bool:
        """Whether the journal was written to."""
        return any(path.stat().st_mtime > since for path in self.folder.glob("labels.jsonl.journal*"))

    def survived(self, dice: random.Random) -> int:
        """How often it was killed before it ended."""
        kills = 0
        for _ in range(dice.choice([1, 1, 1, 2])):
            most = self.way.seconds * dice.choice([0.1, 1])  # half of them early, when batches are handed in
            kills += self.killed(dice.uniform(0, most), begun=dice.random() < 0.85)
            assert not self.out.exists() or len(judged(self.out)) == len(self.names), "no half file is ever seen"
        return kills


@pytest.mark.kills
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whenever_a_job_is_killed_it_ends_with_the_same_labels_and_asks_nothing_twice(tmp_path, way):
    # Anthropic's batches are found again by their size: no two trials have the same.
    names = [[f"{trial}-{n}" for n in range(40 + trial)] for trial in range(way.trials)]
    with provider(latency=0.015, batch_seconds=0.5) as it:
        every = Trial(way, it.url, tmp_path / "every", list(chain(*names)))
        expected = {row[0]: row for row in every.ended()}
        it.control(reset=True)

        def tried(number: int) -> int:
            trial = Trial(way, it.url, tmp_path / str(number), names[number])
            kills = trial.survived(random.Random(number))
            assert trial.ended() == [expected[name] for name in trial.names]
            return kills

        with ThreadPoolExecutor(2) as pool:
            kills = sum(pool.map(tried, range(way.trials)))
        seen = it.seen(answers=False)
    needed = way.requests * len(every.names)
    assert kills > way.trials / 2
    assert 0 <= seen["answered_total"] - needed <= (0 if way.batch else AT_ONCE * kills)
    assert not way.batch or seen["asked"] == needed
