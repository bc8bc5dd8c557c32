"""How are files read and written? Rows as plain dicts, streamed; JSONL, JSON, CSV, Parquet and `hf:` data sets.

Only JSON arrays are loaded whole (the format leaves no choice); everything else passes through in pieces.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import glob
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from data.errors import FileError

if TYPE_CHECKING:
    import polars as pl

Fields = Mapping[str, Any]
T = TypeVar("T")

FORMATS = ".jsonl, .jsonl.gz, .json, .json.gz, .csv, .csv.gz, .parquet, or hf:REPO[/CONFIG]:SPLIT"
CHUNK = 4096


@dataclass(frozen=True)
class BadRow:
    """A place in a file that holds no row, and why."""

    message: str


@dataclass(frozen=True)
class Numbered:
    """A row and where it stands: `number` is the line for JSONL, else the row, counted from 1."""

    number: int
    row: Fields | BadRow
    file: str | None = None
    """Which one, where several were read as one."""


def read(source: str) -> Iterator[Numbered]:
    """Stream the rows of a file, of all files of a pattern (`rounds/*/pairs.jsonl`), or of an `hf:` data set.

    Raises FileError when the whole cannot be read; a single bad line comes as a `BadRow`.
    """
    if source.startswith("hf:"):
        return _refuse_nothing(source, _hub(source))
    path = Path(source)
    if "*" in source and not path.exists():
        return _all(source)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FileError(f"{source}: no such file") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{source[:200]}: cannot be read: {_one_line(error)[:100]}") from None
    if path.is_dir():
        raise FileError(f"{source}: is a folder; expected a file ({FORMATS})")
    if size == 0:
        raise FileError(f"{source}: the file is empty")
    return _refuse_nothing(source, _reader(path))


def _all(pattern: str) -> Iterator[Numbered]:
    """The rows of every file that a pattern names. Raises FileError where there is none."""
    paths = sorted(glob(pattern, recursive=True))  # noqa: PTH207  a Path has no absolute patterns
    if not paths:
        raise FileError(f"{pattern}: no file has such a name")
    return (replace(each, file=Path(path).name) for path in paths for each in read(path))


def _reader(path: Path) -> Iterator[Numbered]:
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    if plain.endswith((".jsonl", ".ndjson")):
        return _jsonl(path)
    if plain.endswith(".json"):
        return _json_array(path)
    if plain.endswith(".csv"):
        return _csv(path)
    if name.endswith(".parquet"):
        return _parquet(path)
    raise FileError(f"{path}: unknown format; expected {FORMATS}")


def _refuse_nothing(source: str, rows: Iterator[Numbered]) -> Iterator[Numbered]:
    first = next(rows, None)
    if first is None:
        raise FileError(f"{source}: no rows in it")
    return chain([first], rows)


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            yield cast("IO[bytes]", file)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: cannot be read: {error}") from error


def _jsonl(path: Path) -> Iterator[Numbered]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Numbered(number, _parse(line))


def _parse(line: bytes) -> Fields | BadRow:
    try:
        value = json.loads(line.decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRow(f"broken JSON: {error.msg} at character {error.colno}")
    except (RecursionError, ValueError) as error:
        return BadRow(f"broken JSON: {_unparsable(error)}")
    return _object(value)


def _unparsable(error: RecursionError | ValueError) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _object(value: object) -> Fields | BadRow:
    if isinstance(value, dict):
        return cast("Fields", value)
    return BadRow(f"expected a JSON object, got {type(value).__name__}")


def _json_array(path: Path) -> Iterator[Numbered]:
    with _opened(path) as file:
        try:
            values = json.loads(file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
        except json.JSONDecodeError as error:
            raise FileError(
                f"{path}:{error.lineno}: broken JSON: {error.msg} at character {error.colno}; "
                "one object a line belongs in a .jsonl file"
            ) from None
        except (RecursionError, ValueError) as error:
            raise FileError(f"{path}: broken JSON: {_unparsable(error)}") from None
    if not isinstance(values, list):
        raise FileError(f"{path}: expected a JSON array of objects, got {type(values).__name__}")
    for number, value in enumerate(cast("list[object]", values), start=1):
        yield Numbered(number, _object(value))


def _parquet(path: Path) -> Iterator[Numbered]:
    import polars as pl

    try:
        # glob=False: a name with brackets or a star is that file, never its neighbours
        batches = pl.scan_parquet(path, glob=False).collect_batches(chunk_size=CHUNK, maintain_order=True)
        number = 0
        for batch in batches:
            for row in batch.iter_rows(named=True):
                number += 1
                yield Numbered(number, cast("Fields", row))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FileError(f"{path}: cannot be read as parquet: {_one_line(error)}") from error


def _csv(path: Path) -> Iterator[Numbered]:
    """All cells are texts. A row with more or fewer cells than the header is a bad row, not the end of the file."""
    csv.field_size_limit(2**31 - 1)
    with _opened(path) as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
        try:
            header = next(lines, None) or [""]
            if len(header) == 1 and ";" in header[0]:
                raise FileError(f"{path}: the columns are separated by ';'; expected commas")
            for number, cells in enumerate((each for each in lines if each), start=1):
                yield Numbered(number, _cells(header, cells))
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: not UTF-8 near line {lines.line_num + 1}: {error.reason}") from None
        except csv.Error as error:
            raise FileError(f"{path}:{lines.line_num}: cannot be read as CSV: {error}") from None


def _cells(header: list[str], cells: list[str]) -> Fields | BadRow:
    if len(cells) != len(header):
        return BadRow(f"expected {len(header)} cells, as in the header; got {len(cells)}")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _hub(source: str) -> Iterator[Numbered]:
    body, _, split = source.removeprefix("hf:").rpartition(":")
    if not body or not split:
        raise FileError(f"{source}: expected hf:REPO[/CONFIG]:SPLIT, for example hf:Anthropic/hh-rlhf:test")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FileError(f"{source}: needs the `datasets` package: pip install datasets") from None
    parts = body.split("/")
    repository, config = "/".join(parts[:2]), "/".join(parts[2:]) or None
    try:
        rows = datasets.load_dataset(repository, config, split=split, streaming=True)  # pyright: ignore
        for number, row in enumerate(rows, start=1):  # pyright: ignore
            yield Numbered(number, cast("Fields", row))
    except Exception as error:  # what `datasets` raises is not one family
        raise FileError(f"{source}: cannot be read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def write(path: str | Path, rows: Iterable[Fields], schema: Mapping[str, Any] | None = None) -> int:
    """Write rows as JSONL (`.jsonl`, `.jsonl.gz`) or Parquet, whole or not at all; returns how many.

    `schema` maps columns to polars types; Parquet needs it where the first rows do not show every type.
    Raises FileError, for a full disk too: what stood at `path` before then still stands.
    """
    path = Path(path)
    try:
        with _replacing(path) as temporary:
            if path.name.lower().endswith(".parquet"):
                return _write_parquet(temporary, path, rows, schema)
            return _write_lines(temporary, map(_line, rows), zipped=path.suffix.lower() == ".gz")
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: str | Path, lines: Iterable[str], schema: Mapping[str, Any]) -> int:
    """As `write`, for rows that are JSON texts already, which are neither parsed nor made again here."""
    path = Path(path)
    try:
        with _replacing(path) as temporary:
            if path.name.lower().endswith(".parquet"):
                return _write_parquet_json(temporary, path, lines, schema)
            return _write_lines(temporary, lines, zipped=path.suffix.lower() == ".gz")
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_writable(path: str | Path, *sources: str) -> None:
    """Raise FileError now, rather than after hours of work, if `path` cannot be written or is one of the sources."""
    path = Path(path)
    if path.exists() and any(Path(source).exists() and path.samefile(source) for source in sources):
        raise FileError(f"{path}: is read by this command; choose another name to write to")
    if not path.name.lower().endswith((".parquet", ".jsonl", ".jsonl.gz")):
        raise FileError(f"{path}: expected a name that ends in .parquet, .jsonl or .jsonl.gz")
    if path.is_dir():
        raise FileError(f"{path}: is a folder; expected a file name")
    if not path.parent.is_dir():
        raise FileError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: no permission to write in {path.parent}")


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """A temporary file beside `path` that takes its place at the end, so that no half file is ever seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_lines(path: Path, lines: Iterable[str], *, zipped: bool) -> int:
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") if zipped else path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def _line(row: Fields) -> str:
    """One row as JSON. A lone surrogate, which JSON can escape but UTF-8 cannot hold, stays escaped."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


def _encodable(value: Any) -> Any:
    """A value whose texts Parquet can hold: a lone surrogate becomes the replacement character."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {name: _encodable(each) for name, each in cast("Fields", value).items()}
    if isinstance(value, list | tuple):
        return [_encodable(each) for each in cast("list[Any]", value)]
    return value


def _write_parquet(path: Path, target: Path, rows: Iterable[Fields], schema: Mapping[str, Any] | None) -> int:
    import polars as pl

    iterator = map(_encodable, rows)
    first = list(islice(iterator, CHUNK))
    types = pl.Schema(schema) if schema else pl.DataFrame(first, infer_schema_length=None, strict=False).schema

    def frames() -> Iterator[pl.DataFrame]:
        for piece in chain([first], batched(iterator, CHUNK)):
            if schema is None and piece is not first and (change := _change(piece, types)):
                raise FileError(f"{target}: cannot be written: {change}")
            yield pl.DataFrame(piece, schema=types, strict=False)

    return _sink(path, target, frames(), types)


def _write_parquet_json(path: Path, target: Path, lines: Iterable[str], schema: Mapping[str, Any]) -> int:
    import polars as pl

    types = pl.Schema(schema)

    def frame(piece: Sequence[str]) -> pl.DataFrame:
        text = "\n".join(piece)
        return pl.read_ndjson(io.BytesIO(text.encode()), schema=types) if text else pl.DataFrame(schema=types)

    return _sink(path, target, map(frame, batched(lines, CHUNK)), types)


def _sink(path: Path, target: Path, frames: Iterator[pl.DataFrame], types: pl.Schema) -> int:
    """Through polars' streaming sink, so that memory holds a few pieces and never the table."""
    import polars as pl
    from polars.io.plugins import register_io_source

    count = 0
    stopped: list[FileError] = []

    def pieces(_columns: object, _predicate: object, _rows: object, _size: object) -> Iterator[pl.DataFrame]:
        nonlocal count
        try:
            for frame in frames:
                count += len(frame)
                yield frame
        except FileError as error:  # polars would wrap it in a text of its own
            stopped.append(error)
            raise ValueError(str(error)) from error

    try:
        register_io_source(pieces, schema=types).sink_parquet(path)
    except (pl.exceptions.PolarsError, ValueError) as error:
        if stopped:
            raise stopped[0] from None
        why = _one_line(error).replace(str(path), str(target))
        raise FileError(f"{target}: cannot be written: {why}") from error
    return count


def _change(piece: Sequence[Fields], types: pl.Schema) -> str | None:
    """What later rows have that the columns of the first ones cannot hold: polars would drop or cut it in silence."""
    import polars as pl

    for name, kind in pl.DataFrame(piece, infer_schema_length=None, strict=False).schema.items():
        if name not in types:
            return f"a later row has a column {name!r} that the first {CHUNK} have not; write .jsonl"
        if kind not in {pl.Null(), types[name]}:
            return f"column {name!r} changes from {types[name]} to {kind} after {CHUNK} rows; write .jsonl"
    return None


def batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece


def count(source: str) -> int | None:
    """How many rows a file has, for a progress bar; None where only reading it all would tell."""
    path = Path(source)
    name = path.name.lower()
    if source.startswith("hf:") or not path.is_file():
        return None
    if name.endswith(".parquet"):
        import polars as pl

        try:
            return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError):
            return None
    if name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        with _opened(path) as file:
            return sum(1 for line in file if line.strip())
    return None
