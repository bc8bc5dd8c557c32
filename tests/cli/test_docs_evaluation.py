"""Every command of docs/evaluation.md runs, in one folder and in its order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import data

ROOT = Path(data.__file__).parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture
def folder(cli, tmp_path: Path) -> Path:
    """Comparisons by three models with two raters, their labels and scores."""
    rows = [json.loads(line) for line in (ROOT / "data/samples/helpfulness.jsonl").read_text("utf-8").splitlines()]
    for at, row in enumerate(rows):
        row["models"] = [["ours", "theirs"], ["theirs", "others"], ["others", "ours"]][at % 3]
        row["votes"] = [*row["votes"], {"rater": "ann", "choice": at % 2}]
        row["task"] = "ab"[at % 2]
    (tmp_path / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(ROOT / "data/samples/responses.jsonl", tmp_path / "responses.jsonl")
    model = ("--model", "fake:longer", "--task", "helpfulness")
    assert cli("label", "comparisons.jsonl", *model, "--out", "labels.parquet").status == 0
    assert cli("score", "comparisons.jsonl", *model, "--out", "scores.parquet").status == 0
    return tmp_path


def test_every_command_of_the_evaluation_runs(cli, folder: Path):
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "rlaif"
        said = cli(*words)
        assert said.status == 0, (command, said)
        assert said.out
    for name in ("page", "grid"):
        assert {each.name for each in (folder / name).glob("report.*")} == {"report.html", "report.md", "report.json"}
