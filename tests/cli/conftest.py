"""The command line, called in this process or in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import rlaif

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]

    @property
    def complaint(self) -> str:
        """The one line that an error is: nothing else on standard error, nothing on standard output, no traceback."""
        assert (self.status, self.out) == (1, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("rlaif: ")
        assert "unexpected" not in line, line
        return line


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`cli("label", file, ...)` in this process, in an empty folder."""
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            rlaif.main([str(word) for word in words])
        assert isinstance(stopped.value.code, int)
        return Said(stopped.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def process(tmp_path: Path) -> Cli:
    """`process("-m", "rlaif", "--help", PYTHONPATH=...)`: another Python, in an empty folder."""

    def call(*words: object, **environment: str) -> Said:
        found = {**os.environ, "PYTHONPATH": str(PROJECT), "RLAIF_CACHE": str(tmp_path / "cache"), **environment}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, env=found, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return Said(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSONL file of rows; a text stays as it is, whatever it is."""

    def write(rows: Iterable[Any], name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def file(lines: Callable[..., Path]) -> Path:
    """Five good comparisons with votes."""
    return lines(
        {"id": f"row {n}", "prompt": f"Question {n}?", "responses": ["x" * n, "yyy"], "votes": [{"choice": n % 2}]}
        for n in range(1, 6)
    )


@pytest.fixture
def without_torch(tmp_path: Path) -> str:
    """A path on which `import torch` and `import transformers` fail."""
    for name in ("torch", "transformers"):
        folder = tmp_path / "broken" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('there is no torch here')\n")
    return f"{tmp_path / 'broken'}:{PROJECT}"
