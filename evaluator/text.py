"""What does a person read? Results as a few plain lines, with what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evaluator.alignment import Alignment
from evaluator.intervals import Interval

COIN = 0.5
MOSTLY = 0.5
LITTLE = 0.01


def percent(interval: Interval | None) -> str:
    """`62.5 % [48.0, 75.0], n 48`"""
    if interval is None:
        return "-"
    return f"{100 * interval.value:5.1f} % {_range(interval, 100, 1)}, n {interval.n}"


def number(interval: Interval) -> str:
    value = "-" if math.isnan(interval.value) else f"{interval.value:.3f}"
    return f"{value} {_range(interval, 1, 3)}, n {interval.n}"


def _range(interval: Interval, scale: float, digits: int) -> str:
    if math.isnan(interval.low):
        return "[-, -]"
    return f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"


def alignment_lines(result: Alignment) -> list[str]:
    """A table of the result and what it says about the labeler."""
    lines = {
        "alignment with the majority": percent(result.alignment),
        "agreement with single votes": percent(result.against_raters),
        "same position in both orders": percent(result.same_position),
        "  of these, the first": percent(result.first_position),
        "always the longer would get": percent(result.prefers_longer),
        "Cohen's kappa": number(result.kappa),
        "Brier score (.25 is a shrug)": number(result.brier),
        "calibration error (ECE)": number(result.ece),
    }
    if len(result.raters) > 1:
        lines |= {f"  rater {name}": percent(each) for name, each in result.raters.items()}
    lines |= {f"  {name}": percent(each) for name, each in result.by.items()}
    table = [f"{name:<30} {value}" for name, value in lines.items()]
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
    if same is not None and same.value > MOSTLY:
        side = "first" if result.first_position is not None and result.first_position.value >= COIN else "second"
        found.append(
            f"It picks the same position in {100 * same.value:.0f} % of pairs, mostly the {side}: "
            "there it answers to the order, not to the texts."
        )
    if result.mass < LITTLE:
        found.append(
            f"The labels themselves got little probability (median mass {result.mass:.1e}): "
            "the model wanted to say something else, and p is mostly noise."
        )
    return found


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
