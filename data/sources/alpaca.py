"""`output_1`, `output_2` under an `instruction` (and `input`), as AlpacaEval, AlpacaFarm and LLMBar write them.

`label` is 1 or 2. `preference` runs from 1 (output_1 better) to 2 (output_2 better), 1.5 is a tie. `annotators` is a
list of such verdicts, plain or as `{annotator, preference}`, or an object of rater to verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from data.errors import RowError
from data.records import Comparison, Vote
from data.sources.shape import Choice, Fields, Shape, has, pair, vote

_USED = frozenset(
    {"instruction", "input", "output_1", "output_2", "label", "preference", "annotators", "annotator"}
    | {"generator_1", "generator_2"}
)


def _read(fields: Fields) -> Comparison:
    instruction, extra = fields.get("instruction"), fields.get("input")
    parts = [part for part in (instruction, extra) if part]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise RowError("instruction, input: expected a text in at least one of them")
    return pair(
        fields,
        prompt="\n\n".join(parts),
        responses=(fields["output_1"], fields["output_2"]),
        models=(fields.get("generator_1"), fields.get("generator_2")),
        votes=_votes(fields),
        used=_USED,
    )


def _votes(fields: Fields) -> tuple[Vote, ...]:
    if fields.get("annotators"):
        return _several(fields["annotators"])
    for column in ("label", "preference"):
        if fields.get(column) is not None:
            return _vote(fields[column], column, fields.get("annotator"))
    return ()


def _vote(value: object, column: str, rater: object) -> tuple[Vote, ...]:
    """A verdict between 1 and 2 says how surely: 1 + the probability that output_2 is the better one."""
    found = vote(_verdict(value, column), rater)
    number = float(cast("Any", value)) if found and found[0].choice != "tie" else 1.0
    return found if number.is_integer() else tuple(each.model_copy(update={"p": 2 - number}) for each in found)


def _several(annotators: Any) -> tuple[Vote, ...]:
    if isinstance(annotators, Mapping):
        pairs = list(cast("Mapping[str, object]", annotators).items())
    elif isinstance(annotators, list):
        pairs = [_named(at, each) for at, each in enumerate(cast("list[object]", annotators), start=1)]
    else:
        raise RowError(f"annotators: expected a list or an object, got {type(annotators).__name__}")
    return tuple(single for rater, value in pairs for single in _vote(value, "annotators", rater))


def _named(number: int, entry: object) -> tuple[str, object]:
    if isinstance(entry, Mapping):
        fields = cast("Mapping[str, object]", entry)
        name = fields.get("annotator", fields.get("rater", number))
        return str(name), fields.get("preference", fields.get("label"))
    return str(number), entry


def _verdict(value: object, column: str) -> Choice:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().lower() == "tie":
        return "tie"
    try:
        number = float("nan") if isinstance(value, bool) else float(cast("Any", value))
    except (TypeError, ValueError):
        number = float("nan")
    if not 1 <= number <= 2:
        raise RowError(f"{column}: expected 1 (output_1 better) to 2 (output_2 better), got {str(value)[:40]!r}")
    return "tie" if number == 1.5 else int(number > 1.5)


SHAPE = Shape(
    "instruction, input, output_1, output_2, label | preference | annotators", has("output_1", "output_2"), _read
)
