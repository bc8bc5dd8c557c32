"""Every command of the README runs, on a small file of the reader's own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
OURS = [command for command in COMMANDS if command.startswith("rlaif ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The reader's folder: a few of the samples stand for their own rows."""
    made = tmp_path_factory.mktemp("readme")
    samples = ROOT / "data" / "samples"
    for source, name, count in (("helpfulness", "comparisons", 3), ("responses", "responses", 4)):
        lines = (samples / f"{source}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (made / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    shutil.copytree(ROOT / "examples", made / "examples")
    return made


def test_the_readme_shows_all_that_is_tested_here():
    assert len(OURS) >= 8
    assert [command for command in COMMANDS if command not in OURS] == ["make demo", "make test"]


@pytest.mark.slow
@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_readme_runs(folder, command):
    words = [sys.executable, str(ROOT / "rlaif.py"), *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_says_what_the_readme_says(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "rlaif.py"), "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in done.stdout.splitlines():
        if "pairs a second" in line or "%" in line or not line or line.startswith(" "):
            continue
        if line == "What to try next:":
            break
        assert line in shown
    for word in ("summarization", "helpfulness", "harmlessness", "all", "pairs a second", "same position"):
        assert word in done.stdout
