"""Any other table: the user names the columns, `--columns prompt=...,a=...,b=...,human=...`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data.errors import RlaifError, RowError
from data.records import Comparison, Prompted, Response, content_id, make
from data.sources.shape import Choice, Fields, Shape, choice, conversation, has, own_id, pair, rest, text, vote

PAIR = ("id", "prompt", "a", "b", "human", "rater", "model_a", "model_b")
SINGLE = ("id", "prompt", "response", "model", "ratings")


def parse(text_of_it: str) -> dict[str, str]:
    """`prompt=question,a=left,b=right` as a mapping of our names to the file's. `ratings=first+second` are two columns.

    Raises RlaifError: a part without "=", or a name that no table needs.
    """
    known = dict.fromkeys((*PAIR, *SINGLE))
    columns: dict[str, str] = {}
    for part in text_of_it.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or name not in known:
            raise RlaifError(f"--columns: expected NAME=COLUMN with NAME one of {', '.join(known)}; got {part!r}")
        columns[name] = column
    return columns


def comparisons(columns: Mapping[str, str]) -> Shape:
    """Rows with two responses; `human` says a, b or tie, or true where a is the better one."""
    missing = [name for name in ("prompt", "a", "b") if name not in columns]
    if missing:
        raise RlaifError(f"--columns: also needed: {', '.join(f'{name}=COLUMN' for name in missing)}")
    names = {"a": 0, "b": 1, columns["a"].lower(): 0, columns["b"].lower(): 1, "true": 0, "false": 1}

    def read(fields: Fields) -> Comparison:
        values = {name: fields.get(column) for name, column in columns.items()}
        verdict: Choice = choice(values.get("human"), names, columns.get("human", "human"))
        return pair(
            {**fields, "id": values["id"]} if "id" in values else fields,
            prompt=values["prompt"],
            responses=(values["a"], values["b"]),
            models=(values.get("model_a", fields.get("model_a")), values.get("model_b", fields.get("model_b"))),
            votes=vote(verdict, values.get("rater")),
            used=frozenset({*columns.values(), "model_a", "model_b"}),
        )

    return Shape(_about(columns), has(*columns.values()), read)


def responses(columns: Mapping[str, str]) -> Shape:
    """Rows with one response."""
    missing = [name for name in ("prompt", "response") if name not in columns]
    if missing:
        raise RlaifError(f"--columns: also needed: {', '.join(f'{name}=COLUMN' for name in missing)}")
    raters = [each.strip() for each in columns.get("ratings", "").split("+") if each.strip()]
    single = {name: column for name, column in columns.items() if name != "ratings"}
    used = frozenset({*single.values(), *raters, "model"})

    def read(fields: Fields) -> Response:
        values = {name: fields.get(column) for name, column in single.items()}
        if values["prompt"] is None:
            raise RowError(f"{columns['prompt']}: expected a prompt, found none")
        prompt, reply = conversation(values["prompt"]), text(values["response"], columns["response"])
        identity = own_id({"id": values.get("id", fields.get("id"))}) or content_id(prompt, [reply])
        ratings = [{"rater": rater, **rating(fields[rater])} for rater in raters if fields.get(rater) not in {None, ""}]
        row = {
            "id": identity,
            "prompt": prompt,
            "response": reply,
            "model": values.get("model", fields.get("model")),
            "ratings": ratings,
        }
        return make(Response, {**row, "meta": rest(fields, used)})

    return Shape(_about(columns), has(*single.values(), *raters), read)


def prompts(columns: Mapping[str, str]) -> Shape:
    """The prompts of any table. Raises RlaifError where `prompt` is not named."""
    if "prompt" not in columns:
        raise RlaifError("--columns: expected prompt=COLUMN")

    def read(fields: Fields) -> Prompted:
        named = {name: fields[column] for name, column in columns.items() if column in fields}
        prompt = conversation(named.get("prompt"))
        known = own_id(named) or content_id(prompt, [])
        return make(Prompted, {"id": known, "prompt": prompt, "meta": rest(fields, frozenset(columns.values()))})

    return Shape(_about(columns), has(columns["prompt"]), read)


def rating(value: Any) -> dict[str, Any]:
    """One cell as a rating: true and false say harmful, a number is a score, any other text is a class."""
    if isinstance(value, bool):
        return {"harmful": value}
    text_of_it = str(value).strip()
    if text_of_it.lower() in {"true", "false"}:
        return {"harmful": text_of_it.lower() == "true"}
    try:
        score = float(text_of_it)
    except ValueError:
        return {"label": text_of_it}
    return {"score": score} if math.isfinite(score) else {"label": text_of_it}


def _about(columns: Mapping[str, str]) -> str:
    return "columns " + ", ".join(f"{name}={column}" for name, column in columns.items())
