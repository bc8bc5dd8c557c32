"""A job with the real model on real rows, killed with -9 and run again, ends with every label, each asked once."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HH = ROOT.parent / "shared/data/hh_rlhf_harmless/test.jsonl.gz"
LIMIT = 40

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HH.exists(), reason="needs ../shared/data")]


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
