"""A tiny model in a folder, and a file of comparisons to train it on."""

from pathlib import Path

import pytest
import tiny_runs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.written(tmp_path_factory.mktemp("rows") / "votes.jsonl", tiny_runs.compared(40))
