import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tables
from data.errors import FileError
from data.tables import BadRow

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ROWS = [{"id": "a", "n": 1, "text": "line\nbreak"}, {"id": "b", "n": 2, "text": "ünï »»"}]
NESTED = [
    {"id": "a", "orders": [{"p": 0.5, "why": None}, {"p": 0.25, "why": "x"}], "meta": {"k": [1, 2]}},
    {"id": "b", "orders": [], "meta": {"k": None}},
]


def rows(path):
    return [each.row for each in tables.read(str(path))]


def made(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet", "T.JSONL", "T.JSONL.GZ", "T.Parquet"])
@pytest.mark.parametrize("table", [ROWS, NESTED], ids=["flat", "nested"])
def test_what_is_written_is_read_back(tmp_path, name, table):
    assert tables.write(tmp_path / name, table) == 2
    assert rows(tmp_path / name) == table


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=5), st.sampled_from(["", ".gz"]))
def test_any_json_object_survives_jsonl(table, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.jsonl{suffix}"
        tables.write(path, iter(table))
        assert rows(path) == table


@settings(max_examples=25)
@given(st.lists(st.fixed_dictionaries({"s": st.none() | st.text(), "l": st.lists(st.integers(-9, 9))}), min_size=1))
def test_texts_nulls_and_lists_survive_parquet(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        tables.write(path, table, {"s": pl.String, "l": pl.List(pl.Int64)})
        assert rows(path) == table


def test_a_schema_types_columns_that_the_rows_leave_open(tmp_path):
    schema = {"id": pl.String, "usd": pl.Float64, "orders": pl.List(pl.Struct({"p": pl.Float64, "why": pl.String}))}
    tables.write(tmp_path / "t.parquet", [{"id": "a", "usd": None, "orders": []}], schema)
    assert pl.read_parquet_schema(tmp_path / "t.parquet") == schema


def test_a_table_without_rows_keeps_its_schema(tmp_path):
    assert tables.write(tmp_path / "t.parquet", [], {"id": pl.String}) == 0
    assert pl.read_parquet_schema(tmp_path / "t.parquet") == {"id": pl.String}


CSV = 'id,text,empty\n1,"two\nlines, one ""cell""",\n2,plain,x\n'
CSV_ROWS = [
    {"id": "1", "text": 'two\nlines, one "cell"', "empty": None},
    {"id": "2", "text": "plain", "empty": "x"},
]


TEXTS = [
    ("t.csv", CSV.encode()),
    ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
    ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
    ("t.json", json.dumps(CSV_ROWS).encode()),
    ("t.json.gz", gzip.compress(json.dumps(CSV_ROWS, indent=1).encode(), mtime=0)),
    ("bom.json", b"\xef\xbb\xbf" + json.dumps(CSV_ROWS).encode()),
    ("t.ndjson", "\n".join(map(json.dumps, CSV_ROWS)).encode()),
    ("bom.jsonl", b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, CSV_ROWS)).encode()),
]


@pytest.mark.parametrize(("name", "content"), TEXTS, ids=[name for name, _ in TEXTS])
def test_each_text_format_gives_the_same_rows(tmp_path, name, content):
    assert rows(made(tmp_path, name, content)) == CSV_ROWS


def test_a_row_with_too_many_or_too_few_cells_is_a_bad_row_and_the_file_goes_on(tmp_path):
    path = made(tmp_path, "t.csv", "a,b\n1,2\n1,2,3\n1\n3,4\n")
    first, many, few, last = (each.row for each in tables.read(str(path)))
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
    assert (many.message, few.message) == (
        "expected 2 cells, as in the header; got 3",
        "expected 2 cells, as in the header; got 1",
    )


def test_line_breaks_in_cells_hold_over_many_csv_pieces(tmp_path):
    count = 20_000
    path = made(tmp_path, "t.csv", "n,text\n" + "".join(f'{n},"a\n{n}\n"\n' for n in range(count)))
    found = list(tables.read(path))
    assert [each.number for each in found] == list(range(1, count + 1))
    assert all(each.row == {"n": str(n), "text": f"a\n{n}\n"} for n, each in enumerate(found))


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    row = {"text": "a\u2028b\u0085c\x0bd"}
    assert rows(made(tmp_path, "t.jsonl", json.dumps(row, ensure_ascii=False))) == [row]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    found = list(tables.read(made(tmp_path, "t.jsonl", '\n{"a": 1}\n  \n{"a": 2}')))
    assert [each.number for each in found] == [2, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": ', "broken JSON"),
        ("[1]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"a": "\udcff"}', "not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
    ],
    ids=["broken", "list", "null", "not-utf8", "deep", "long-number"],
)
def test_a_bad_line_is_a_bad_row_and_the_rest_is_read(tmp_path, line, reason):
    content = '{"a": 1}\n' * 6 + line + '\n{"a": 8}\n'
    found = list(tables.read(made(tmp_path, "t.jsonl", content.encode("utf-8", "surrogateescape"))))
    bad = found.pop(6)
    assert bad.number == 7
    assert isinstance(bad.row, BadRow)
    assert reason in bad.row.message
    assert [each.number for each in found] == [1, 2, 3, 4, 5, 6, 8]


def test_a_line_that_breaks_off_is_said_to_break_at_its_end(tmp_path):
    first, _ = tables.read(made(tmp_path, "t.jsonl", '{"a": [1, 2\n{"a": 2}\n'))
    assert first.row == BadRow("broken JSON: Expecting ',' delimiter at character 12")


def test_what_is_no_object_in_an_array_is_a_bad_row(tmp_path):
    first, second = tables.read(made(tmp_path, "t.json", '[{"a": 1}, 2]'))
    assert first.row == {"a": 1}
    assert (second.number, second.row) == (2, BadRow("expected a JSON object, got int"))


CORRUPT = gzip.compress(b'{"a": 1}\n' * 99, mtime=0)
CORRUPT = CORRUPT[:10] + b"\x07" + CORRUPT[11:]  # a block type that deflate does not have
UNREADABLE = [
    ("empty.jsonl", "", "the file is empty"),
    ("blank.jsonl", "\n \n", "no rows in it"),
    ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "no rows in it"),
    ("none.json", "[]", "no rows in it"),
    ("header.csv", "a,b\n", "no rows in it"),
    ("rows.txt", "a", "unknown format; expected .jsonl"),
    ("rows", "a", "unknown format"),
    ("rows.parquet.gz", "a", "unknown format"),
    ("broken.json", '[{"a": 1},\n{"a"]', "broken.json:2: broken JSON"),
    ("lines.json", '{"a": 1}\n{"a": 2}\n', r"one object a line belongs in a .jsonl file"),
    ("object.json", '{"data": []}', "expected a JSON array of objects, got dict"),
    ("deep.json", "[" * 100_000, "nested too deeply"),
    ("number.json", '[{"a": ' + "1" * 5000 + "}]", "digits"),
    ("latin.json", b'[{"a": "\xe9"}]', "not UTF-8"),
    ("plain.jsonl.gz", '{"a": 1}', "cannot be read: Not a gzipped file"),
    ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "cannot be read"),
    ("corrupt.jsonl.gz", CORRUPT, "cannot be read"),
    ("semicolons.csv", "a;b\n1;2\n", "separated by ';'"),
    ("latin.csv", b"a,b\n\xe9,2\n", "not UTF-8"),
    ("broken.parquet", "PAR1 and no more", "cannot be read as parquet"),
]


@pytest.mark.parametrize(("name", "content", "expected"), UNREADABLE, ids=[name for name, *_ in UNREADABLE])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, expected):
    path = made(tmp_path, name, content)
    with pytest.raises(FileError, match=expected) as error:
        list(tables.read(path))
    assert str(error.value).startswith(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "x" * 300 + ".jsonl"], ids=["missing", "too-long"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(FileError, match=name[:9]):
        list(tables.read(str(tmp_path / name)))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(FileError, match="is a folder; expected a file"):
        tables.read(str(tmp_path))


@pytest.mark.parametrize("name", ["t[1].csv", "t[1].parquet", "t*.csv", "t*.parquet", "t?.jsonl"])
def test_a_file_name_is_no_pattern(tmp_path, name):
    for each in (name, name.replace("[1]", "1").replace("*", "other").replace("?", "1")):
        content = f"name\n{each}\n"
        if each.endswith(".csv"):
            made(tmp_path, each, content)
        else:
            tables.write(tmp_path / each, [{"name": each}])
    assert rows(tmp_path / name) == [{"name": name}]
    assert tables.count(str(tmp_path / name)) == (None if name.endswith(".csv") else 1)


@pytest.mark.parametrize("source", ["hf:", "hf:Anthropic/hh-rlhf", "hf:Anthropic/hh-rlhf:", "hf::test"])
def test_a_hub_source_without_repository_or_split_is_refused(source):
    with pytest.raises(FileError, match=r"expected hf:REPO\[/CONFIG\]:SPLIT"):
        list(tables.read(source))


def test_a_hub_source_needs_the_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileError, match="pip install datasets"):
        list(tables.read("hf:Anthropic/hh-rlhf:test"))


@pytest.fixture
def hub(monkeypatch):
    """Puts a stand-in for the `datasets` package in its place."""

    def install(load_dataset):
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    return install


@pytest.mark.parametrize(
    ("source", "repository", "config"),
    [
        ("hf:Anthropic/hh-rlhf:test", "Anthropic/hh-rlhf", None),
        ("hf:owner/name/conf:train", "owner/name", "conf"),
        ("hf:squad:test", "squad", None),
    ],
)
def test_a_hub_data_set_is_streamed(hub, source, repository, config):
    calls = []
    hub(lambda *names, **options: calls.append((*names, options)) or [{"a": 1}, {"a": 2}])
    assert [(each.number, each.row) for each in tables.read(source)] == [(1, {"a": 1}), (2, {"a": 2})]
    assert calls == [(repository, config, {"split": source.rpartition(":")[2], "streaming": True})]


def test_what_the_hub_raises_is_a_file_error_on_one_line(hub):
    def fail(*_names, **_options):
        raise ValueError("no such\nsplit")

    hub(fail)
    with pytest.raises(FileError, match="hf:a/b:c: cannot be read: no such split"):
        list(tables.read("hf:a/b:c"))


def test_a_hub_data_set_without_rows_is_refused(hub):
    hub(lambda *_names, **_options: [])
    with pytest.raises(FileError, match="no rows in it"):
        list(tables.read("hf:a/b:c"))


STREAM = """
import sys
from data import tables
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
import polars
before = peak()
rows = tables.read(sys.argv[1])
next(rows)
first = peak()
print(1 + sum(1 for _ in rows), first - before, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_parquet_file_of_a_million_rows_is_streamed(tmp_path):
    path, count = tmp_path / "t.parquet", 1_000_000
    frame = pl.select(id=pl.int_range(count)).with_columns(text=pl.lit("x" * 200) + pl.col("id").cast(pl.String))
    whole = int(frame.estimated_size("mb"))
    frame.write_parquet(path, row_group_size=5000)
    command = [sys.executable, "-c", STREAM, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(tables.__file__).parents[1])}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seen, first, peak = map(int, answer.stdout.split())
    assert seen == count
    assert first < whole / 4
    assert peak < whole / 2


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_rows_are_counted(tmp_path, name):
    tables.write(tmp_path / name, ({"a": n} for n in range(5000)))
    assert tables.count(str(tmp_path / name)) == 5000


def test_blank_lines_are_not_counted(tmp_path):
    assert tables.count(made(tmp_path, "t.jsonl", '\n{"a": 1}\n\n{"a": 2}')) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.json", "broken.parquet", "missing.jsonl", "hf:a/b:c"])
def test_where_only_reading_all_would_tell_there_is_no_count(tmp_path, name):
    if "missing" not in name and ":" not in name:
        made(tmp_path, name, "a\n1\n")
    assert tables.count(name if ":" in name else str(tmp_path / name)) is None
