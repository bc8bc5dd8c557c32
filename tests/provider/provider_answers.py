"""What the model says: a pure function of the model, the messages and the options of a question.

The log-probabilities come from a hash of model and messages alone, so that they are the same whatever else is asked;
samples are drawn from them by (hash, sample, seed). One token is four characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import itemgetter
from random import Random
from struct import unpack
from typing import Any

from provider_schema import filled
from pydantic_core import to_json

TOKEN = 4
"""Characters."""

LABEL_ONLY = 16
"""An answer of so many tokens or fewer is the label alone."""

NEVER = 1e-9

ENDINGS = ("Preferred Response=", "Preferred Summary=", "SCORE:")

JUNK = (
    *("The", "Response", "**", "I", "\n", "First", "Both", "A", "B", "Neither", "Answer", "Based", "Sure", "It"),
    *("Summary", "0", "one", "two", "Option", "Preferred", "In", "Let", "##", "To"),
)
_FALL = [0.5 ** (place / 1.5) for place in range(len(JUNK))]
JUNK_LOGS = [math.log(0.98 * each / sum(_FALL)) for each in _FALL]
"""How the mass that no label has is spread; two hundredths of it are on tokens that are never shown."""
_JUNK = tuple(zip(JUNK, JUNK_LOGS, strict=True))

SENTENCES = (
    "The first one keeps to what was asked.",
    "The second one leaves out what matters most.",
    "Both are fluent, and neither is rude.",
    "One of them states something that the context does not say.",
    "The shorter one is easier to follow.",
    "The longer one repeats itself.",
    "What decides it is how well the request is met.",
    "Neither could hurt anyone.",
)

Tokens = list[tuple[str, float]]

_LOG = itemgetter(1)
_RANDOM = Random()
"""Seeded anew for each answer: a generator of its own would be seeded twice."""


@dataclass(frozen=True, slots=True)
class Block:
    """`end` in the question's text, `tokens` up to there, `ttl` of the cache breakpoint on it if there is one."""

    end: int
    tokens: int
    ttl: str | None


@dataclass(slots=True)
class Question:
    """A request, whichever provider's format it came in."""

    model: str
    text: str
    """All roles and contents in order, joined: what the hash is of."""
    last: str
    """The content of the last message."""
    tokens_in: int
    max_tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    logprobs: bool = False
    top: int = 0
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    continues: bool = False
    """The last message is the beginning of the answer."""
    blocks: tuple[Block, ...] = ()
    """Where each block of content ends; only where a cache breakpoint is set."""
    hidden: int = 0
    """Tokens of reasoning that are spent and not shown."""
    key: str = ""
    """Of model, messages and options: the same content has the same key."""
    digest: bytes = b""


@dataclass(slots=True)
class Position:
    """A token that was said, and the most likely ones in its place, best first."""

    token: str
    logprob: float
    top: Tokens


@dataclass(slots=True)
class Answer:
    """`finish` is "stop", "length" or "stop_sequence" (then `stopped_by` is which)."""

    text: str | None
    finish: str
    tokens: int
    positions: list[Position] | None = None
    stopped_by: str | None = None
    refusal: str | None = None


def tokens_of(characters: int) -> int:
    return -(-characters // TOKEN)


def sealed(question: Question, wire: str, extra: object = None) -> Question:
    """Fills in the question's hash and key, once all else is known. `extra` are options that only the key is of."""
    text = question.text.rstrip()
    if _second(question):
        text = text[:-1].rstrip()
    question.digest = blake2b(f"{question.model}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    q = question
    options = (wire, q.last[-4:], q.max_tokens, q.n, q.temperature, q.seed, q.logprobs, q.top, q.stop, q.continues)
    whole = repr((*options, q.schema, extra)).encode("utf-8", "surrogatepass")
    question.key = blake2b(whole, digest_size=12, key=question.digest).hexdigest()
    return question


def hidden_tokens(digest: bytes, effort: str | None) -> int:
    """What a reasoning model spends before it says anything."""
    least = {"none": 0, "minimal": 0, "low": 32, "high": 256, "xhigh": 512}.get(effort or "medium", 96)
    return least and least + digest[0] % 64


def answers_to(question: Question, first: int = 0) -> list[Answer]:
    """Its `n` samples, beginning at sample `first`."""
    q = question
    if q.max_tokens is not None and (q.hidden >= q.max_tokens > 0 or q.max_tokens == 0):
        return [Answer("", "length", q.max_tokens) for _ in range(q.n)]
    labels, known = label_probabilities(q)
    return [_answer(q, labels, known, first + index) for index in range(q.n)]


def label_probabilities(question: Question) -> tuple[Tokens, tuple[float, ...]]:
    """Each label's share (they sum to 1), and four numbers from 0 to 1 that the question determines."""
    u = tuple(each / 2**32 for each in unpack("<4I", question.digest))
    if _asks_score(question):
        center, width = 1 + 9 * u[0], 0.7 + 0.9 * u[1]
        weights = [math.exp(-(((k - center) / width) ** 2) / 2) + 0.01 for k in range(1, 11)]
        shares = [weight / math.fsum(weights) for weight in weights]
    else:
        first = 1 / (1 + math.exp(10 * (0.5 - u[0])))
        shares = [first, 1 - first]
    labels = [(str(k), share) for k, share in enumerate(shares, start=1)]
    if "lowmass" in question.model:
        left = 1 - labels[1][1]
        labels = [(label, NEVER if label == "2" else share / left * (1 - NEVER)) for label, share in labels]
    return labels, u


def first_tokens(labels: Tokens, u: Sequence[float]) -> Tokens:
    """All tokens that can begin the answer with their log-probabilities, best first: " 1" beside "1", and junk."""
    rest = 0.01 + (0.015 if len(labels) > 2 else 0.09) * u[2]
    space = 0.02 + 0.04 * u[3]
    bare, spaced, junk = math.log1p(-space), math.log(space), math.log(rest)
    found: Tokens = []
    for label, share in labels:
        log = math.log(share) + math.log1p(-rest)
        found += ((label, log + bare), (" " + label, log + spaced))
    found += [(token, junk + log) for token, log in _JUNK]
    return _ranked(found)


def second_tokens(zero: float) -> Tokens:
    """All tokens that can follow a "1" where "10" is two tokens: "0", or the answer's end."""
    zero = min(max(zero, NEVER), 1 - NEVER)
    end = math.log1p(-zero)
    found = [("0", math.log(zero)), ("\n", end + math.log(0.8)), (".", end + math.log(0.1))]
    found += [(token, end + math.log(0.1) + log) for token, log in _JUNK if len(token) > 1]
    return _ranked(found)


def _answer(q: Question, labels: Tokens, u: Sequence[float], index: int) -> Answer:
    if q.temperature == 0:
        index = 0
    random = _RANDOM
    random.seed(blake2b(repr((index, q.seed)).encode(), digest_size=8, key=q.digest).digest())
    label = _drawn(labels, q.temperature, random.random())
    if q.schema is not None:
        text = to_json(filled(q.schema, label, random)).decode()
        pieces = [(piece, piece == label) for piece in re.findall(r"\d+|\D+", text)]
        return _told(q, text, [_sure(q, labels, u, piece, is_label=at) for piece, at in pieces])
    if _label_only(q):
        positions = _second_said(labels, label) if _second(q) else _label_said(q, labels, u, label)
        return _told(q, "".join(each.token for each in positions), positions)
    return _told(q, _rationale(q, label, random), None)


def _told(q: Question, text: str, positions: list[Position] | None) -> Answer:
    """Ended where a stop string or `max_tokens` says so."""
    finish, stopped_by = "stop", None
    cuts = [(at, stop) for stop in q.stop if (at := text.find(stop)) >= 0]
    if cuts:
        at, stopped_by = min(cuts)
        text, finish = text[:at], "stop_sequence"
    room = None if q.max_tokens is None else q.max_tokens - q.hidden
    if positions is None:
        if room is not None and tokens_of(len(text)) > room:
            text, finish, stopped_by = text[: room * TOKEN], "length", None
        return Answer(text, finish, tokens_of(len(text)) + q.hidden, None, stopped_by)
    kept, length = [], 0
    for position in positions:
        length += len(position.token)
        if length > len(text) or (room is not None and len(kept) == room):
            break
        kept.append(position)
    if room is not None and len(kept) == room:
        text, finish, stopped_by = "".join(each.token for each in kept), "length", None
    return Answer(text, finish, len(kept) + q.hidden, kept if q.logprobs else None, stopped_by)


def _label_said(q: Question, labels: Tokens, u: Sequence[float], label: str) -> list[Position]:
    if not (_splits(q) and label in ("1", "10")):
        return [_position(label, _firsts(q, labels, u))]
    after = "0" if label == "10" else "\n"
    shares = dict(labels)
    return [
        _position("1", _firsts(q, labels, u)),
        _position(after, second_tokens(shares["10"] / (shares["1"] + shares["10"])) if q.logprobs else []),
    ]


def _second_said(labels: Tokens, label: str) -> list[Position]:
    """The "1" stands in the prompt already."""
    shares = dict(labels)
    return [_position("0" if label == "10" else "\n", second_tokens(shares["10"] / (shares["1"] + shares["10"])))]


def _firsts(q: Question, labels: Tokens, u: Sequence[float]) -> Tokens:
    if not q.logprobs:
        return []
    if _splits(q):
        shares = dict(labels)
        ten = shares.pop("10")
        labels = [(label, share + ten if label == "1" else share) for label, share in shares.items()]
    return first_tokens(labels, u)


def _sure(q: Question, labels: Tokens, u: Sequence[float], token: str, *, is_label: bool) -> Position:
    """A token of JSON: certain, but for the label."""
    return _position(token, _firsts(q, labels, u) if is_label else [(token, -1e-6)])


def _position(token: str, top: Tokens) -> Position:
    for name, log in top:  # a label stands near the front
        if name == token:
            return Position(token, log, top)
    return Position(token, -9999.0, top)


def _rationale(q: Question, label: str, random: Random) -> str:
    ending = max(ENDINGS, key=q.text.rfind)
    if ending not in q.text:
        summaries = "Summary 1 - " in q.text
        ending = "SCORE:" if _asks_score(q) else ENDINGS[summaries]
    return f"{' '.join(random.sample(SENTENCES, random.randint(3, 6)))}\n\n{ending}{label}"


def _drawn(labels: Tokens, temperature: float, u: float) -> str:
    if temperature == 0:
        return max(labels, key=lambda each: each[1])[0]
    weights = [share ** (1 / temperature) for _, share in labels]
    u *= math.fsum(weights)
    for (label, _), weight in zip(labels, weights, strict=True):
        u -= weight
        if u < 0:
            return label
    return labels[-1][0]


def _label_only(q: Question) -> bool:
    if q.logprobs or q.last.rstrip().endswith(ENDINGS) or _second(q):
        return True
    return q.max_tokens is not None and q.max_tokens - q.hidden <= LABEL_ONLY


def _asks_score(q: Question) -> bool:
    """What the prompt ends with says it; else "1 to 10" anywhere in it."""
    end = q.last[-80:]
    if "Preferred " in end:
        return False
    return "SCORE" in end or "1 to 10" in q.text


def _splits(q: Question) -> bool:
    """Is "10" two tokens here?"""
    return "split" in q.model and _asks_score(q)


def _second(q: Question) -> bool:
    return q.continues and _splits(q) and re.search(r"[:=]\s*1$", q.last) is not None


def _ranked(tokens: Tokens) -> Tokens:
    tokens.sort(key=_LOG, reverse=True)
    return [(token, round(log * 1e6) / 1e6) for token, log in tokens]  # a third of what round(log, 6) takes
