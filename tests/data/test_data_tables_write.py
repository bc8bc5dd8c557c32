import os
import resource
import sys
from contextlib import contextmanager

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tables
from data.errors import FileError

FORMATS = pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])


def rows(path):
    return [each.row for each in tables.read(str(path))]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@FORMATS
@pytest.mark.parametrize("after", [0, 1, 5000], ids=["at-once", "in-the-first-piece", "in-a-later-piece"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_broken_off_write_leaves_the_old_file_whole(tmp_path, name, after, error):
    def breaking():
        for n in range(after):
            yield {"a": n}
        raise error

    tables.write(tmp_path / name, [{"a": "old"}])
    before = (tmp_path / name).read_bytes()
    with pytest.raises(error):
        tables.write(tmp_path / name, breaking())
    assert (tmp_path / name).read_bytes() == before
    assert names(tmp_path) == [name]


@FORMATS
def test_a_broken_off_first_write_leaves_nothing(tmp_path, name):
    with pytest.raises(ZeroDivisionError):
        tables.write(tmp_path / name, ({"a": 1 / n} for n in (1, 0)))
    assert names(tmp_path) == []


@FORMATS
def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, name):
    seen = []

    def watching():
        for n in range(3):
            seen.append(rows(tmp_path / name))
            yield {"a": n}

    tables.write(tmp_path / name, [{"a": 9}])
    tables.write(tmp_path / name, watching())
    assert seen == [[{"a": 9}]] * 3
    assert rows(tmp_path / name) == [{"a": 0}, {"a": 1}, {"a": 2}]


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@FORMATS
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_old_one(tmp_path, name):
    tables.write(tmp_path / name, [{"a": "old"}])
    with largest_file(50_000), pytest.raises(FileError, match=f"/{name}: cannot be written: .*too large") as error:
        tables.write(tmp_path / name, ({"a": os.urandom(500).hex()} for _ in range(1000)))
    assert ".part" not in str(error.value)
    assert rows(tmp_path / name) == [{"a": "old"}]
    assert names(tmp_path) == [name]


def test_a_disk_that_fills_while_it_is_flushed_is_an_error_too(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    tables.write(tmp_path / "t.jsonl", [{"a": "old"}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"t\.jsonl: cannot be written: No space left on device"):
        tables.write(tmp_path / "t.jsonl", [{"a": "new"}])
    assert rows(tmp_path / "t.jsonl") == [{"a": "old"}]
    assert names(tmp_path) == ["t.jsonl"]


@FORMATS
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, name):
    mask = os.umask(0o027)
    try:
        tables.write(tmp_path / name, [{"a": 1}])
    finally:
        os.umask(mask)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "late", [{"a": 1.5}, {"a": "text"}, {"a": 1, "b": 2}], ids=["fraction", "text", "another-column"]
)
def test_a_late_row_that_does_not_fit_the_parquet_columns_is_never_changed_in_silence(tmp_path, late):
    try:
        tables.write(tmp_path / "t.parquet", [*({"a": 1} for _ in range(5000)), late])
    except FileError:
        return
    assert rows(tmp_path / "t.parquet")[-1] == late


def test_a_value_that_does_not_fit_the_schema_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(FileError, match="cannot be written") as error:
        tables.write(path, [{"p": "abc"}], {"p": pl.Float64})
    assert str(error.value).startswith(f"{path}: ")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_lone_surrogate_survives_jsonl(tmp_path, name):
    table = [{"text": "cut emoji \ud83d", "name": "é"}]
    tables.write(tmp_path / name, table)
    assert rows(tmp_path / name) == table


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t.csv", "expected a name that ends in .parquet, .jsonl or .jsonl.gz"),
        ("t", "expected a name that ends in"),
        ("folder.jsonl", "is a folder; expected a file name"),
        ("none/t.jsonl", "the folder .*none does not exist"),
    ],
    ids=["format", "no-suffix", "folder", "no-folder"],
)
def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path, name, expected):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(FileError, match=expected):
        tables.check_writable(tmp_path / name)


def test_a_folder_without_permission_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(FileError, match="no permission to write in"):
        tables.check_writable(tmp_path / "t.jsonl")


@FORMATS
def test_a_check_beforehand_writes_nothing(tmp_path, name):
    tables.check_writable(tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["none/t.jsonl", "none/t.parquet", "folder.jsonl"])
def test_writing_where_it_cannot_be_is_a_file_error(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(FileError, match=f"{name}: cannot be written"):
        tables.write(tmp_path / name, [{"a": 1}])
    assert names(tmp_path) == ["folder.jsonl"]


@given(st.lists(st.integers()), st.integers(1, 9))
def test_batches_hold_all_in_order_and_only_the_last_is_shorter(items, size):
    pieces = list(tables.batched(iter(items), size))
    assert [item for piece in pieces for item in piece] == items
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)
