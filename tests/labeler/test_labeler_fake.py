"""The labelers without a model, and what a model's name means."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from labeler_support import Scripted, comparison, label

from labeler.backend import BackendError, Choose
from labeler.fake import RULES, FakeBackend, open_fake, shown
from labeler.opening import LISTING, open_backend
from prompts.render import Style, pair_question
from prompts.task import load


@pytest.mark.parametrize("task", ["helpfulness", "harmlessness", "summarization"])
@pytest.mark.parametrize("style", [Style(), Style(2), Style(cot=True), Style(2, cot=True)], ids=str)
def test_a_fake_sees_just_the_two_responses(task: str, style: Style):
    prompt = pair_question(load(task), style).ask("Response 1 - no\n\nResponse 2 - no", "one\n\ntwo", "three")
    assert shown(Choose(prompt, ("1", "2"))) == ("one\n\ntwo", "three")


@pytest.mark.parametrize("rule", [name for name in RULES if name != "nan"])
@pytest.mark.parametrize("options", [("1", "2"), tuple(map(str, range(1, 11)))], ids=["pair", "scale"])
def test_every_rule_gives_one_probability_an_option(rule: str, options: tuple[str, ...]):
    prompt = pair_question(load("helpfulness"), Style()).ask("p", "longer one", "other")
    values = RULES[rule](Choose(prompt, options))
    assert len(values) == len(options)
    assert math.fsum(math.exp(value) for value in values) == pytest.approx(1)


def test_longer_prefers_the_longer_response_wherever_it_stands():
    assert label(RULES["longer"], comparison("long enough", "short")).choice == 0
    assert label(RULES["longer"], comparison("short", "long enough")).choice == 1


def test_longer_thinks_aloud_without_being_led_astray():
    fair = label(FakeBackend("fake:longer", RULES["longer"]), comparison("aaaa", "bb"), cot=True)
    assert (fair.choice, fair.same_position) == (0, False)


def test_noise_is_the_same_every_time():
    assert label(RULES["noise"]) == label(RULES["noise"])


def test_a_fake_knows_how_long_its_prompts_may_be():
    request = Choose(pair_question(load("helpfulness"), Style()).ask("p", "a", "b"), ("1", "2"))
    length = len(request.prompt.plain())
    assert (Scripted(limit=length).overflow(request), Scripted(limit=length - 7).overflow(request)) == (0, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fake:nosuch", "unknown rule; there are first"),
        ("gpt-4", "expected KIND:NAME"),
        ("local:", "expected KIND:NAME"),
        ("", "expected KIND:NAME"),
        ("oracle:delphi", "unknown kind 'oracle'"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, message: str, tmp_path: Path):
    with pytest.raises(BackendError, match=message):
        open_backend(name, cache=tmp_path, dtype="auto", device="auto")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_listed_and_opens(rule: str):
    assert rule in LISTING
    backend = open_fake(rule)
    assert (backend.name, backend.identity) == (f"fake:{rule}", f"fake:{rule}")
    asyncio.run(backend.close())
