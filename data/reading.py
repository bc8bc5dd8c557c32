"""From a file to records: recognise its shape once, then read row by row; a bad row is a Failure that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data import tables
from data.errors import FileError, RlaifError, RowError
from data.records import Comparison, Failure, Prompted, Response, Vote
from data.sources import COMPARISON_SHAPES, PROMPT_SHAPES, RESPONSE_SHAPES, columns
from data.sources.shape import Shape
from data.tables import BadRow, Numbered

PEEK = 100
"""How many leading rows may be broken before a file's shape is given up on."""


@dataclass(frozen=True)
class Reading:
    """A file's shape and its rows, not read yet."""

    source: str
    shape: Shape
    rows: Iterator[Comparison | Response | Failure]


@dataclass(frozen=True)
class Prompts:
    """The same of prompts, in whatever they come."""

    source: str
    shape: Shape
    rows: Iterator[Comparison | Response | Prompted | Failure]


def comparisons(source: str, named: str | None = None) -> Iterator[Comparison | Failure]:
    """The comparisons of a file, streamed. `named` is the text of `--columns`. Raises FileError."""
    for row in open_comparisons(source, named).rows:
        if isinstance(row, Comparison | Failure):
            yield row


def responses(source: str, named: str | None = None) -> Iterator[Response | Failure]:
    """The single responses of a file, streamed. Raises FileError."""
    for row in open_responses(source, named).rows:
        if isinstance(row, Response | Failure):
            yield row


def each_response(source: str, named: str | None = None) -> Iterator[Response | Failure]:
    """The single responses of a file, or of its comparisons one by one: `ID#0`, `ID#1`, ... Raises FileError."""
    try:
        rows = responses(source, named)
        first = next(rows, None)
    except (FileError, RlaifError) as error:
        try:
            yield from (each for row in comparisons(source, named) for each in _singly(row))
        except (FileError, RlaifError):
            raise error from None
        return
    if first is not None:
        yield from chain([first], rows)


def prompts(source: str, named: str | None = None) -> Iterator[Prompted | Failure]:
    """The prompts of a file, of comparisons, responses, or prompts alone, each once. Raises FileError."""
    seen: set[str] = set()
    for row in open_prompts(source, named).rows:
        if isinstance(row, Failure):
            yield row
            continue
        alone = row if isinstance(row, Prompted) else Prompted(id=row.id, prompt=row.prompt, meta=row.meta)
        if alone.content not in seen:
            seen.add(alone.content)
            yield alone


def beside(source: str) -> dict[str, list[tuple[str, str]]]:
    """The responses of a file with who wrote them, by what the prompt says. Raises FileError, RlaifError."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in each_response(source):
        if isinstance(row, Failure):
            raise RlaifError(row.message)
        prompt = Prompted(id=row.id, prompt=row.prompt)
        found.setdefault(prompt.content, []).append((row.response, row.model or "another"))
    return found


def revisable(source: str, named: str | None = None) -> Iterator[Prompted | Failure]:
    """Prompts, with the response that there is to each where the file has one. Raises FileError."""
    shapes = (columns.prompts(columns.parse(named)),) if named is not None else (*RESPONSE_SHAPES, *PROMPT_SHAPES)
    for row in _found(source, shapes, "prompts")[1]:
        if isinstance(row, Response):
            yield Prompted(id=row.id, prompt=row.prompt, response=row.response, meta=row.meta)
        elif not isinstance(row, Comparison):
            yield row


def open_prompts(source: str, named: str | None = None) -> Prompts:
    if named is not None:
        shapes = (columns.prompts(columns.parse(named)),)
    else:
        shapes = (*COMPARISON_SHAPES, *RESPONSE_SHAPES, *PROMPT_SHAPES)
    return Prompts(source, *_found(source, shapes, "prompts"))


def _singly(row: Comparison | Failure) -> Sequence[Response | Failure]:
    if isinstance(row, Failure):
        return [row]
    names = row.models or (None,) * len(row.responses)
    return [
        Response(id=f"{row.id}#{at}", prompt=row.prompt, response=response, model=name, meta=row.meta)
        for at, (response, name) in enumerate(zip(row.responses, names, strict=True))
    ]


def open_comparisons(source: str, named: str | None = None) -> Reading:
    shapes = (columns.comparisons(columns.parse(named)),) if named else COMPARISON_SHAPES
    return _open(source, shapes, "comparisons")


def open_responses(source: str, named: str | None = None) -> Reading:
    shapes = (columns.responses(columns.parse(named)),) if named else RESPONSE_SHAPES
    return _open(source, shapes, "responses")


def _open(source: str, shapes: Sequence[Shape], what: str) -> Reading:
    shape, rows = _found(source, shapes, what)
    return Reading(source, shape, (_unanswered(source, row) if isinstance(row, Prompted) else row for row in rows))


def _unanswered(source: str, row: Prompted) -> Failure:
    message = f"{Path(source).name}: {row.id}: a prompt without a response: the last message is not the assistant's"
    return Failure(id=row.id, stage="read", reason="bad_row", message=message, attempts=1)


def _found(
    source: str, shapes: Sequence[Shape], what: str
) -> tuple[Shape, Iterator[Comparison | Response | Prompted | Failure]]:
    """The first shape that matches, and the rows as it reads them. Raises FileError."""
    stream = tables.read(source)
    seen: list[Numbered] = []
    for each in stream:
        seen.append(each)
        if isinstance(each.row, BadRow):
            if len(seen) < PEEK:
                continue
            break
        names = frozenset(each.row)
        shape = next((shape for shape in shapes if shape.matches(names)), None)
        if shape is not None:
            return shape, _rows(source, shape, chain(seen, stream))
        if len(seen) >= PEEK:
            break
    raise FileError(_no_shape(source, shapes, what, seen))


def _no_shape(source: str, shapes: Sequence[Shape], what: str, seen: Sequence[Numbered]) -> str:
    found = next((sorted(each.row) for each in seen if not isinstance(each.row, BadRow)), None)
    if found is None:
        row = seen[0].row
        return f"{source}:{seen[0].number}: no usable row: {row.message if isinstance(row, BadRow) else row}"
    expected = "; ".join(shape.about for shape in shapes)
    return (
        f"{source}: cannot be read as {what}: it has the columns {', '.join(found[:12])}; expected {expected}; "
        "for others name them: --columns prompt=COLUMN,"
        + {"comparisons": "a=COLUMN,b=COLUMN,human=COLUMN", "responses": "response=COLUMN"}.get(what, "id=COLUMN")
        + " (in training: --data.columns)"
    )


def _rows(source: str, shape: Shape, rows: Iterator[Numbered]) -> Iterator[Comparison | Response | Prompted | Failure]:
    name = source if source.startswith("hf:") else Path(source).name
    for each in rows:
        place = f"{each.file or name}:{each.number}"
        if isinstance(each.row, BadRow):
            yield Failure(id=place, stage="read", reason="bad_row", message=f"{place}: {each.row.message}", attempts=1)
            continue
        if not shape.matches(frozenset(each.row)):
            message = f"{place}: columns {', '.join(sorted(each.row)[:8]) or 'none'}; expected {shape.about}"
            yield Failure(id=place, stage="read", reason="bad_row", message=message, attempts=1)
            continue
        try:
            yield shape.read(each.row)
        except RowError as error:
            yield Failure(id=place, stage="read", reason="bad_row", message=f"{place}: {error}", attempts=1)


def merged_votes(rows: Iterator[Comparison | Failure]) -> dict[str, Comparison]:
    """Comparisons by id, the votes of rows with the same id put together (files with a row a vote).

    As in a job, the first row of an id is the one that counts; another text under the same id adds nothing.
    """
    found: dict[str, Comparison] = {}
    for row in rows:
        if isinstance(row, Failure):
            continue
        known = found.get(row.id)
        if known is None:
            found[row.id] = row
        elif known.responses == row.responses and known.prompt == row.prompt:
            votes: tuple[Vote, ...] = known.votes + row.votes
            found[row.id] = known.model_copy(update={"votes": votes})
    return found
