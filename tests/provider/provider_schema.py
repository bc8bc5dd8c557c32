"""JSON that fulfils a simple schema, and what each provider refuses in one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

WORDS = ("The first keeps what matters.", "The second wanders.", "Both are fluent.", "One of them misses the point.")

REFUSED_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def filled(schema: dict[str, Any], label: str, random: Random) -> Any:
    """A value of the schema; numbers and enums that can be the label are the label, and numbers that are named after
    options are percentages, the label's the highest."""
    return _filled(schema, label, random, schema)


def _filled(schema: dict[str, Any], label: str, random: Random, root: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _filled(_resolved(schema["$ref"], root), label, random, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        values = schema["enum"]
        return next((value for value in values if str(value) == label), random.choice(values))
    if "anyOf" in schema:
        return _filled(schema["anyOf"][0], label, random, root)
    return _of_type(schema, label, random, root)


def _of_type(schema: dict[str, Any], label: str, random: Random, root: dict[str, Any]) -> Any:
    kind = schema.get("type", "object")
    match kind if isinstance(kind, str) else kind[0]:
        case "object":
            properties = schema.get("properties", {})
            options = [name for name, each in properties.items() if name.isdigit() and each.get("type") == "number"]
            shares = _shares(options, label, random)
            return {name: shares.get(name) or _filled(each, label, random, root) for name, each in properties.items()}
        case "array":
            count = max(1, schema.get("minItems", 1))
            return [_filled(schema.get("items", {}), label, random, root) for _ in range(count)]
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            return int(label) if low <= int(label) <= high else random.randint(low, high)
        case "number":
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            inside = low <= int(label) <= high and high > 1
            return float(label) if inside else round(low + random.random() * (high - low), 4)
        case "boolean":
            return random.random() < 0.5
        case "null":
            return None
        case _:
            return random.choice(WORDS)


def _shares(options: list[str], label: str, random: Random) -> dict[str, float]:
    weights = {name: (name == label) + random.uniform(0.01, 1) for name in options}
    return {name: round(100 * weight / sum(weights.values()), 4) for name, weight in weights.items()}


def openai_objection(name: str, schema: dict[str, Any]) -> str | None:
    """What OpenAI says to a schema that `strict` cannot keep."""
    start = f"Invalid schema for response_format '{name}': In context=(), "
    if schema.get("type") != "object":
        return f"{start}schema must be of type \"object\", got 'type: {schema.get('type')}'."
    for each in _objects(schema):
        if each.get("additionalProperties") is not False:
            return f"{start}'additionalProperties' is required to be supplied and to be false."
        missing = [key for key in each.get("properties", {}) if key not in each.get("required", [])]
        if missing:
            wanted = "'required' is required to be supplied and to be an array including every key in properties"
            return f"{start}{wanted}. Missing '{missing[0]}'."
    return None


def anthropic_objection(schema: dict[str, Any]) -> str | None:
    """What Anthropic says to a schema that it cannot keep."""
    for each in _walk(schema):
        kind = each.get("type")
        if kind == "object" and each.get("additionalProperties") is not False:
            return "For 'object' type, 'additionalProperties' must be explicitly set to false"
        refused = [key for key in REFUSED_NUMBERS if key in each]
        if kind in ("integer", "number") and refused:
            return f"For '{kind}' type, properties {', '.join(sorted(refused))} are not supported"
    return None


def _objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (each for each in _walk(schema) if each.get("type") == "object")


def _walk(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", [])]
    if isinstance(schema.get("items"), dict):
        inner.append(schema["items"])
    for each in inner:
        yield from _walk(each)


def _resolved(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found
