"""`rlaif label --batch`, stopped while the provider has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import test_cli_openai as other
from running import Provider
from test_cli_openai import KEY, nowhere

HANDED_IN = "POST /v1/batches"

it, stand_in = other.it, other.stand_in


PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture
def words(it: Provider, file: Path) -> list[str]:
    model = ["--model", "openai:gpt-4o", "--base-url", f"{it.url}/v1"]
    return ["label", str(file), "--task", "helpfulness", "--out", "labels.jsonl", *model]


@pytest.fixture
def stopped(it: Provider, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job that was told to stop when its batch was handed in."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    it.control(batch_seconds=6.0)
    command = [sys.executable, str(PROJECT / "rlaif.py"), *words, "--batch"]
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert job.stderr is not None
    assert "10 requests handed in" in job.stderr.readline()
    started = time.monotonic()
    job.send_signal(signal.SIGINT)
    said = job.communicate(timeout=30)[1]
    return job.returncode, said, time.monotonic() - started


def test_ctrl_c_does_not_wait_for_it(stopped):
    status, said, seconds = stopped
    assert status == 130
    assert "the same command goes on there" in said
    assert seconds < 5


def test_the_same_command_collects_it(stopped, it, cli, words, tmp_path):
    assert cli(*words, "--batch").status == 0
    assert it.seen()["requests"][HANDED_IN] == {"200": 1}
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 5
    nowhere(KEY, tmp_path)


def test_what_is_under_way_is_not_asked_online_too(stopped, it, cli, words):
    assert "1 batches of this job are under way" in cli(*words).complaint
    assert "POST /v1/chat/completions" not in it.seen()["requests"]
    assert cli(*words, "--fresh").status == 0
