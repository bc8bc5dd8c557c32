"""Writes docs/commands.md from the commands themselves; with --check, says whether it is up to date."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "100"
sys.path.insert(0, str(Path(__file__).parent.parent))

import rlaif

PAGE = Path(__file__).parent / "commands.md"
COMMANDS = (
    "",
    "label",
    "score",
    "rank",
    "evaluate alignment",
    "evaluate bias",
    "evaluate agreement",
    "evaluate winrate",
    "evaluate ranking",
    "evaluate harmless",
    "evaluate reward-model",
    "sample",
    "revise",
    "report",
    "ablate",
    "annotate",
    "serve",
    "train",
    "train sft",
    "train reward",
    "train dpo",
    "train cpl",
    "train ppo",
    "train reinforce",
    "train grpo",
    "train rejection",
    "train rest",
    "train hir",
    "run",
    "export",
    "check",
    "tasks",
    "models",
    "models fetch",
    "demo",
)


def page() -> str:
    parts = ["# Commands\n\nWritten by `make docs` from `--help`; `make check` compares.\n"]
    for command in COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            rlaif.main([*command.split(), "--help"])
        lines = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
        parts.append(f"## rlaif {command}".rstrip() + f"\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/commands.md is out of date: make docs")
