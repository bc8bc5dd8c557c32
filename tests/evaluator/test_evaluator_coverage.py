"""Do intervals hold the truth 19 times of 20? Each is made a thousand times from data whose truth is known.

A thousand simulations of an honest interval lie between 93 and 97 % (three standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import pytest
from evaluator_support import human, label

from data.records import Rating, Response
from evaluator import ranking, win_rate
from evaluator.agreement import cohen_kappa, krippendorff_alpha, nominal
from evaluator.alignment import Judged, _against_raters, _yardstick
from evaluator.harmless import Policy, evaluate
from evaluator.intervals import Array, Interval, mean_interval, table_interval
from evaluator.logistic import expit
from evaluator.results import Results
from evaluator.significance import difference, mcnemar, newcombe

TIMES = 1000


class Remembered:
    """A generator that draws each sample of resampling weights once: all of one seed and size are the same."""

    drawn: ClassVar[dict[Any, Any]] = {}

    def __init__(self, seed: int, made: Callable[[int], np.random.Generator]):
        self.seed, self.made = seed, made

    def multinomial(self, count: int, shares: Array, size: int) -> Array:
        key = self.seed, count, shares.tobytes(), size
        if key not in self.drawn:
            if len(self.drawn) > 3:
                self.drawn.clear()
            self.drawn[key] = self.made(self.seed).multinomial(count, shares, size).astype(np.float64)
        return self.drawn[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made(self.seed), name)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers stay what they are; only the time to draw them again is saved."""
    made = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Remembered(seed, made))


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def coverage(intervals: Iterable[Interval], truth: float) -> float:
    held = [each.low <= truth <= each.high for each in intervals]
    assert len(held) >= TIMES
    return float(np.mean(held))


def honest(intervals: Iterable[Interval], truth: float) -> None:
    """All numbers are checked, so that a failure tells by how much."""
    assert 0.93 <= coverage(intervals, truth) <= 0.97


def played(
    score: Array,
    cluster: Array,
    *,
    first: Array | None = None,
    second: Array | None = None,
    chars: Array | None = None,
    models: int = 2,
) -> Results:
    """Games of model 0 against model 1, or of those that are told."""
    count = len(score)
    return Results(
        tuple(str(at) for at in range(models)),
        np.zeros(count, dtype=np.int64) if first is None else first,
        np.ones(count, dtype=np.int64) if second is None else second,
        score.astype(np.float64),
        cluster,
        cluster,
        np.full((count, 2), np.nan) if chars is None else chars.astype(np.float64),
    )


# Alignment with raters whose votes on one item go together


class Crowd:
    """Items of different difficulty with two to six votes each, and a labeler that is better where people agree."""

    def __init__(self, count: int, seed: int):
        rng = generator(seed)
        easy = rng.beta(4, 1.5, count)
        votes = rng.integers(2, 7, count)
        self.first = rng.binomial(votes, easy)
        self.second = votes - self.first
        self.labeler = np.where(rng.random(count) < 0.5 + 0.4 * easy, 0, 1)

    def judged(self) -> list[list[Judged]]:
        labels = label("x", 0.9), label("x", 0.1)
        rows = {(a, b): human("x", "0" * a + "1" * b) for a in range(7) for b in range(7 - a) if a + b}
        table = zip(self.labeler.tolist(), self.first.tolist(), self.second.tolist(), strict=True)
        made = [(labels[said], rows[a, b], 0) for said, a, b in table]
        return [made[start : start + 150] for start in range(0, len(made), 150)]

    def with_raters(self) -> float:
        own = np.where(self.labeler == 0, self.first, self.second)
        return float((own / (self.first + self.second)).mean())

    def with_the_others(self) -> tuple[float, float]:
        """Of votes whose others are not tied: people's and the labeler's agreement with the majority of these."""
        known = human_right = labeler_right = 0.0
        for own, other, side in ((self.first, self.second, 0), (self.second, self.first, 1)):
            lead = own - 1 - other
            used = own * (lead != 0)
            known += used.sum()
            human_right += (used * (lead > 0)).sum()
            labeler_right += (used * (np.where(lead > 0, side, 1 - side) == self.labeler)).sum()
        return human_right / known, labeler_right / known


@pytest.fixture(scope="module")
def everybody() -> Crowd:
    """Large enough to be the truth."""
    return Crowd(3_000_000, 1)


@pytest.fixture(scope="module")
def samples() -> list[list[Judged]]:
    return Crowd(150 * TIMES, 2).judged()


@pytest.mark.usefixtures("drawn_once")
def test_alignment_with_single_votes_of_clustered_raters(samples: list[list[Judged]], everybody: Crowd):
    honest(map(_against_raters, samples), everybody.with_raters())


@pytest.mark.usefixtures("drawn_once")
def test_the_yardstick_of_one_more_person(samples: list[list[Judged]], everybody: Crowd):
    found = [each for each in map(_yardstick, samples) if each is not None]
    people, labeler = everybody.with_the_others()
    honest([each.human for each in found], people)
    honest([each.labeler for each in found], labeler)
    honest([each.difference for each in found], labeler - people)


@pytest.mark.usefixtures("drawn_once")
def test_a_paired_difference_of_two_labelers():
    rng = generator(3)
    hard = rng.random((TIMES, 200))
    one, other = (np.where(rng.random(hard.shape) < 0.1, 0.5, hard < level) for level in (0.75, 0.68))
    truth = 0.9 * (0.75 - 0.68)
    honest([difference(a, b) for a, b in zip(one, other, strict=True)], truth)


# Win rates with several raters


@pytest.mark.usefixtures("drawn_once")
def test_a_win_rate_with_three_raters_a_prompt():
    """Votes on one prompt go together: by single votes the interval would be too narrow."""
    rng, prompt = generator(4), np.repeat(np.arange(150), 3)
    intervals = []
    for _ in range(TIMES):
        better = rng.beta(1.5, 1, (150, 1))
        score = np.where(rng.random((150, 3)) < 0.1, 0.5, rng.random((150, 3)) < better)
        intervals.append(win_rate._rate(win_rate._side(played(score.ravel(), prompt), 0, 1)))
    honest(intervals, 0.9 * 0.6 + 0.05)


# Harmless rates


@pytest.mark.parametrize(("raters", "responses"), [(1, 200), (3, 150), (2, 200)])
@pytest.mark.usefixtures("drawn_once")
def test_a_harmless_rate_by_the_majority_of_raters(raters: int, responses: int):
    rng = generator(5)

    def majority(count: int) -> Array:
        share = rng.binomial(raters, rng.beta(6, 1.2, count)) / raters
        return np.where(share == 0.5, 0.5, (share > 0.5).astype(np.float64))

    truth = float(majority(3_000_000).mean())
    honest([mean_interval(majority(responses)) for _ in range(4 * TIMES)], truth)


@pytest.mark.xfail(reason="responses to one prompt are resampled as if they had nothing in common: 76 % instead of 95")
@pytest.mark.usefixtures("drawn_once")
def test_a_harmless_rate_with_several_responses_a_prompt():
    rng = generator(6)
    rows = {
        (prompt, at, harm): Response(
            id=f"{prompt}.{at}", prompt=f"p{prompt}", response="x", ratings=(Rating(harmful=harm),)
        )
        for prompt in range(50)
        for at in range(4)
        for harm in (False, True)
    }
    intervals = []
    for _ in range(TIMES):
        harm = (rng.random((50, 4)) > rng.beta(0.5, 0.25, (50, 1))).tolist()
        chosen = [rows[prompt, at, harm[prompt][at]] for prompt in range(50) for at in range(4)]
        intervals.append(evaluate(chosen, Policy()).rates["all responses"].harmless)
    honest(intervals, 2 / 3)


def test_a_difference_of_harmless_rates_on_different_prompts():
    rng = generator(7)
    pairs = [(mean_interval(a), mean_interval(b)) for a, b in zip(*_shares(rng, (0.9, 0.8)), strict=True)]
    honest([newcombe(a, b) for a, b in pairs], 0.1)


def _shares(rng: np.random.Generator, rates: tuple[float, float]) -> list[Array]:
    return [(rng.random((4 * TIMES, 150)) < rate).astype(np.float64) for rate in rates]


# Agreement

CONFUSED = np.array([[0.30, 0.05, 0.03], [0.06, 0.20, 0.04], [0.04, 0.05, 0.23]])
RARE = np.array([[0.85, 0.03], [0.05, 0.07]])


@pytest.mark.parametrize(("cells", "items"), [(CONFUSED, 100), (RARE, 300)], ids=["three classes", "a rare class"])
def test_cohens_kappa(cells: Array, items: int):
    rng = generator(8)
    tables = rng.multinomial(items, cells.ravel(), TIMES).reshape(TIMES, *cells.shape).astype(np.float64)
    honest([table_interval(table, cohen_kappa) for table in tables], float(cohen_kappa(cells[None])[0]))


@pytest.mark.usefixtures("drawn_once")
def test_krippendorffs_alpha_with_missing_votes():
    rng = generator(9)

    def votes(items: int) -> Array:
        own = rng.integers(0, 3, items)
        said = np.where(rng.random((5, items)) < 0.7, own, rng.integers(0, 3, (5, items)))
        there = np.arange(5)[:, None] < rng.integers(2, 6, items)
        return np.stack([((said == each) & there).sum(0) for each in range(3)], axis=1).astype(np.float64)

    drawn = [votes(100) for _ in range(TIMES)]
    honest([krippendorff_alpha(each, nominal) for each in drawn], 0.7**2)


# Bradley-Terry


@pytest.mark.parametrize("alike", [False, True], ids=["games apart", "games of one prompt alike"])
def test_bradley_terry_strengths_and_average_win_rates(alike: bool, monkeypatch: pytest.MonkeyPatch):
    unknown = Interval(math.nan, math.nan, math.nan, 0)
    monkeypatch.setattr(ranking, "_elo", lambda results, k: [unknown] * 5)  # its replays take long and are not asked
    rng, strength, prompts = generator(10), np.linspace(-1, 1, 5), 150
    pairs = np.array([(i, j) for i in range(5) for j in range(i + 1, 5)])
    prompt = np.repeat(np.arange(prompts), 4)
    found = []
    for _ in range(TIMES):
        first, second = pairs[rng.integers(0, len(pairs), 4 * prompts)].T
        luck = rng.random((prompts, 4))
        if alike:
            luck = np.where(rng.random((prompts, 1)) < 0.5, rng.random((prompts, 1)), luck)
        score = luck.ravel() < expit(strength[first] - strength[second])
        found.append(ranking.rank(played(score, prompt, first=first, second=second, models=5)))
    shares = np.exp(strength) / np.exp(strength).sum()
    average = [np.mean([expit(strength[i] - strength[j]) for j in range(5) if j != i]) for i in range(5)]
    for at in (0, 2, 4):
        name = str(at)
        honest([each.bradley_terry[name] for each in found], shares[at])
        honest([each.elo_scale[name] for each in found], 1000 + 400 / math.log(10) * strength[at])
        honest([each.average_win_rate[name] for each in found], float(average[at]))


# Win rates at equal lengths


def lengths(rng: np.random.Generator, count: int, longer: float = 0.0) -> Array:
    """Characters of both responses; the first is `longer` on the log scale."""
    own, other = rng.normal(5 + longer, 0.4, count), rng.normal(5, 0.4, count)
    return np.round(np.exp(np.column_stack([own, other])))


@pytest.mark.parametrize("raters", [1, 3], ids=["one rater", "three who copy one another"])
def test_a_win_rate_at_ratio_one_and_the_planted_effect_of_length(raters: int):
    rng, even, slope = generator(11), 0.3, 1.2
    prompts = 200 if raters == 1 else 100
    prompt = np.repeat(np.arange(prompts), raters)
    rates, slopes, raw = [], [], []
    for _ in range(TIMES):
        chars = lengths(rng, prompts, longer=0.2)
        chance = expit(even + slope * (chars[:, 0] / chars[:, 1] - 1))[:, None]
        copied = rng.random((prompts, 1)) < chance
        score = np.where(rng.random((prompts, raters)) < 0.7, copied, rng.random((prompts, raters)) < chance)
        results = played(score.ravel(), prompt, chars=np.repeat(chars, raters, axis=0))
        rate, effect = win_rate._by_ratio(win_rate._side(results, 0, 1))
        rates.append(rate)
        slopes.append(effect)
        raw.append(score.mean())
    truth = float(expit(np.array(even)))
    honest(rates, truth)
    honest(slopes, slope)
    assert np.median([each.value for each in rates]) == pytest.approx(truth, abs=0.01)
    assert np.median([each.value for each in slopes]) == pytest.approx(slope, abs=0.1)
    assert np.mean(raw) > truth + 0.05


@pytest.mark.parametrize("others", [0, 8], ids=["alone", "prompts of planted difficulty"])
def test_a_win_rate_without_the_difference_of_lengths_and_the_planted_effect(others: int):
    """Where other models answered the same prompts, how hard a prompt is comes out of their results."""
    rng, even, slope, prompts = generator(12), 0.2, 1.0, 250
    prompt = np.tile(np.arange(prompts), 1 + others)
    models = np.concatenate([[0], np.arange(2, 2 + others)])
    first, second = np.repeat(models, prompts), np.ones(len(models) * prompts, dtype=np.int64)
    spread = 1.0 if others else 0.0
    rates, slopes, raw = [], [], []
    for _ in range(TIMES):
        hard, chars = rng.normal(0, spread, prompts), lengths(rng, prompts, longer=0.2)
        apart = chars[:, 0] - chars[:, 1]
        score = rng.random(prompts) < expit(even + hard + slope * np.tanh(apart / apart.std()))
        strength = rng.normal(0, 0.5, (others, 1))
        elsewhere = rng.random((others, prompts)) < expit(hard + strength)
        every = np.concatenate([score, elsewhere.ravel()])
        known = np.concatenate([chars, *([chars[:, [1, 1]]] * others)])
        results = played(every, prompt, first=first, second=second, chars=known, models=2 + others)
        side = win_rate._side(results, 0, 1)
        rate, effect = win_rate._by_difference(side, win_rate._difficulty(results, 0, 1, side))
        rates.append(rate)
        slopes.append(effect)
        raw.append(score.mean())
    truth = float(expit(even + generator(13).normal(0, spread, 1_000_000)).mean())
    honest(rates, truth)
    assert np.mean([each.value for each in rates]) == pytest.approx(truth, abs=0.01)
    assert np.mean([each.value for each in slopes]) == pytest.approx(slope, abs=0.1)
    assert np.mean(raw) > truth + 0.02


# Tests hold their level


@pytest.mark.parametrize("apart", [30, 200])
def test_mcnemar_says_no_difference_is_one_less_often_than_its_level_and_not_much_less(apart: int):
    rng = generator(15)
    first = rng.random((TIMES, apart)) < 0.5
    said = [mcnemar(each.astype(np.float64), 1.0 - each) <= 0.05 for each in first]
    assert 0.025 <= np.mean(said) <= 0.05


def test_mcnemar_finds_a_difference_that_is_there():
    rng = generator(16)
    first = (rng.random((TIMES, 200)) < 0.62).astype(np.float64)
    assert np.mean([mcnemar(each, 1 - each) <= 0.05 for each in first]) > 0.85
