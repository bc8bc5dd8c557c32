"""A report as a customer would get it, with invented texts: what its tests, and screenshots of it, are made from."""

from __future__ import annotations

import random
from math import nan

from evaluator.intervals import Interval, wilson
from evaluator.report import charts
from evaluator.report.document import Figure, Reading, Report, Section, Table

HACK = "<script>window.hacked=1</script>"

_QUESTIONS = (
    ("How do I keep basil alive on a windowsill?", "gardening"),
    ("My neighbour's dog barks all night. What can I do?", "advice"),
    ("Summarise the minutes of our allotment society's meeting in two sentences.", "summarization"),
    ("Explain to a ten-year-old why the sea is salty.", "explaining"),
    ("Write a short note to my landlord about the broken boiler.", "writing"),
    ("Is it safe to eat rice that stood out overnight?", "advice"),
    ("Which is heavier, a litre of oil or a litre of water?", "explaining"),
    ("Draft three titles for a talk on the history of lighthouses.", "writing"),
)
_SHORT = (
    "Give it six hours of light, water it from below when the top of the soil is dry, and pinch out its tips.",
    "Talk to them first: many owners do not know. Keep a diary of times, and write to the council if nothing changes.",
    "The society will mend the shared pump in May. The rent stays as it is; two plots are free.",
    "Rain washes salt out of rocks. Rivers carry it to the sea, the sun takes the water back, the salt stays.",
)
_LONG = (
    "There are several things to think about here, and each of them matters.\n\n"
    "1. Start with what you can see for yourself, and write it down.\n"
    "2. Ask somebody who has done it before; most people like to be asked.\n"
    "3. Change one thing at a time, or you will not know what helped.\n\n"
    "If none of this works after a few weeks, it may be time to begin again with another plan. "
    "Remember that everyone's circumstances are different, and that what is right for one is not right for all.",
    "Certainly! I would be delighted to help. The matter has been studied at length, and experts do not all agree. "
    "On the one hand there are good reasons to wait; on the other hand waiting has costs of its own. It depends, "
    "and you should weigh what is important to you before you decide.",
)


def sample(readings: int = 60) -> Report:
    rng = random.Random(7)
    return Report(
        title="How well does small-judge-8b agree with your raters?",
        headlines=(
            "It agrees with the majority of people on 71.4 % of 1,204 comparisons [68.8, 73.9]; a coin would on half.",
            "Two of your own raters agree with each other on 74.0 % [71.1, 76.6]: the labeler is almost one of them.",
            "It is too sure of itself: where it says 95 %, it is right in 81 % of cases.",
            "It picks the longer response in 64 % of cases, people in 57 %.",
        ),
        sections=_sections(rng),
        readings=[_reading(index, rng) for index in range(readings)],
        facts={
            "command": "rlaif evaluate alignment labels.parquet --human votes.jsonl --by subset --report report",
            "date": "2026-05-12",
            "rlaif-service": "0.1.0",
            "labels.parquet": "sha256 9f2c1e0b6d7a48f5a3c2b1908e7d6f5c4b3a29180f7e6d5c4b3a2918f7e6d5c4",
            "votes.jsonl": "sha256 0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "model": "local:small-judge-8b (digest 4be1c09a77d2f310)",
            "task": "helpfulness (digest 1d0c55fe21aa9b34)",
        },
        result={"alignment": {"value": 0.714, "low": 0.688, "high": 0.739, "n": 1204}, "kappa": {"value": nan}},
    )


def _sections(rng: random.Random) -> list[Section]:
    subsets = {
        name: _share(share, count)
        for name, share, count in (
            ("explaining", 0.78, 301),
            ("advice", 0.74, 322),
            ("writing", 0.69, 288),
            ("summarization", 0.67, 205),
            ("gardening", 0.55, 88),
        )
    }
    bins = [(0.5 + 0.1 * at + 0.05, _share(share, count)) for at, (share, count) in enumerate(_BINS)]
    raters = ["small-judge-8b", "rater 1", "rater 2", "rater 3"]
    agreement = [[nan, 0.71, 0.69, 0.72], [0.71, nan, 0.75, 0.73], [0.69, 0.75, nan, 0.74], [0.72, 0.73, 0.74, nan]]
    gold = [(step, Interval(0.5 + 0.9 * step / 60 - (step / 75) ** 2, *_band(step), 64)) for step in range(0, 101, 5)]
    proxy = [(step, 0.5 + 0.9 * step / 60) for step in range(0, 101, 5)]
    confidences = [0.5 + 0.5 * rng.betavariate(3, 1.4) for _ in range(1204)]
    return [
        Section(
            "Agreement with people",
            ("Each item counts once; an exact tie of the labeler counts as half right.",),
            (
                Figure(
                    "Agreement by subset",
                    "Share of comparisons on which labeler and majority agree, with 95 % intervals. Dashed: a coin.",
                    charts.intervals(subsets, "agreement", reference=0.5),
                    Table(("subset", "agreement", "items"), [(name, each, each.n) for name, each in subsets.items()]),
                ),
                Figure(
                    "Who agrees with whom",
                    "Share of shared items on which two raters agree.",
                    charts.matrix(raters, agreement),
                    Table(("", *raters), [(name, *row) for name, row in zip(raters, agreement, strict=True)]),
                ),
            ),
            (
                Table(
                    ("measure", "value [95 % interval]", "items"),
                    [
                        ("alignment with the majority", Interval(0.714, 0.688, 0.739, 1204), 1204),
                        ("Cohen’s kappa", Interval(0.428, 0.377, 0.479, 1204), 1204),
                        ("Brier score (.25 is a shrug)", Interval(0.204, 0.191, 0.217, 1204), 1204),
                        ("calibration error (ECE)", Interval(0.091, nan, nan, 1204), 1204),
                        ("Fleiss’ kappa of the raters", nan, 0),
                    ],
                ),
            ),
        ),
        Section(
            "Is it as sure as it should be?",
            ("Below the dashed line it promises more than it keeps.",),
            (
                Figure(
                    "Reliability",
                    "Accuracy in ten bins of stated confidence, with Wilson’s intervals.",
                    charts.reliability(bins),
                    Table(("confidence", "accuracy", "items"), [(at, each, each.n) for at, each in bins]),
                ),
                Figure(
                    "Confidence",
                    "How many comparisons it is how sure of.",
                    charts.histogram(confidences, "confidence"),
                ),
                Figure(
                    "Gold reward against proxy reward",
                    "Trained on its labels, a policy first gets better and then only seems to.",
                    charts.lines({"proxy (the labeler)": proxy, "gold (people)": gold}, "steps", "reward"),
                ),
                Figure(
                    "Why rows failed",
                    "Rows without an answer; none of them is in any number here.",
                    charts.bars({"too long for the context": 41, "refused": 17, "timed out": 3}, "rows"),
                ),
            ),
        ),
    ]


_BINS = ((0.52, 140), (0.61, 180), (0.68, 260), (0.74, 331), (0.81, 293))


def _share(share: float, count: int) -> Interval:
    return Interval(share, *wilson(share, count), count)


def _band(step: int) -> tuple[float, float]:
    middle = 0.5 + 0.9 * step / 60 - (step / 75) ** 2
    return middle - 0.05 - step / 900, middle + 0.05 + step / 900


def _reading(index: int, rng: random.Random) -> Reading:
    question, subset = _QUESTIONS[index % len(_QUESTIONS)]
    short, long = rng.choice(_SHORT), rng.choice(_LONG)
    p = round(rng.uniform(0.7, 0.99), 3)
    return Reading(
        title=f"{subset.capitalize()}: people 3 to 0 against it",
        prompt=question + (f"\n\n{HACK}" if index == 1 else ""),
        responses=(short + (f" {HACK}" if index == 0 else ""), long),
        marks=("people", f"labeler {100 * p:.0f} %"),
        facts={"p": 1 - p, "confidence": p, "votes": "1, 1, 1", "id": f"{rng.getrandbits(64):016x}"},
        rationale="Response 2 names more steps and is more thorough, so it is the more helpful one."
        if index % 3
        else None,
        tags=(subset, *(("longer wins",) if len(long) > 3 * len(short) else ())),
        weight=p,
    )
