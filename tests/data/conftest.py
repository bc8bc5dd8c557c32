import json

import pytest

from data.reading import comparisons, responses
from data.records import Comparison, Failure, Response


@pytest.fixture
def lines(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def one(lines):
    def read(row, named=None):
        [found] = comparisons(lines(row), named)
        assert isinstance(found, Comparison), found
        return found

    return read


@pytest.fixture
def one_response(lines):
    def read(row, named=None):
        [found] = responses(lines(row), named)
        assert isinstance(found, Response), found
        return found

    return read


@pytest.fixture
def refusal(lines):
    def read(row, named=None, reader=comparisons):
        [found] = reader(lines(row), named)
        assert isinstance(found, Failure), found
        return found.message

    return read
