"""Rankings, against evalica and closed forms."""

from __future__ import annotations

import json
import math

import evalica
import numpy as np
import pytest
from evaluator_support import played
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluator.intervals import NoDataError
from evaluator.ranking import POINTS, Ranked, bradley_terry, elo, rank
from evaluator.results import Results, collect, wins

QUICK = settings(max_examples=30)
GAMES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0])).filter(
        lambda game: game[0] != game[1]
    ),
    min_size=2,
    max_size=40,
)
Games = list[tuple[str, str, float]]
KINDS = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
CIRCLE: Games = [("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)]
"""With these everybody can be reached by a chain of wins: strengths are finite."""


def evalicas(games: Games) -> tuple[list[str], list[str], list[evalica.Winner]]:
    first, second, score = (list(each) for each in zip(*games, strict=True))
    return first, second, [KINDS[each] for each in score]


def values(intervals: dict[str, object]) -> dict[str, float]:
    return {name: each.value for name, each in intervals.items()}


@QUICK
@given(GAMES)
def test_bradley_terry_is_evalicas(games: Games):
    games = [*games, *CIRCLE, ("d", "a", 0.5)]
    scores = evalica.bradley_terry(*evalicas(games), tolerance=1e-12, limit=100_000).scores
    found = rank(played(games))
    assert found.note is None
    assert values(found.bradley_terry) == pytest.approx((scores / scores.sum()).to_dict(), abs=1e-7)


@QUICK
@given(GAMES)
def test_elo_is_evalicas(games: Games):
    results = played(games)
    for k in (4.0, 32.0):
        expected = evalica.elo(*evalicas(games), k=k).scores.to_dict()
        assert dict(zip(results.models, elo(results, k), strict=True)) == pytest.approx(expected, abs=1e-9)


@QUICK
@given(GAMES)
def test_average_win_rates_are_evalicas(games: Games):
    expected = evalica.average_win_rate(*evalicas(games)).scores.to_dict()
    assert values(rank(played(games)).average_win_rate) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("won", "lost", "tied"), [(71, 29, 0), (63, 37, 0), (1, 99, 0), (10, 20, 30)])
def test_the_strengths_of_two_are_the_log_odds_of_the_win_rate(won: int, lost: int, tied: int):
    games = [("a", "b", 1.0)] * won + [("a", "b", 0.0)] * lost + [("a", "b", 0.5)] * tied
    strengths = bradley_terry(wins(played(games)))
    rate = (won + tied / 2) / (won + lost + tied)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(rate / (1 - rate)))
    assert values(rank(played(games)).bradley_terry) == pytest.approx({"a": rate, "b": 1 - rate})


@pytest.mark.parametrize(
    ("rate", "points"), [(0.71, 155.5), (0.63, 92.5), (0.90909090909, 400.0), (0.6400649998, 100.0)]
)
def test_a_win_rate_is_so_many_points_on_elos_scale(rate: float, points: float):
    found = values(rank(played([("a", "b", rate)] * 2)).elo_scale)
    assert found["a"] - found["b"] == pytest.approx(points, abs=0.05)
    assert (found["a"] + found["b"]) / 2 == pytest.approx(1000)


def test_elo_points_of_one_unit_are_the_textbooks():
    assert pytest.approx(173.718, abs=5e-4) == POINTS


@pytest.mark.parametrize(("ahead", "chance"), [(400.0, 0.90909), (100.0, 0.64006), (0.0, 0.5)])
def test_an_elo_win_of_the_favourite_earns_what_was_not_expected(ahead: float, chance: float, monkeypatch):
    """The first game lifts a to `ahead` above b; the second, which a wins, is worth K times what was missing."""
    lift = [("a", "b", 1.0)]
    k = ahead  # from equal ratings a win is worth K / 2 for each: together K
    before = elo(played(lift), k) if ahead else np.array([1000.0, 1000.0])
    assert before[0] - before[1] == pytest.approx(ahead)
    after = elo(played([*lift, ("a", "b", 1.0)]), k) if ahead else elo(played(lift), 4.0)
    assert after[0] - before[0] == pytest.approx((k or 4.0) * (1 - chance), abs=5e-6 * (k or 4.0))


@QUICK
@given(GAMES)
def test_elo_keeps_its_sum(games: Games):
    results = played(games)
    assert elo(results, 32.0).sum() == pytest.approx(1000 * len(results.models))


@QUICK
@given(GAMES, st.randoms(use_true_random=False))
def test_the_order_of_games_matters_to_elo_alone(games: Games, random):
    games = [*games, *CIRCLE, ("d", "a", 0.5)]
    mixed = random.sample(games, len(games))
    one, other = rank(played(games)), rank(played(mixed))
    assert values(other.bradley_terry) == pytest.approx(values(one.bradley_terry), abs=1e-9)
    assert values(other.average_win_rate) == pytest.approx(values(one.average_win_rate), abs=1e-12)
    assert {name: each.n for name, each in other.elo.items()} == {name: each.n for name, each in one.elo.items()}


def test_elo_depends_on_the_order_of_games():
    games: Games = [("a", "b", 1.0), ("b", "a", 1.0)]
    assert elo(played(games))[0] < 1000 < elo(played([("b", "a", 1.0), ("a", "b", 1.0)]))[1]


@QUICK
@given(GAMES)
def test_who_is_named_first_does_not_matter(games: Games):
    games = [*games, *CIRCLE, ("d", "a", 0.5)]
    turned = [(second, first, 1 - score) for first, second, score in games]
    one, other = rank(played(games)), rank(played(turned))
    for measure in ("bradley_terry", "elo_scale", "elo", "average_win_rate"):
        there, back = getattr(one, measure), getattr(other, measure)
        assert values(back) == pytest.approx(values(there), abs=1e-7)
        bounds = [{name: (each.low, each.high) for name, each in told.items()} for told in (there, back)]
        for name, low_high in bounds[0].items():
            if measure != "elo":  # models are numbered as they appear, and Elo's replays are drawn by game
                assert bounds[1][name] == pytest.approx(low_high, rel=1e-6, abs=1e-6, nan_ok=True)


@QUICK
@given(GAMES)
def test_strengths_are_told_up_to_a_shift_and_centred(games: Games):
    results = played([*games, *CIRCLE, ("d", "a", 0.5)])
    strengths = bradley_terry(wins(results))
    assert strengths.mean() == pytest.approx(0, abs=1e-9)
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    table = wins(results)
    met = table + table.T
    assert table.sum(1) == pytest.approx((met * chance).sum(1), abs=1e-6), "the likelihood's equations hold"
    shifted = strengths + 3
    assert np.exp(shifted) / np.exp(shifted).sum() == pytest.approx(np.exp(strengths) / np.exp(strengths).sum())


def test_twice_the_games_are_the_same_strengths():
    table = np.array([[0, 3.0, 1], [2, 0, 4], [5, 1, 0]])
    assert bradley_terry(2 * table) == pytest.approx(bradley_terry(table))


@pytest.mark.parametrize("prior", [0.1, 1.0, 10.0])
def test_a_prior_of_ties_with_an_average_model_is_that_model_joining_in(prior: float):
    """Its strength is fixed at 0; evalica's is free, so the equations are checked, not the numbers."""
    table = np.array([[0, 3.0, 1], [2, 0, 4], [5, 1, 0]])
    found = bradley_terry(table, prior)
    plain = bradley_terry(table)
    assert np.ptp(found) < np.ptp(plain)
    assert (np.argsort(found) == np.argsort(plain)).all()


# Where the results have no finite answer

UNBEATEN: Games = [("a", "b", 1.0), ("a", "c", 1.0), ("b", "c", 1.0), ("c", "b", 1.0)]
APART: Games = [("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 1.0), ("d", "c", 0.5)]


@pytest.mark.parametrize(
    ("games", "note"),
    [
        (UNBEATEN, "a never lost"),
        ([(second, first, score) for first, second, score in UNBEATEN], "a never won"),
        (APART, "2 groups of models never met one another"),
        ([*UNBEATEN, ("d", "a", 1.0), ("a", "d", 1.0)], "a group of models never lost against the others"),
    ],
    ids=["unbeaten", "never won", "apart", "a group on top"],
)
def test_strengths_without_a_finite_answer_are_made_finite_and_it_is_said_why(games: Games, note: str):
    found = rank(played(games))
    assert note in (found.note or "")
    assert "so that it is finite" in (found.note or "")
    assert found.prior == 1.0
    strict(found)
    assert all(0 < each.value < 1 for each in found.bradley_terry.values())


def strict(found: Ranked) -> None:
    """No NaN and no infinity where a reader of JSON would meet it."""
    json.dumps(found.json(), allow_nan=False)


@pytest.mark.parametrize("games", [UNBEATEN, [("a", "b", 1.0)] * 5], ids=["three", "two"])
def test_strengths_without_a_finite_answer_and_without_a_prior_are_unknown(games: Games):
    assert np.isnan(bradley_terry(wins(played(games)))).all()


def test_an_unbeaten_model_is_ranked_first():
    assert next(iter(rank(played(UNBEATEN)).bradley_terry)) == "a"


def test_an_unbeaten_models_interval_admits_that_it_could_have_been_luck():
    found = rank(played([("a", "b", 1.0)] * 8))
    assert found.bradley_terry["a"].low < 0.9


def test_all_ties_leave_doubt():
    found = rank(played([("a", "b", 0.5)] * 8))
    told = [found.bradley_terry["a"], found.elo_scale["a"], found.elo["a"], found.average_win_rate["a"]]
    assert all(math.isnan(each.low) or each.low < each.value < each.high for each in told)


def test_of_one_game_both_bounds_are_unknown():
    found = rank(played([("a", "b", 1.0)])).bradley_terry["a"]
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_one_game_is_ranked():
    found = rank(played([("a", "b", 1.0)]))
    strict(found)
    assert list(found.bradley_terry) == ["a", "b"]
    assert math.isnan(found.elo["a"].low)


def test_one_prompt_alone_is_resampled_by_comparison():
    """All games under one prompt would be one cluster, of which nothing can be known."""
    found = rank(played([("a", "b", n % 2 / 1, "p") for n in range(20)]))
    assert found.bradley_terry["a"].low < 0.5 < found.bradley_terry["a"].high


@pytest.mark.parametrize("games", [[], [("a", "a", 1.0)] * 3], ids=["no games", "against itself"])
def test_nothing_to_rank_is_refused(games: Games):
    with pytest.raises(NoDataError, match="no result of one model against another"):
        collect([]) if not games else played(games)


def test_games_against_itself_are_left_out():
    results = played([("a", "a", 1.0), ("a", "b", 1.0)])
    assert (len(results.score), results.models) == (1, ("a", "b"))


def test_votes_of_one_prompt_widen_the_intervals():
    """The same wins, as 200 prompts or as 20 prompts with ten votes that agree."""
    apart: list[tuple[object, ...]] = [("a", "b", float(n % 10 < 6)) for n in range(200)]
    together: list[tuple[object, ...]] = [("a", "b", float(n % 20 < 12), n % 20) for n in range(200)]
    wide, narrow = rank(played(together)), rank(played(apart))
    assert values(wide.bradley_terry) == pytest.approx(values(narrow.bradley_terry))
    for measure in ("bradley_terry", "elo_scale", "average_win_rate"):
        one, other = getattr(wide, measure)["a"], getattr(narrow, measure)["a"]
        assert one.high - one.low > 2.5 * (other.high - other.low)


def test_more_games_than_elo_is_resampled_for_are_rated_without_bounds():
    games: Games = [("a", "b", float(n % 3 > 0)) for n in range(20_001)]
    found = rank(played(games)).elo["a"]
    assert found.value > 1000
    assert math.isnan(found.low)


def results_of(size: int) -> Results:
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 1, size)
    first = rng.integers(0, size, 200 * size)
    second = (first + rng.integers(1, size, 200 * size)) % size
    score = (rng.random(200 * size) < 1 / (1 + np.exp(strength[second] - strength[first]))).astype(float)
    at = np.arange(len(score))
    return Results(tuple(map(str, range(size))), first, second, score, at, at, np.full((len(score), 2), np.nan))


def test_a_hundred_models_are_fitted_to_the_same_strengths_as_by_evalica():
    results = results_of(100)
    winners = [KINDS[each] for each in results.score.tolist()]
    scores = evalica.bradley_terry(
        results.first.tolist(), results.second.tolist(), winners, tolerance=1e-12, limit=100_000
    ).scores
    expected = np.log(scores.sort_index().to_numpy())
    assert bradley_terry(wins(results)) == pytest.approx(expected - expected.mean(), abs=1e-6)


@QUICK
@given(GAMES)
def test_every_interval_holds_its_value_and_is_strict_json(games: Games):
    found = rank(played(games))
    strict(found)
    assume(len({*(first for first, _, _ in games), *(second for _, second, _ in games)}) > 1)
    for told in (found.bradley_terry, found.elo, found.average_win_rate):
        for each in told.values():
            assert math.isnan(each.low) or each.low <= each.value + 1e-12
            assert math.isnan(each.high) or each.high >= each.value - 1e-12
