"""The cache and the meter around a backend."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence

import pytest
from labeler_support import Scripted

from labeler.backend import Choose, Failed, Likelihoods, Text, Usage, Write, request_key
from labeler.fake import RULES
from labeler.wrappers import Cached, Meter, Metered
from prompts.render import Prompt


class Memory(dict[str, Likelihoods | Text]):
    """A store that is forgotten with the test."""

    def get(self, keys: Sequence[str]) -> Mapping[str, Likelihoods | Text]:  # pyright: ignore
        return {key: self[key] for key in keys if key in self}

    def put(self, answers: Iterable[tuple[str, Likelihoods | Text]]) -> None:
        self.update(answers)


def prompt(text: str) -> Prompt:
    return Prompt("system", "", text, "", "Answer:")


def choose(*texts: str) -> list[Choose]:
    return [Choose(prompt(text), ("1", "2")) for text in texts]


def by_length(request: Choose) -> list[float]:
    return [-float(len(request.prompt.context)), 0.0]


def lengths(answers: Sequence[Likelihoods | Failed]) -> list[float]:
    return [-each.values[0] for each in answers if isinstance(each, Likelihoods)]


def test_only_what_is_missing_is_asked_and_answers_keep_the_order_of_their_requests():
    backend = Scripted(rule=by_length)
    cached = Cached(backend, Memory())
    asyncio.run(cached.likelihoods(choose("bb", "dddd")))
    found = asyncio.run(cached.likelihoods(choose("a", "bb", "ccc", "dddd")))
    assert lengths(found) == [1, 2, 3, 4]
    assert [each.prompt.context for each in backend.chosen] == ["bb", "dddd", "a", "ccc"]


def test_the_same_request_twice_in_a_batch_is_asked_once():
    backend = Scripted(rule=by_length)
    found = asyncio.run(Cached(backend, Memory()).likelihoods(choose("a", "bb", "a")))
    assert lengths(found) == [1, 2, 1]
    assert len(backend.chosen) == 2


def test_nothing_missing_asks_nothing():
    backend = Scripted(rule=by_length)
    cached = Cached(backend, Memory())
    asyncio.run(cached.likelihoods(choose("a")))
    asyncio.run(cached.likelihoods(choose("a")))
    assert asyncio.run(cached.likelihoods([])) == []
    assert len(backend.chosen) == 1


def test_failures_are_told_but_not_kept():
    store = Memory()
    (first,) = asyncio.run(Cached(Scripted(rule=RULES["nan"]), store).likelihoods(choose("a")))
    assert isinstance(first, Failed)
    assert store == {}
    (second,) = asyncio.run(Cached(Scripted(rule=by_length), store).likelihoods(choose("a")))
    assert isinstance(second, Likelihoods)


def test_what_one_model_said_is_never_told_as_anothers():
    store = Memory()
    asyncio.run(Cached(Scripted(name="one", rule=by_length), store).likelihoods(choose("a")))
    other = Scripted(name="two", rule=lambda request: [-7.0, 0.0])
    assert lengths(asyncio.run(Cached(other, store).likelihoods(choose("a")))) == [7]


def test_texts_are_kept_by_all_that_makes_them():
    backend = Scripted(tell=lambda request: f" {request.seed}")
    cached = Cached(backend, Memory())
    requests = [Write(prompt("a"), 10, 0.7, 40, seed) for seed in (1, 2)]
    first = asyncio.run(cached.texts(requests))
    assert asyncio.run(cached.texts(requests)) == first
    assert [each.text for each in first if isinstance(each, Text)] == [" 1", " 2"]
    assert len(backend.written) == 2


KEY = request_key("model", Write(prompt("a"), 10, 0.7, 40, 1, ("stop",)))


@pytest.mark.parametrize(
    ("identity", "request_"),
    [
        ("other", Write(prompt("a"), 10, 0.7, 40, 1, ("stop",))),
        ("model", Write(prompt("b"), 10, 0.7, 40, 1, ("stop",))),
        ("model", Write(prompt("a"), 11, 0.7, 40, 1, ("stop",))),
        ("model", Write(prompt("a"), 10, 0.8, 40, 1, ("stop",))),
        ("model", Write(prompt("a"), 10, 0.7, 41, 1, ("stop",))),
        ("model", Write(prompt("a"), 10, 0.7, 40, 2, ("stop",))),
        ("model", Write(prompt("a"), 10, 0.7, 40, 1, ())),
        ("model", Choose(prompt("a"), ("1", "2"))),
        ("model", Write(Prompt("systema", "", "", "", "Answer:"), 10, 0.7, 40, 1, ("stop",))),
    ],
    ids=["model", "prompt", "length", "temperature", "top_k", "seed", "stop", "verb", "parts of the prompt"],
)
def test_a_key_changes_with_everything_that_could_change_the_answer(identity: str, request_: Choose | Write):
    assert request_key(identity, request_) != KEY


def test_a_meter_counts_requests_failures_and_costs():
    meter = Meter()
    metered = Metered(Scripted(rule=lambda request: [math.nan if request.prompt.context == "b" else -1.0] * 2), meter)
    asyncio.run(metered.likelihoods(choose("a", "b", "c")))
    asyncio.run(metered.texts([Write(prompt("a"), 10)]))
    assert (meter.asked, meter.failed) == (4, 1)
    assert meter.usage == Usage(2 * len(prompt("a").plain()) + 10, 2 + 5, 0.0, 0.0)


def test_a_meter_inside_of_a_cache_counts_what_is_really_asked():
    meter = Meter()
    cached = Cached(Metered(Scripted(rule=by_length), meter), Memory())
    for _ in range(3):
        asyncio.run(cached.likelihoods(choose("a", "b")))
    assert meter.asked == 2


@pytest.mark.parametrize("wrap", [lambda inner: Cached(inner, Memory()), lambda inner: Metered(inner, Meter())])
def test_wrappers_pass_on_what_they_do_not_change(wrap):
    backend = Scripted(name="fake:x", rows=3, calls=5, limit=0)
    wrapped = wrap(backend)
    assert (wrapped.name, wrapped.identity, wrapped.rows, wrapped.calls) == ("fake:x", "fake:x", 3, 5)
    assert wrapped.overflow(choose("abc")[0]) == backend.overflow(choose("abc")[0]) > 0


def test_unknown_prices_stay_unknown():
    assert (Usage(1, 2, None) + Usage(3, 4, None)).usd is None
    assert (Usage(1, 2, None) + Usage(3, 4, 0.5)) == Usage(4, 6, 0.5)
