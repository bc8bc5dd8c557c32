"""Every command of docs/annotate.md runs, in its order; people vote where it serves a page."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from annotating import ROOT, page, vote, votes

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
HERE = {" --host 0.0.0.0": "", " --port 8080": "", "local:smollm2": "fake:longer"}
"""What stands in for other machines, for a port that may be taken, and for a real model."""


def serve(folder: Path, words: list[str]) -> None:
    with page(folder, *words) as it:
        link = next(iter(it.links.values()), None) or named(it.url)
        vote(link, choice="harmful" if "--harmful" in words else "0")
        assert it.stop().startswith("votes: ")


def named(url: str) -> str:
    """The link of somebody who says a name."""
    from urllib.request import Request, urlopen

    request = Request(url, b"name=tess", {"Origin": url.rstrip("/")})
    with urlopen(request, timeout=30) as answer:
        return answer.url


def test_every_command_runs(tmp_path):
    samples = ROOT / "data" / "samples"
    shutil.copy(samples / "helpfulness.jsonl", tmp_path / "comparisons.jsonl")
    shutil.copy(samples / "responses.jsonl", tmp_path / "responses.jsonl")
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        for theirs, ours in HERE.items():
            command = command.replace(theirs, ours)
        program, verb, *words = shlex.split(command)
        assert program == "rlaif"
        if verb == "annotate":
            serve(tmp_path, words)
            continue
        done = subprocess.run(
            [sys.executable, str(ROOT / "rlaif.py"), verb, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert {vote["rater"] for each in votes(tmp_path).values() for vote in each} == {"tess", "ann"}
