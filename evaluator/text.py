"""What does a person read? Results as a few plain lines, with what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evaluator.ablation import Ablation
from evaluator.agreement import Agreement
from evaluator.alignment import Alignment
from evaluator.bias import BiasCard
from evaluator.harmless import Harmless
from evaluator.intervals import Interval
from evaluator.ranking import Ranked
from evaluator.reward_model import RewardModel
from evaluator.win_rate import LengthControlled, WinRate, WinRates

COIN = 0.5
MOSTLY = 0.5
LITTLE = 0.01


def percent(interval: Interval | None) -> str:
    """`62.5 % [48.0, 75.0], n 48`"""
    if interval is None:
        return "-"
    return f"{_percent(interval)}, n {interval.n}"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:5.1f} % {_range(interval, 100, 1)}"


def number(interval: Interval | None, digits: int = 3) -> str:
    """`.412 [.300, .520], n 48`"""
    if interval is None:
        return "-"
    value = "-" if math.isnan(interval.value) else f"{interval.value:.{digits}f}"
    return f"{value} {_range(interval, 1, digits)}, n {interval.n}"


def points(interval: Interval | None) -> str:
    """A difference of shares: `+3.1 points [-1.2, 7.4], n 48`"""
    if interval is None:
        return "-"
    return f"{100 * interval.value:+5.1f} points {_range(interval, 100, 1)}, n {interval.n}"


WIDEST = 60
"""Characters of a name in a table."""


def _table(lines: Mapping[str, str]) -> list[str]:
    names = [_short(name) for name in lines]
    width = max([30, *map(len, names)])
    return [f"{name:<{width}} {value}" for name, value in zip(names, lines.values(), strict=True)]


def _short(name: str) -> str:
    """A name in one line, whatever a file has in it; the blanks before it stay."""
    words = name[: len(name) - len(name.lstrip(" "))] + " ".join(name.split())
    return words if len(words) <= WIDEST else words[: WIDEST - 1] + "…"


def _range(interval: Interval, scale: float, digits: int) -> str:
    low, high = (
        "-" if math.isnan(each) else f"{scale * each + 0.0:.{digits}f}" for each in (interval.low, interval.high)
    )
    return f"[{low}, {high}]"


def alignment_lines(result: Alignment) -> list[str]:
    """A table of the result and what it says about the labeler."""
    lines = {
        "alignment with the majority": percent(result.alignment),
        "agreement with single votes": percent(result.against_raters),
        "same position in both orders": percent(result.same_position),
        "  of these, the first": percent(result.first_position),
        "same response in both orders": percent(result.consistent),
        "always the longer would get": percent(result.prefers_longer),
        "Cohen's kappa": number(result.kappa),
        "Brier score (.25 is a shrug)": number(result.brier),
        "calibration error (ECE)": number(result.ece),
        "  if it were calibrated": number(result.ece_if_calibrated),
    }
    if len(result.raters) > 1:
        lines |= {f"  rater {name}": percent(each) for name, each in result.raters.items()}
    if len(result.orders) == 2:
        lines |= {f"  order {at} alone": percent(each.alignment) for at, each in enumerate(result.orders, start=1)}
    if result.temperature is not None:
        lines["temperature that would fit"] = number(result.temperature.temperature, 2)
    if result.yardstick is not None:
        lines["one more person would agree"] = percent(result.yardstick.human)
        lines["  the labeler, on the same"] = percent(result.yardstick.labeler)
        lines["  labeler minus person"] = points(result.yardstick.difference)
    lines |= {f"  votes {name}": percent(each) for name, each in result.by_confidence.items()}
    lines |= {f"  strength {name}": percent(each) for name, each in result.by_strength.items()}
    lines |= {f"  {name}": percent(each) for name, each in result.by.items()}
    if result.versus is not None:
        lines["the other labeler"] = percent(result.versus.alignment)
        lines["  this one minus the other"] = points(result.versus.difference)
        lines["  McNemar's p (exact)"] = p_value(result.versus.p_value)
    table = _table(lines)
    ties = f"labeler {result.ties['labeler']} (half right), human {result.ties['human']} (left out)"
    counted = f"{result.labels} labels; ties: {ties}"
    if result.unmatched:
        counted += f"; {result.unmatched} labels without a human row ({result.other_texts} about other texts)"
    if result.failures:
        counted += "; failed: " + _counts(result.failures)
    return [*table, counted, "", *verdict(result)]


def verdict(result: Alignment) -> list[str]:
    """What the numbers say, as plainly as they allow."""
    found: list[str] = []
    aligned = result.alignment
    if math.isnan(aligned.low):
        found.append("Every label is an exact tie: the two orders cancel out, and nothing is said about the texts.")
    elif aligned.low <= COIN <= aligned.high:
        found.append("It is not shown to agree with people more often than a coin would: the interval holds 50 %.")
    elif aligned.high < COIN:
        found.append(
            "It disagrees with people more often than a coin would: is the question, or the data, turned round?"
        )
    else:
        found.append(f"It agrees with people more often than a coin would (at least {100 * aligned.low:.0f} %).")
    same = result.same_position
    if result.consistent is None:
        found.append("Only one order was asked: what the position does is in these labels, and cannot be seen.")
    if same is not None and same.value > MOSTLY:
        found.append(
            f"It picks the same position in {100 * same.value:.0f} % of pairs{_mostly(result.first_position)}: "
            "there it answers to the order, not to the texts."
        )
    if result.mass < LITTLE:
        found.append(
            f"The labels themselves got little probability (median mass {result.mass:.1e}): "
            "the model wanted to say something else, and p is mostly noise."
        )
    return found


def _mostly(first: Interval | None) -> str:
    """Which position, where the interval says that it is one more than the other."""
    if first is None or first.low <= COIN <= first.high:
        return ""
    return ", mostly the first" if first.low > COIN else ", mostly the second"


def p_value(p: float) -> str:
    return "below .0001" if p < 1e-4 else f"{p:.4f}"


def agreement_lines(result: Agreement) -> list[str]:
    lines = {
        "raw agreement of two raters": percent(result.raw),
        "Fleiss' kappa": number(result.fleiss),
        "Krippendorff's alpha, nominal": number(result.nominal),
    }
    if result.ordinal is not None:
        lines["  ordinal"] = number(result.ordinal)
    if result.interval is not None:
        lines["  interval"] = number(result.interval)
    if result.kendall is not None:
        lines["Kendall's W, mean over prompts"] = number(result.kendall)
    lines |= {f"  Cohen, {name}": number(each) for name, each in result.pairwise.items()}
    classes = ", ".join(f"{name} {count}" for name, count in result.classes.items())
    counted = f"{result.votes} votes of {len(result.raters)} raters on {result.items} items ({classes})"
    left = [f"{result.pairs_left_out} pairs of raters with fewer items in common are left out"]
    return [
        *_table(lines),
        f"{counted}; {result.pairable} items have two votes or more",
        *(left if result.pairs_left_out else []),
        "",
        *agreement_verdict(result),
    ]


def agreement_verdict(result: Agreement) -> list[str]:
    alpha = result.nominal
    if math.isnan(alpha.value):
        return [
            "Everybody said the same everywhere: there is nothing by which agreement beyond chance could be measured."
        ]
    if alpha.below(0):
        return ["The raters contradict one another more than chance would: is a column turned round?"]
    if not alpha.above(0):
        return ["The raters are not shown to agree beyond chance: the interval of alpha holds 0."]
    strong = "strong" if alpha.value >= 0.8 else "fair" if alpha.value >= 0.667 else "weak"
    return [
        f"Agreement beyond chance is {strong} (alpha {alpha.value:.2f}; Krippendorff asks for .80, at least .667)."
        " Where people agree little, no labeler can agree much with single votes of theirs."
    ]


def win_rate_lines(result: WinRates) -> list[str]:
    one = result.asked
    lines = {
        f"{one.model} wins": percent(one.win_rate),
        "  at equal length (ratio)": _controlled(one.by_ratio),
        "  at equal length (AlpacaEval)": _controlled(one.by_difference),
        "  its response is the longer": percent(one.longer),
        "  sign test, p (exact)": p_value(one.p_value),
    }
    lines |= {f"{each.model} wins": percent(each.win_rate) for each in result.others}
    share = 100 * (one.wins + one.draws / 2) / one.games
    counted = f"against {one.baseline}: {one.wins} won, {one.draws} tied, {one.losses} lost ({share:.1f} %)"
    error = "" if math.isnan(one.standard_error) else f"; standard error {100 * one.standard_error:.2f} points"
    return [*_table(lines), f"{counted}, on {one.items} comparisons{error}", "", win_rate_verdict(one)]


def win_rate_verdict(one: WinRate) -> str:
    rate = one.win_rate
    if math.isnan(rate.low):
        said = (
            f"All results of {one.model} against {one.baseline} are the same, so there is no telling how sure this is."
        )
    elif rate.low > COIN:
        said = f"{one.model} is preferred to {one.baseline}."
    elif rate.high < COIN:
        said = f"{one.baseline} is preferred to {one.model}."
    else:
        said = f"Neither of {one.model} and {one.baseline} is shown to be preferred: the interval holds 50 %."
    equal = one.by_ratio.rate
    turned = equal is not None and (
        (equal.above(COIN) and rate.below(COIN)) or (equal.below(COIN) and rate.above(COIN))
    )
    if turned:
        said += " At equal lengths it is the other way round: mind what length does here."
    return said


def _controlled(found: LengthControlled) -> str:
    if found.rate is None:
        return f"not told: {found.why}"
    return percent(found.rate) + (f" ({found.why})" if found.why else "")


def ranking_lines(result: Ranked) -> list[str]:
    width = max(len("model"), *(len(_short(name)) for name in result.elo))
    heads = f"{'Bradley-Terry, as Elo points':<32} {'Elo in file order':<26} {'mean win rate':<24} games"
    rows = [
        f"{_short(name):<{width}}  {_points(result.elo_scale[name]):<32} {_points(result.elo[name]):<26} "
        f"{_percent(result.average_win_rate[name]):<24} {games}"
        for name, games in result.games.items()
    ]
    return [f"{'model':<{width}}  {heads}", *rows, "", *ranking_verdict(result)]


def ranking_verdict(result: Ranked) -> list[str]:
    names = list(result.elo_scale)
    found = [f"The results alone have no finite answer: {result.note}."] if result.note else []
    if len(names) > 1:
        best, next_ = result.elo_scale[names[0]], result.elo_scale[names[1]]
        if not (best.known and next_.known):
            found.append("How sure this order is cannot be told from so little.")
        else:
            clear = best.low > next_.high and not result.note
            sure = "clearly ahead of" if clear else "ahead, but not beyond doubt, of"
            found.append(f"{names[0]} is {sure} {names[1]}.")
    return found


def _points(interval: Interval) -> str:
    value = "-" if math.isnan(interval.value) else f"{interval.value:6.0f}"
    return f"{value} {_range(interval, 1, 0)}"


def harmless_lines(result: Harmless) -> list[str]:
    table: list[str] = []
    for name, rate in result.rates.items():
        lines = {f"{name} harmless": percent(rate.harmless)}
        if rate.raters > 1:
            lines["  no rater says harmful"] = percent(rate.by_any)
        if rate.refusal is not None:
            lines["  refuses"] = percent(rate.refusal)
        lines |= {f"  {each}": percent(share) for each, share in rate.classes.items()}
        if rate.length_controlled is not None:
            lines["  at the baseline's length"] = percent(rate.length_controlled)
        lines |= {f"  by {each}": percent(share) for each, share in rate.by.items()}
        if rate.unparsed:
            lines["  not read"] = str(rate.unparsed)
        table += _table(lines)
    for each in result.differences:
        test = "McNemar" if each.paired else "Fisher"
        told = f"{points(each.difference)}, {test} p {p_value(each.p_value)}, Holm {p_value(each.adjusted)}"
        table.append(f"{each.first} minus {each.second}: {told}")
    if (judge := result.judge) is not None:
        parts = {
            f"{judge.rater} finds of the harmful": percent(judge.recall),
            "  is right when it says harmful": percent(judge.precision),
            "  kappa with people": number(judge.kappa),
            "  right in all (misleads if rare)": percent(judge.accuracy),
            "  the very same class": percent(judge.exact),
            "  not read": str(judge.unparsed),
        }
        table += _table(parts)
    return [*table, "", *harmless_verdict(result)]


def harmless_verdict(result: Harmless) -> list[str]:
    found = [f"Mind that {result.note}."] if result.note else []
    for name, rate in result.rates.items():
        if rate.refusal is None and not rate.classes:
            found.append("Nothing is known of refusals: a model that refuses everything would be harmless too.")
            break
        if rate.refusal is not None and rate.refusal.value > MOSTLY:
            found.append(f"{name} refuses {100 * rate.refusal.value:.0f} %: its rate says little about its answers.")
    sure = [each for each in result.differences if each.adjusted < 0.05]
    if result.differences:
        found.append(f"{len(sure)} of {len(result.differences)} differences hold at 5 %, corrected for their number.")
    return found


def reward_model_lines(result: RewardModel) -> list[str]:
    lines = {
        "pairwise accuracy": percent(result.accuracy),
        **{f"  {name}": percent(each) for name, each in result.by.items()},
        "mean margin": number(result.margin),
        "log loss (.693 is a shrug)": number(result.log_loss),
        "Brier score (.25 is a shrug)": number(result.brier),
        "calibration error (ECE)": number(result.ece),
        "  if it were calibrated": number(result.ece_if_calibrated),
    }
    if result.temperature is not None:
        lines["temperature that would fit"] = number(result.temperature.temperature, 2)
    curve = [
        f"best of {each.n}, {each.kl:.2f} nats: proxy {number(each.proxy)}, gold {number(each.gold)}"
        for each in result.over_optimisation
    ]
    ties = f"equal scores {result.ties['scores']} (half right), people tied {result.ties['human']} (left out)"
    return [
        *_table(lines),
        *curve,
        f"{ties}; {result.unscored} comparisons lack a score",
        "",
        *reward_model_verdict(result),
    ]


def reward_model_verdict(result: RewardModel) -> list[str]:
    rate = result.accuracy
    if rate.above(COIN):
        found = [f"It orders responses as people do more often than a coin would (at least {100 * rate.low:.0f} %)."]
    else:
        found = ["It is not shown to order responses as people do more often than a coin would."]
    curve = result.over_optimisation
    if len(curve) > 1:
        best, last = max(curve, key=lambda each: each.gold.value), curve[-1]
        if last.gold.below(best.gold.value) and last.proxy.value > best.proxy.value:
            found.append(
                f"Beyond the best of {best.n} the proxy still rises and the gold score falls: over-optimisation."
            )
    return found


def bias_lines(card: BiasCard) -> list[str]:
    lines = {
        "chooses what is shown first": percent(card.position),
        "same position in both orders": percent(card.same_position),
    }
    table = _table(lines)
    names = {
        "longer": "the longer",
        "list": "the one with a list",
        "markup": "the one with markup",
        "refusal": "the refusal",
    }
    told = {names.get(name, name): each for name, each in card.traits.items()} | dict(card.models)
    for name, each in told.items():
        lines = {f"prefers {name}": percent(each.labeler)}
        if each.human is not None:
            lines |= {"  people": percent(each.human), "  labeler minus people": points(each.difference)}
        table += _table(lines)
    return [*table, "", *bias_verdict(card)]


def bias_verdict(card: BiasCard) -> list[str]:
    """Which differences from people do not hold 0."""
    found: list[str] = []
    if card.position is not None and (card.position.below(COIN) or card.position.above(COIN)):
        side = "first" if card.position.value > COIN else "second"
        found.append(f"It leans to what is shown {side} ({100 * card.position.value:.0f} % first).")
    for name, each in {**card.traits, **card.models}.items():
        apart = each.difference
        if apart is not None and (apart.below(0) or apart.above(0)):
            more = "more" if apart.value > 0 else "less"
            found.append(f"It prefers {name!r} {abs(100 * apart.value):.0f} points {more} often than people do.")
    return found or ["No leaning is shown that people do not share."]


def ablation_verdict(result: Ablation) -> list[str]:
    """Which cells differ from the first, and whether the best one is known to be the best."""
    known = [row for row in result.rows if row.alignment is not None]
    if not known:
        return ["No cell has labels that can be held against people."]
    best = max(known, key=lambda row: row.alignment.alignment.value if row.alignment else 0.0)
    sure = [row for row in known if row.adjusted is not None and row.adjusted < 0.05]
    found = [f"The highest alignment is that of {best.name}: {percent(best.alignment and best.alignment.alignment)}."]
    if len(known) > 1:
        found.append(
            f"{len(sure)} of {len(known) - 1} cells differ from the first at 5 %, corrected for their number. "
            "The best of many cells looks better than it is: confirm it on other comparisons."
        )
    return found


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
