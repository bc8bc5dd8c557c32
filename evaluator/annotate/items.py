"""The rows to judge: read once, kept on disk by number; in memory is only what tells them apart."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterable
from typing import TypeAlias

from data.errors import RlaifError
from data.records import Comparison, Failure, Response, hashed, make

Row: TypeAlias = Comparison | Response


class Items:
    """Numbered rows without the votes they came with. Raises RlaifError where no row is usable.

    The first row of an id counts, as in a job; another text under the same id is left out and counted in `clashing`.
    """

    def __init__(self, rows: Iterable[Row | Failure], source: str) -> None:
        self.keys: list[str] = []
        self.unusable = self.clashing = 0
        self._kind: type[Comparison] | type[Response] = Comparison
        self._ends = array("Q", [0])
        self._file = tempfile.TemporaryFile(prefix="rlaif-annotate-")  # noqa: SIM115
        try:
            self._read(rows, source)
        except BaseException:
            self.close()
            raise
        self.numbers = {key: number for number, key in enumerate(self.keys)}

    def _read(self, rows: Iterable[Row | Failure], source: str) -> None:
        contents: dict[str, str] = {}
        for row in rows:
            if isinstance(row, Failure):
                self.unusable += 1
            elif contents.setdefault(row.id, row.content) != row.content:
                self.clashing += 1
            elif len(contents) > len(self.keys):
                self._kind = type(row)
                self.keys.append(hashed([row.id, row.content]))
                fields = row.model_dump(exclude={"votes", "ratings"})
                self._file.write(json.dumps(fields, default=str).encode())  # in ASCII: half characters stay as they are
                self._ends.append(self._file.tell())
        self._file.flush()
        if not self.keys:
            raise RlaifError(f"{source}: no usable row ({self.unusable} unusable); `rlaif check {source}` says why")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Row:
        start, end = self._ends[number : number + 2]
        return make(self._kind, json.loads(os.pread(self._file.fileno(), end - start, start)))

    def close(self) -> None:
        self._file.close()


def texts(row: Row) -> tuple[str, ...]:
    """The responses of a row, as the file orders them."""
    return row.responses if isinstance(row, Comparison) else (row.response,)
