"""What did the model say? Pure functions from its text or likelihoods to an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pydantic_core import from_json

from prompts.render import MARK

PAIR = ("1", "2")
MOST_PERCENT = 1e6
"""A stated number above this is no share of anything."""

SCALE = tuple(str(number) for number in range(1, 11))


def first_probability(log_probabilities: Sequence[float]) -> float:
    """P("1") renormalised over "1" and "2": the softmax of two log-probabilities (RLAIF, section 2.1).

    Raises ValueError where neither label has any probability, or one is NaN.
    """
    one, two = log_probabilities
    if math.isnan(one) or math.isnan(two) or (one == -math.inf and two == -math.inf):
        raise ValueError("neither label has a usable probability")
    if one == two:
        return 0.5
    return 1 / (1 + math.exp(min(two - one, 700)))


def mass(log_probabilities: Sequence[float]) -> float:
    """The probability of all labels together; above 1 only by rounding, which is cut off."""
    return min(1.0, math.fsum(math.exp(each) for each in log_probabilities))


def distribution(log_probabilities: Sequence[float]) -> tuple[float, ...]:
    """Likelihoods normalised over the options: a softmax. Raises ValueError where no option has any."""
    peak = max(log_probabilities)
    if math.isnan(sum(log_probabilities)) or peak == -math.inf:
        raise ValueError("no score has a usable probability")
    weights = [math.exp(each - peak) for each in log_probabilities]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def expected_score(probabilities: Sequence[float]) -> float:
    """The mean of the scores 1, 2, ... under their probabilities (RLAIF, section 2.2.2)."""
    mean = math.fsum(score * probability for score, probability in enumerate(probabilities, start=1))
    return min(max(mean, 1.0), float(len(probabilities)))


def reward(score: float) -> float:
    """A score of 1..10 on the line from -1 to 1."""
    return min(max((2 * score - 11) / 9, -1.0), 1.0)


def clamp(probability: float, low: float = 0.4, high: float = 0.6) -> float:
    """Keep a chain-of-thought label away from certainty (Constitutional AI, section 4.3: 40 to 60 %)."""
    return min(max(probability, low), high)


def stops(ending: str) -> tuple[str, ...]:
    """Where a rationale ends: at the answer, with or without its sign, and at anything like the next example."""
    return (ending.rstrip("="), MARK)


def rationale(text: str, ending: str) -> str:
    """The reasoning alone: cut at the first stop, so that an answer inside it is never read as the label."""
    cuts = [at for stop in stops(ending) if (at := text.find(stop)) >= 0]
    return text[: min(cuts, default=len(text))].rstrip()


def choice(text: str, options: Sequence[str]) -> int | None:
    """Which option a text's first line names, if it says nothing else: "2", " 2.", "**2**", "Preferred Response=2".

    None for anything longer: "1 is better than 2" is not read for what it might mean.
    """
    found = re.fullmatch(_ANSWER, text.strip().partition("\n")[0], re.IGNORECASE)
    return options.index(found[1]) if found and found[1] in options else None


_LEAD = r"\W*(?:(?:the|my|preferred|better)\s+)*"
_NOUN = r"(?:(?:response|summary|answer|option|score|rating|boxed)\W*(?:is\W+)?)?"
_ANSWER = rf"{_LEAD}{_NOUN}(\d+)\W*"


def stated(text: str, options: Sequence[str]) -> tuple[float, ...] | None:
    """Probabilities from a JSON object with a number for each option, which need not add up; None for anything else."""
    try:
        told = from_json(text)
        weights = [float(told[option]) for option in options]
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    total = math.fsum(weights) if all(0 <= weight <= MOST_PERCENT for weight in weights) else 0.0
    if total == 0:
        return None
    return tuple(weight / total for weight in weights)


def smoothed(counts: Sequence[int]) -> tuple[float, ...]:
    """Shares of votes, with two more spread evenly: for two options Laplace's rule of succession, (k+1)/(n+2)."""
    spread = 2 / len(counts)
    return tuple((count + spread) / (sum(counts) + 2) for count in counts)
