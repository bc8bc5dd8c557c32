"""Every command of docs/jobs.md runs, against the stand-in for the providers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from running import provider

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
HERE = [command for command in COMMANDS if "--engine ray" not in command]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    lines = (ROOT / "data" / "samples" / "helpfulness.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (made / "comparisons.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    return made


def run(folder: Path, command: str, *more: str) -> subprocess.CompletedProcess[str]:
    keys = {"OPENAI_API_KEY": "sk-of-the-stand-in", "ANTHROPIC_API_KEY": "sk-of-the-stand-in"}
    words = [sys.executable, str(ROOT / "rlaif.py"), *shlex.split(command)[1:], *more]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **keys})


def test_they_are_all_of_ours():
    assert len(COMMANDS) >= 5
    assert all(command.startswith("rlaif ") for command in COMMANDS)


@pytest.mark.parametrize("command", HERE)
def test_a_command_of_the_jobs_runs(folder, command):
    with provider() as it:
        done = run(folder, command, "--base-url", f"{it.url}/v1", "--price", "1,2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.clients
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed here: make test-clients")
@pytest.mark.parametrize("command", [each for each in COMMANDS if "--engine ray" in each])
def test_a_command_for_many_machines_runs(folder, command):
    done = run(folder, command.replace("local:smollm2", "fake:longer"))
    assert done.returncode == 0, done.stderr
