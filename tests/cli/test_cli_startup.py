"""The command line starts at once and needs no torch for what has no model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

IMPORTS = """
import sys
import rlaif
import data.checking, data.labels, data.reading, data.records, data.tables
import prompts.answers, prompts.constitution, prompts.render, prompts.task
import labeler.asking, labeler.backend, labeler.commands, labeler.export, labeler.fake, labeler.job, labeler.journal
import labeler.opening, labeler.preference, labeler.ranking, labeler.score, labeler.wrappers
import evaluator.agreement, evaluator.alignment, evaluator.calibration, evaluator.intervals, evaluator.text
import evaluator.annotate.options, evaluator.annotate.poll, evaluator.annotate.results
heavy = {"torch", "transformers", "polars", "scipy", "sklearn", "pandas", "datasets", "fastapi"}
print(sorted(heavy.intersection(sys.modules)))
"""


def test_importing_everything_but_the_local_backend_imports_nothing_heavy(process):
    said = process("-c", IMPORTS)
    assert (said.status, said.out, said.err) == (0, "[]\n", "")


def test_help_needs_no_torch_and_lists_the_commands(process, without_torch: str):
    said = process("-m", "rlaif", "--help", PYTHONPATH=without_torch)
    assert (said.status, said.err) == (0, "")
    for command in ("label", "score", "rank", "evaluate", "export", "tasks", "models", "check", "demo", "annotate"):
        assert f"│ {command} " in said.out


def test_a_job_with_a_fake_model_needs_no_torch(process, without_torch: str, file: Path):
    words = ("label", file, "--task", "helpfulness", "--model", "fake:noise", "--out", "o.parquet")
    said = process("-m", "rlaif", *words, PYTHONPATH=without_torch)
    assert (said.status, said.out) == (0, "")
    assert said.err.startswith("5 of 5 rows answered")


def test_the_version_is_told(cli):
    said = cli("--version")
    assert said.status == 0
    assert said.out.strip()


@pytest.mark.parametrize("words", [(), ("evaluate",), ("label", "--help")], ids=["nothing", "evaluate", "label"])
def test_help_is_on_standard_output(cli, words: tuple[str, ...]):
    said = cli(*words)
    assert (said.status, said.err) == (0, "")
    assert "Usage" in said.out


CLOSED = """
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
import rlaif
rlaif.main(["tasks"])
"""


@pytest.mark.parametrize("python", [(), ("-u",)])
def test_a_reader_that_leaves_early_is_no_traceback(process, python):
    said = process(*python, "-c", CLOSED)
    assert said.status == 1
    assert "Traceback" not in said.err
    assert "Exception" not in said.err
